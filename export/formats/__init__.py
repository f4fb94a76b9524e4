"""The formats of exported files, a module for each."""
