"""Functions that import weights from other programs: from wolf, the code of the paper's authors."""
