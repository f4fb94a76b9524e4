"""Weights that other programs saved."""
