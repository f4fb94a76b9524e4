"""Import of weights from wolf, the PyTorch code of the paper's authors."""
