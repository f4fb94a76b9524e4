"""Benchmark programs, which measure speed, memory, exports, exactness and training results of the project."""
