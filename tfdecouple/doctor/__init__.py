"""The checks of the command `doctor`, which test this project's promises on a machine and time the model."""
