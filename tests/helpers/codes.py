"""Functions that read a folder of codes that `encode` has written, and the image folder that it encoded."""

import json

import numpy as np
from PIL import Image

from tfdecouple.corpus import read_codes

# The number of images in each split of the image folder.
COUNTS = {"train": 20, "validation": 6, "test": 5}
# Names of the code files in the order of `encode`, with at most 7 images in a file.
FILES = ["train-00000-of-00003", "train-00001-of-00003", "train-00002-of-00003"]
FILES += ["validation-00000-of-00001", "test-00000-of-00001"]


def read_codes_by_key(folder, **options):
    """Returns the rows in a folder of codes by their key, and asserts that no key repeats."""
    rows = list(read_codes(folder, **options).as_numpy_iterator())
    by_key = {row["key"].decode(): row for row in rows}
    assert len(by_key) == len(rows)
    return by_key


def read_pixels(folder, keys):
    """Returns the images of an image folder with these keys, uint8 `[len(keys), height, width, 3]`."""
    return np.stack([np.asarray(Image.open(folder / key)) for key in keys])


def list_image_keys(folder):
    """Returns the keys of all images in an image folder: their paths relative to the folder, a set."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


def read_manifest(folder):
    return json.loads((folder / "_manifest.json").read_text())


def read_files(folder, pattern="*.*"):
    """Returns the bytes of the files in a folder whose names match a pattern, by name."""
    return {path.name: path.read_bytes() for path in folder.glob(pattern) if path.is_file()}
