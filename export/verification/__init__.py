"""Verification of exports: every file is opened in a process of its own and compared with the model."""
