"""The writers of exported files, with a module for each format."""
