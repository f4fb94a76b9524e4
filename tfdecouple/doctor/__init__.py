"""The command `doctor`, which checks the promises of the project on the user's machine and times the model."""
