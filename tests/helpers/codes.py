"""Functions that read code files, which `tfdecouple encode` wrote to a folder, and the image folder it encoded."""

import json

import numpy as np
from PIL import Image

from tfdecouple.corpus import read_codes

# Number of images in each split of the folder that the fixture `image_folder` makes.
COUNTS = {"train": 20, "validation": 6, "test": 5}
# Names of the code files in the order in which `encode` writes them, with at most 7 images in a file.
FILES = ["train-00000-of-00003", "train-00001-of-00003", "train-00002-of-00003"]
FILES += ["validation-00000-of-00001", "test-00000-of-00001"]


def read_codes_by_key(folder, **options):
    """Returns {key: dict of an image's codes} from all code files in a folder, and asserts that no key repeats."""
    rows = list(read_codes(folder, **options).as_numpy_iterator())
    by_key = {row["key"].decode(): row for row in rows}
    assert len(by_key) == len(rows)
    return by_key


def read_pixels(folder, keys):
    """Returns the images at the relative paths `keys` in a folder, uint8 `[len(keys), height, width, 3]`."""
    return np.stack([np.asarray(Image.open(folder / key)) for key in keys])


def list_image_keys(folder):
    """Returns the set of the keys of all images in a folder; a key is an image's path relative to the folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


def read_manifest(folder):
    return json.loads((folder / "_manifest.json").read_text())


def read_files(folder, pattern="*.*"):
    """Returns {name: bytes} for the files in a folder whose names match the glob pattern."""
    return {path.name: path.read_bytes() for path in folder.glob(pattern) if path.is_file()}
