"""The metrics of the command `evaluate`, one module each, and modules that draw images and find directions in z."""
