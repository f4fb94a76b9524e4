"""Benchmark programs for speed, memory, export, exactness and training results."""
