"""The metrics of the command `evaluate`, one module each, and functions that find directions in z."""
