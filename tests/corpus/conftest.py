"""A folder of pictures and the command that encodes it."""

import pytest
from helpers.codes import COUNTS
from helpers.models import random_images
from PIL import Image

from tfdecouple.cli import main
from tfdecouple.runs.opened_run import load_model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 31 images, those for training under two labels."""
    folder = tmp_path_factory.mktemp("pictures")
    images = iter(random_images(31, seed=5))
    for split, count in COUNTS.items():
        for number in range(count):
            place = folder / split / ("even", "odd")[number % 2] if split == "train" else folder / split
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(next(images)).save(place / f"{number}.png")
    return folder


@pytest.fixture
def encode(tiny_run, pictures, tmp_path):
    """Returns a function that runs the command and gives its status."""

    def run(*more, run=tiny_run, data=pictures, out=tmp_path / "codes"):
        arguments = ["--run", run, "--data", f"folder:{data}", "--out", out, "--images-per-shard", 7]
        return main(["encode", *map(str, [*arguments, "--batch-size", 4, *more])])

    return run


@pytest.fixture(scope="module")
def model(tiny_run):
    return load_model(tiny_run)
