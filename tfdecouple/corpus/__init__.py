"""Files with the codes z and v of many images: `tfdecouple encode` and `encode-beam` write, `read_codes` reads them."""

from tfdecouple.corpus.code_files import read_codes

__all__ = ["read_codes"]
