"""Codes of many images in files: written by `python -m tfdecouple encode` and `encode-beam`, read by `read_codes`."""

from tfdecouple.corpus.formats import read_codes

__all__ = ["read_codes"]
