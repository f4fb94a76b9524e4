"""Files with the codes of many images, which `tfdecouple encode` and `encode-beam` write and `read_codes` reads."""

from tfdecouple.corpus.code_files import read_codes

__all__ = ["read_codes"]
