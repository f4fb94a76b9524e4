"""Functions that read a folder of codes and the image folder that was encoded."""

import json

import numpy as np
from PIL import Image

from tfdecouple.corpus import read_codes

COUNTS = {"train": 20, "validation": 6, "test": 5}
# Names of the code files in the order of `encode`: 20 + 6 + 5 images, with at most 7 images in a file.
FILES = ["train-00000-of-00003", "train-00001-of-00003", "train-00002-of-00003"]
FILES += ["validation-00000-of-00001", "test-00000-of-00001"]


def read(folder, **options):
    """Returns the codes in a folder by key, and asserts that no key repeats."""
    rows = list(read_codes(folder, **options).as_numpy_iterator())
    by_key = {row["key"].decode(): row for row in rows}
    assert len(by_key) == len(rows)
    return by_key


def pixels_of(folder, keys):
    return np.stack([np.asarray(Image.open(folder / key)) for key in keys])


def every_key(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


def manifest(folder):
    return json.loads((folder / "_manifest.json").read_text())


def contents(folder, pattern="*.*"):
    return {path.name: path.read_bytes() for path in folder.glob(pattern) if path.is_file()}
