"""Functions that write files completely or not at all, and that read untrusted files and checkpoints safely."""
