"""The verification of exports, which runs every file in a process of its own and compares it with the model."""
