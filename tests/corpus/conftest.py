"""Fixtures for tests of codes: a folder of images, the command that encodes it, and the model."""

import pytest
from helpers.codes import COUNTS
from helpers.models import random_images, save_images

from tfdecouple.cli import main
from tfdecouple.runs.opened_run import load_model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The path of a folder with 20 training images in two classes, 6 validation images and 5 test images."""
    names = [f"train/{('even', 'odd')[number % 2]}/{number}.png" for number in range(COUNTS["train"])]
    names += [f"{split}/{number}.png" for split in ("validation", "test") for number in range(COUNTS[split])]
    images = dict(zip(names, random_images(31, seed=5), strict=True))
    return save_images(tmp_path_factory.mktemp("pictures"), images)


@pytest.fixture(scope="module")
def encode_into(tiny_run, pictures):
    """A function that runs the command `encode` for a folder with further arguments and returns its exit status."""

    def run(out, *more, run=tiny_run, data=pictures):
        options = {"--run": run, "--data": f"folder:{data}", "--out": out, "--images-per-shard": 7, "--batch-size": 4}
        defaults = [word for name, value in options.items() if name not in more for word in (name, value)]
        return main(["encode", *map(str, [*defaults, *more])])

    return run


@pytest.fixture
def encode(encode_into, tmp_path):
    return lambda *more, out=tmp_path / "codes", **options: encode_into(out, *more, **options)


@pytest.fixture(scope="module")
def model(tiny_run):
    return load_model(tiny_run)
