"""evaluate and reconstruct of images at their own size."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.models import random_images
from helpers.refusals import message_of
from PIL import Image

from tfdecouple import randomness
from tfdecouple.cli import main
from tfdecouple.config import DataConfig
from tfdecouple.data import open_source
from tfdecouple.errors import DataError
from tfdecouple.metrics.drawn_images import draw_uncropped_images
from tfdecouple.runs.opened_run import load_model

pytestmark = pytest.mark.usefixtures("eager_file")

# Sizes by name; the first picture lies on its side, as its EXIF data say.
TEST = {"cat/lying.png": (13, 20), "dog/upright.png": (9, 30), "model.png": (8, 8)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with three test images of several sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    names = [f"{split}/{number}.png" for split in ("train", "validation") for number in range(2)]
    for name, size in {**dict.fromkeys(names, (8, 8)), **{f"test/{name}": size for name, size in TEST.items()}}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(random_images(1, (*size, 3), seed=len(name))[0])
        exif = Image.Exif()
        if "lying" in name:
            image, exif[0x0112] = image.transpose(Image.Transpose.ROTATE_90), 6
        image.save(folder / name, exif=exif)
    return folder


def read(folder, name):
    return random_images(1, (*TEST[name], 3), seed=len(f"test/{name}"))[0]


def test_reconstruct_counts_the_subpixels_of_every_image(tiny_run, folder, tmp_path, capsys):
    command = ["reconstruct", "--run", str(tiny_run), "--data", f"folder:{folder}", "--out", str(tmp_path)]
    assert main([*command, "--own-size"]) == 0
    assert capsys.readouterr().out.count(", 0 of ") == 3
    for name, (height, width) in TEST.items():
        # The names of a folder with splits begin with that of the split.
        file = tmp_path / f"reconstruct-test-{name.replace('/', '-')}"
        facts = json.loads(file.with_suffix(".json").read_text())
        assert facts["image"] == f"test/{name}" and facts["lost_subpixels"] == 0
        assert (facts["height"], facts["width"]) == (height, width)
        pixels = np.asarray(Image.open(file))
        factor = max(1, 800 // (2 * (width + 2)))
        shown = pixels[2 : 2 + height * factor : factor, 2 : 2 + width * factor : factor]
        np.testing.assert_array_equal(shown, read(folder, name))


def test_evaluate_measures_bits_per_dim_of_every_image(tiny_run, folder, tmp_path, capsys):
    command = ["evaluate", "--run", str(tiny_run), "--data", f"folder:{folder}", "--out", str(tmp_path)]
    assert main([*command, "--own-size", "--samples", "2", "--seed", "3"]) == 0
    values = json.loads((tmp_path / "own_size-test.json").read_text())
    assert f"{values['bits_per_dim']:.4f}" in capsys.readouterr().out and values["samples"] == 2
    model = load_model(tiny_run)
    for index, row in enumerate(values["images"]):
        name = row["image"].removeprefix("test/")
        assert TEST[name] == (row["height"], row["width"])
        seeds = [randomness.derive_seed(3, "own size", index, draw) for draw in range(2)]
        bits = [float(model.elbo(read(folder, name)[None], seed).bits_per_dim[0]) for seed in seeds]
        assert row["bits_per_dim"] == pytest.approx(np.mean(bits), rel=1e-6)
    assert values["bits_per_dim"] == pytest.approx(np.mean([row["bits_per_dim"] for row in values["images"]]))


def test_a_sample_photograph_has_the_band_of_the_split():
    source = open_source(DataConfig(source="photographs", photographs=("chelsea", "coffee")), (32, 32, 3))
    images = draw_uncropped_images(source, "test", 0, seed=0)
    assert set(images) == {"chelsea", "coffee"} and len(draw_uncropped_images(source, "test", 1, seed=0)) == 1
    # Of 451 x 300 and 600 x 400 pixels; a fifth of what two margins of 16 pixels leave.
    assert images["chelsea"]().shape == (300, 83, 3) and images["coffee"]().shape == (400, 113, 3)


def test_own_size_refuses_data_sets_without_files():
    source = SimpleNamespace(name="cifar10", title="TFDS cifar10/3.0.2", image_shape=(32, 32, 3))
    message = message_of(DataError, lambda: draw_uncropped_images(source, "test", 0, 0))
    assert message.startswith("TFDS cifar10/3.0.2 has no images of their own size")
