import json
import sys

import numpy as np
import pytest
from helpers.commands import command, refuse
from helpers.exporting import run_python_blocks
from helpers.models import SMALL, random_images
from helpers.numbered import write_images
from helpers.places import copy_once, read_output
from helpers.runs import run_config, write_run
from helpers.variants import fresh
from PIL import Image

from export.pipeline import export
from tfdecouple.config import ModelConfig
from tfdecouple.errors import UserError
from tfdecouple.training import train

SHAPE = (8, 12, 1)
GREY = ModelConfig(**{**SMALL.to_dict(), "image_shape": SHAPE})


def smooth(count, height, width):
    """Grey images in which neighbours are alike, uint8 `[count, height, width]`."""
    number, y, x = np.mgrid[:count, :height, :width]
    noise = np.random.default_rng(0).uniform(0, 9, number.shape)
    return (127 + 90 * np.sin(x / 3 + y / 2 + number) + noise).astype(np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return copy_once(tmp_path_factory, "grey", lambda folder: write_run(folder / "run", fresh(GREY))) / "run"


@pytest.mark.slow
def test_training_on_grey_files_with_labels_lowers_bits_per_dim(tmp_path):
    for label, name in enumerate("ab"):
        write_images(tmp_path / "images" / name, smooth(40, 16, 24)[label::2])
    config = run_config(tmp_path / "images", model=GREY, steps=10, evaluate_every=10, learning_rate=0.03)
    summary = train(config, tmp_path / "run").summary
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    bits = [row["bits_per_dim"] for row in rows if row["kind"] == "train"]
    assert bits[-1] < bits[0] - 0.2 and np.isfinite(summary["test"]["bits_per_dim"])
    # A file of a grey image has one value a pixel, not three.
    assert summary["lossless_codecs_bits_per_dim"]["png"] > 5
    with Image.open(tmp_path / "run" / "images" / "step-000000010-switch.png") as picture:
        assert picture.mode == "RGB"


def test_commands_switch_and_encode_images_of_a_grey_model(run, eager, tmp_path, capsys):
    for number in range(2):
        Image.fromarray(random_images(1, (20, 20, 3), number)[0]).save(tmp_path / f"{number}.png")
    files = [tmp_path / f"{number}.png" for number in range(2)]
    command("switch", "--run", run, "--out", tmp_path, *files)
    with Image.open(tmp_path / "switch-pairs.png") as picture:
        pixels = np.asarray(picture)[:60].astype(int)
    assert np.ptp(pixels, -1).max() == 0 and np.ptp(pixels) > 50
    capsys.readouterr()
    line = refuse(capsys, "evaluate", "--run", run, "--image-statistics")
    assert "grey images of 8 x 12 pixels; leave it out" in line
    for split in ("train", "validation", "test"):
        write_images(tmp_path / "images" / split, smooth(1, 16, 24))
    images = ("--data", f"folder:{tmp_path / 'images'}", "--split", "test")
    command("encode", "--run", run, *images, "--v", "--out", tmp_path / "codes")
    manifest = json.loads((tmp_path / "codes" / "_manifest.json").read_text())
    assert manifest["data"]["image_shape"] == [8, 12, 1]
    assert [field["shape"] for field in manifest["fields"] if field["name"] == "v"] == [[8, 12, 1]]


@pytest.mark.slow
def test_export_of_a_grey_model_is_verified_in_every_format(run, tmp_path, forked):
    to, formats = tmp_path / "to", ("savedmodel", "onnx", "litert")
    with pytest.raises(UserError, match="the web page needs square RGB images"):
        export(run=run, to=to, formats=("web",))
    export(run=run, to=to, formats=formats)
    card = json.loads((to / "model_card.json").read_text())
    assert {*card["formats"]} == {*formats} and "photographs" in card["checked"]["real_images"]
    assert {"sample", "switch", "interpolate", "edit", "score"} < {*card["formats"]["savedmodel"]["signatures"]}
    for entry in card["formats"].values():
        assert {"encode", "decode", "sample"} <= {*entry["parity"]}
        assert all(trip["identical"] == trip["images"] for trip in entry["round_trip"].values())
    run_python_blocks(to, 2)
    text = (to / "MODEL_CARD.md").read_text()
    assert "| architecture | 8 x 12 grey, 8 bits" in text and "grey without transparency, cropped" in text
    for name in ("a.png", "b.png"):
        Image.fromarray(random_images(1, (30, 20, 3))[0]).save(tmp_path / name)
    for arguments in (["--check"], ["a.png", "b.png"]):
        read_output(sys.executable, "-I", to / "client.py", *arguments, folder=tmp_path)
    with Image.open(tmp_path / "ab.png") as picture:
        assert (picture.mode, picture.size) == ("L", (12, 8))
