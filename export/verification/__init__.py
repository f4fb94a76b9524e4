"""The verification of exports, which runs the files of each format in a new process and compares the answers."""
