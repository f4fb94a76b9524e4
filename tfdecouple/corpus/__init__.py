"""Files with the codes z and v of many images: `tfdecouple encode` and `encode-beam` write them, `read_codes` reads."""

from tfdecouple.corpus.code_files import read_codes

__all__ = ["read_codes"]
