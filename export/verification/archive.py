"""The cases of a verification in a file: images, noise and codes, and what the Keras model answers to them."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping

import numpy as np

from export.verification.tolerance import Answer, restored

Arrays = dict[str, np.ndarray]


def batches(side: int) -> tuple[int, int, int]:
    """Returns the sizes of the batches at which endpoints are compared: fewer of larger images, and always three.

    The model computes their images in other batches, so that it is tested that none depends on its neighbours.
    """
    for most, largest in ((32, 17), (64, 8), (128, 4)):
        if side <= most:
            return (1, 3, largest)
    return (1, 2, 1)


def digest(array: np.ndarray) -> str:
    """Returns the SHA-256 of an array's shape, type and bytes."""
    array = np.ascontiguousarray(array)
    return hashlib.sha256(f"{array.dtype.str} {array.shape}".encode() + array.tobytes()).hexdigest()


def save_cases(cases: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes cases; arrays that are equal are written once."""
    # Names with slashes would become folders in the archive: they are listed in an array of their own.
    arrays: Arrays = {}
    numbers = []
    known: dict[str, int] = {}
    for array in cases.values():
        numbers.append(known.setdefault(digest(array), len(known)))
        arrays.setdefault(f"array_{numbers[-1]}", array)
    np.savez_compressed(path, allow_pickle=False, names=np.array(list(cases)), numbers=np.array(numbers), **arrays)


def load_cases(path: pathlib.Path) -> Arrays:
    """Reads what `save_cases` wrote."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files if name.startswith("array_")}
        names = zip(archive["names"], archive["numbers"], strict=True)
        return {str(name): arrays[f"array_{number}"] for name, number in names}


def group(cases: Mapping[str, np.ndarray], prefix: str) -> Arrays:
    """Returns the arrays whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in cases.items() if name.startswith(prefix)}


def cases_of(cases: Arrays, endpoint: str) -> list[str]:
    """Returns the names of the cases of an endpoint: its own, and "ENDPOINT of ..."."""
    names = dict.fromkeys(name.split("/")[1] for name in cases if name.startswith("in/"))
    return [name for name in names if name == endpoint or name.startswith(f"{endpoint} of ")]


def answers_in(cases: Arrays, case: str) -> dict[str, Answer]:
    """Returns the model's answers of a case, by the names of outputs."""
    parts: dict[str, Arrays] = {}
    for name, array in group(cases, f"out/{case}/").items():
        output, _, part = name.rpartition("/")
        parts.setdefault(output, {})[part] = array
    return {output: restored(arrays) for output, arrays in parts.items()}
