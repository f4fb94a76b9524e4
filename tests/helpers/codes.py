"""Functions that read a folder of images, and the files into which `tfdecouple encode` wrote the images' z and v."""

import json

import numpy as np
from PIL import Image

from tfdecouple.corpus import read_codes

# Count of images in each split of the folder that the fixture `image_folder` makes.
COUNTS = {"train": 20, "validation": 6, "test": 5}
# Names of the files that `tfdecouple encode` writes for the fixture `image_folder`, in order, at 7 images a file.
FILES = ["train-00000-of-00003", "train-00001-of-00003", "train-00002-of-00003"]
FILES += ["validation-00000-of-00001", "test-00000-of-00001"]


def read_codes_by_key(folder, **options):
    """Returns {image key: dict of the image's codes} from the code files in `folder`; asserts that no key repeats."""
    rows = list(read_codes(folder, **options).as_numpy_iterator())
    by_key = {row["key"].decode(): row for row in rows}
    assert len(by_key) == len(rows)
    return by_key


def read_pixels(folder, keys):
    """Returns the pixels of the image files `folder / key`, for each of `keys`, uint8 `[n, height, width, 3]`."""
    return np.stack([np.asarray(Image.open(folder / key)) for key in keys])


def list_image_keys(folder):
    """Returns the set of keys of all PNG files below `folder`; a key is a file's path relative to `folder`."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


def read_manifest(folder):
    return json.loads((folder / "_manifest.json").read_text())


def read_files(folder, pattern="*.*"):
    """Returns {file name: bytes} of the files in `folder` whose names match the glob `pattern`."""
    return {path.name: path.read_bytes() for path in folder.glob(pattern) if path.is_file()}


def assert_same_codes(folder, other):
    """Asserts that two folders have files of equal names with nearly equal codes; the last digits depend on memory."""
    ours, theirs = read_codes_by_key(folder), read_codes_by_key(other)
    assert read_files(folder).keys() == read_files(other).keys() and list(ours) == list(theirs)
    for key, row in ours.items():
        for name, value in row.items():
            if name == "key":
                continue
            np.testing.assert_allclose(value, theirs[key][name], atol=1e-5, err_msg=f"{name} of {key}")
