"""Functions that write files completely or not at all, and that read files and checkpoints within limits."""
