"""The metrics of the command `evaluate`, one module each."""
