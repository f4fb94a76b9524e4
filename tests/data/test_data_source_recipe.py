"""The recipes of docs/extending.md for data sources, carried out literally in a copy of the package."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.places import PATIENCE
from helpers.recipes import append_rows, copy_packages, insert_text, read_recipe, run_in_copy

TINY = """
{"description": "tiny",
 "model": {"image_shape": [8, 8, 3], "latent_dim": 4, "steps": [1, 1], "hidden_channels": [4, 6],
           "encoder_channels": [4], "prior_steps": 1, "prior_hidden": 6},
 "data": {"source": "stripes"},
 "training": {"batch_size": 8, "init_images": 8, "evaluation_batch_size": 8, "pictures": 0}}
"""
USE = """
import doctest, os
import numpy as np
from tfdecouple.config import DataConfig
from tfdecouple.data import load_images, open_source, sources, make_training_batches
source = open_source(DataConfig(source="stripes"), (8, 8, 3))
batch = next(iter(make_training_batches(source, DataConfig(), batch_size=4, seed=0)))["image"].numpy()
assert batch.shape == (4, 8, 8, 3) and (batch == batch[:, :, :1, :1]).all() and batch.std() > 0
ours, theirs = (load_images(source, split, 64)[0] for split in ("train", "test"))
assert (ours != theirs).any()
assert doctest.testmod(sources, optionflags=doctest.ELLIPSIS).failed == 0
print(sources.list_source_kinds())
try:
    open_source(DataConfig(source="strips"), (8, 8, 3))
except Exception as error:
    print(error)
images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
np.save("images.npy", images)
kept = sources.resolve_image_paths(DataConfig(source="array:images.npy"))
os.chdir("/")
assert (load_images(open_source(kept, (8, 8, 3)), "train", 10)[0] == images[::2]).all()
print(kept.source, *sources.locate_images(kept))
"""


@pytest.fixture(scope="module")
def with_source(tmp_path_factory):
    """A copy of the packages with the data source of the recipe."""
    folder = copy_packages(tmp_path_factory.mktemp("source"))
    file = folder / "tfdecouple" / "data" / "sources.py"
    for name in ("data source", "data source with a path"):
        kind, _, line = read_recipe(name).partition("# in `KINDS`\n")
        insert_text(file, "KINDS: tuple", f"{kind}\n")
        append_rows(file, "KINDS", line)
    (folder / "tfdecouple" / "presets" / "tiny.json").write_text(TINY, encoding="utf-8")
    return folder


def test_data_sources_of_the_recipes_are_opened_from_any_folder_and_listed(with_source):
    used = run_in_copy(with_source, "-c", USE)
    assert used.returncode == 0, used.stderr
    listed, refused, found = used.stdout.splitlines()
    assert listed.endswith("or array:PATH") and "stripes" in listed
    assert all(part in refused for part in ("did you mean stripes?", "photographs, cifar10", ", stripes", "array:PATH"))
    path = with_source / "images.npy"
    assert found.split() == [f"array:{path}", "data.source", str(path)]


@pytest.mark.slow
def test_run_with_the_recipe_resumes_from_another_folder_and_is_evaluated(with_source, tmp_path):
    np.save(with_source / "some.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8))
    run = ["train.py", "--preset", "tiny", "--workdir", str(tmp_path / "run"), "--data"]
    first = run_in_copy(with_source, *run, "array:some.npy", "--steps", "2")
    assert first.returncode == 0, first.stderr
    run[0] = str(with_source / "train.py")
    elsewhere = {**os.environ, "PYTHONPATH": str(with_source)}
    command = [sys.executable, *run, f"array:{with_source / 'some.npy'}", "--steps", "4"]
    again = subprocess.run(command, cwd=tmp_path, env=elsewhere, capture_output=True, text=True, timeout=PATIENCE)
    assert again.returncode == 0, again.stderr
    evaluate = ["evaluate", "--run", str(tmp_path / "run"), "--data", "stripes", "--split", "validation"]
    measured = run_in_copy(with_source, "-m", "tfdecouple", *evaluate)
    assert measured.returncode == 0, measured.stderr
    (result,) = (tmp_path / "run").rglob("bits_per_dim-validation*.json")
    assert json.loads(result.read_text(encoding="utf-8"))["source"] == "stripes"
