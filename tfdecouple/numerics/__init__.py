"""Arithmetic with tensors: full float32, products and inverses of matrices, and the kernels of the nets."""
