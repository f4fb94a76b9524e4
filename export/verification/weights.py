"""Digests of the folded weights: a file must hold the very numbers of the run, to the last bit.

A changed weight can move no pixel of any image that is tried; its digest shows it all the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np


def digest(array: np.ndarray) -> str:
    """Returns the SHA-256 of an array's shape, type and bytes."""
    array = np.ascontiguousarray(array)
    hashed = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    hashed.update(array.data)
    return hashed.hexdigest()


def digests(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the digests of named arrays as one array of text, for the file of cases."""
    return np.array([f"{digest(array)} {name}" for name, array in sorted(arrays.items())])


def by_name(listed: np.ndarray) -> dict[str, str]:
    """Returns {name: digest} of what `digests` listed."""
    pairs = (str(line).partition(" ") for line in listed)
    return {name: value for value, _, name in pairs}


def same(array: np.ndarray, expected: str) -> bool:
    """Returns whether an array has a digest, as it is or with its axes as ONNX has those of a kernel."""
    if digest(array) == expected:
        return True
    # [out, in, height, width] of ONNX back to [height, width, in, out].
    return array.ndim == 4 and digest(array.transpose(2, 3, 1, 0)) == expected
