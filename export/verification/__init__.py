"""What stands between an export and its publication: every file is used, in a process of its own, and compared."""
