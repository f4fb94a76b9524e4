"""Import of weights from other programs."""
