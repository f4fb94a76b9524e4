"""A trained model of 32 x 32 pixels, docs/results/quickstart: its published figure, exactness, and steering."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers.places import ROOT
from PIL import Image
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from tfdecouple.cli import main
from tfdecouple.data import load_images, open_source
from tfdecouple.metrics.linear_classifier import KINDS
from tfdecouple.runs.opened_run import hash_weights, load_directions, load_model
from tfdecouple.runs.run_folder import load_config

RUN = ROOT / "docs" / "results" / "quickstart"


@pytest.fixture(scope="module")
def crops():
    """All its crops for test, uint8 `[1000, 32, 32, 3]`: made of the photographs that come with the package."""
    config = load_config(RUN)
    source = open_source(config.data, config.model.image_shape)
    return np.stack([example["image"] for example in source.examples("test").as_numpy_iterator()])


@pytest.fixture(scope="module")
def model():
    return load_model(RUN)


@pytest.fixture
def copied(tmp_path):
    """A copy of the run, in which looks at its test images may be counted."""
    return shutil.copytree(RUN, tmp_path / "run")


def test_bits_per_dim_are_the_published_ones(copied, tmp_path):
    assert main(["evaluate", "--run", str(copied), "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "bits_per_dim-test.json").read_text())
    summary = json.loads((RUN / "summary.json").read_text())
    assert round(summary["test"]["bits_per_dim"], 4) == 3.3052
    assert found["images"] == summary["test"]["images"] == 1000 and found["step"] == summary["best_step"] == 3000
    assert found["bits_per_dim"] == pytest.approx(summary["test"]["bits_per_dim"], rel=1e-5)
    assert found["standard_error"] == pytest.approx(summary["test"]["standard_error"], rel=1e-3)
    assert found["reconstruction"]["mean"] == pytest.approx(summary["test"]["reconstruction"], rel=1e-5)
    assert found["kl"]["mean"] == pytest.approx(summary["test"]["kl"], rel=1e-3)


# Of few sizes, since of each the model is traced: 50 divides 1000, and what 3 leaves of 100 is 1.
@pytest.mark.parametrize(
    ("size", "every"), [(50, 1), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((1, 16), (3, 8), (64, 4)))]
)
def test_crops_come_back(model, crops, size, every):
    """All of them; of those that take a thousand calls some, each time others."""
    assert crops.shape == (1000, 32, 32, 3) and np.ptp(crops) == 255
    crops = crops[size % every :: every]
    crops = crops[: len(crops) // size * size]
    for start in range(0, len(crops), size):
        batch = crops[start : start + size]
        codes = model.encode(batch)
        np.testing.assert_array_equal(model.decode(*codes), batch, err_msg=f"crops from {start} on, {size} at a time")
    # What is compared depends on the codes: those of other images give other pixels.
    assert np.any(model.decode(*model.encode(crops[:3])).numpy() != crops[3:6])


def test_its_pictures_are_drawn_again(tmp_path):
    """Those of docs/RESULTS.md, of the same images."""
    for command in ("switch", "interpolate"):
        assert main([command, "--run", str(RUN), "--seed", "1", "--out", str(tmp_path)]) == 0
    for name in ("switch-across", "interpolate"):
        ours, theirs = (json.loads((folder / f"{name}.json").read_text()) for folder in (tmp_path, RUN / "pictures"))
        assert ours["step"] == theirs["step"] == 3000 and ours["seed"] == theirs["seed"] == 1
        pictures = [np.int16(Image.open(folder / f"{name}.png")) for folder in (tmp_path, RUN / "pictures")]
        # Other versions of Pillow enlarge and write otherwise, by 0.7 levels on average; other images are 44 apart.
        assert pictures[0].shape == pictures[1].shape and np.abs(pictures[0] - pictures[1]).mean() < 3


@pytest.mark.slow
def test_codes_of_one_batch_decode_in_another(model, crops):
    z, v = (np.concatenate(parts) for parts in zip(*(model.encode(crops[i : i + 50]) for i in (0, 50)), strict=True))
    for size in (1, 3, 100):
        images = [model.decode(z[start : start + size], v[start : start + size]) for start in range(0, 100, size)]
        np.testing.assert_array_equal(np.concatenate(images), crops[:100])


@pytest.mark.slow
def test_outliers_that_everybody_knows_are_told(copied, tmp_path):
    """And where raw likelihood misleads: most images of one colour pass for photographs."""
    arguments = ["--run", copied, "--images", "200", "--batch-size", "50", "--out", tmp_path]
    assert main(["evaluate", *map(str, arguments), "--outliers", "noise", "constant", "permuted"]) == 0
    kinds = json.loads((tmp_path / "outliers-test.json").read_text())["outliers"]
    area = {kind: {name: each["auroc"] for name, each in found["detection"].items()} for kind, found in kinds.items()}
    for kind in ("noise", "permuted"):
        for name in ("bits_per_dim", "shell", "typicality"):
            assert area[kind][name] > 0.95, (kind, name, area[kind])
    misled = kinds["constant"]["detection"]["bits_per_dim"]
    assert misled["auroc"] < 0.48 and misled["false_positives"] > 0.7
    assert area["constant"]["typicality"] > 0.95 and area["constant"]["bits_per_dim_minus_codec"] > 0.95


@pytest.mark.slow
def test_directions_change_the_verdict_of_a_classifier_of_pixels(model, crops):
    """One that knows real crops of the training alone. And at 0 the images are what they were, to the last pixel."""
    directions = load_directions(RUN)
    config = load_config(RUN)
    assert directions.weights_sha256 == hash_weights(model)
    assert directions.names == list(config.data.photographs)
    source = open_source(dataclasses.replace(config.data, photograph_crops=1000), config.model.image_shape)
    known, labels = load_images(source, "train", 1000)
    pixels = known.reshape(len(known), -1).astype(np.float32)
    standardizer = StandardScaler().fit(pixels)
    classifier = KINDS["logistic regression"]()
    classifier.C = 1e-3
    with threadpool_limits(1):
        classifier.fit(standardizer.transform(pixels), labels)

    def scores(images):
        """What the classifier thinks of each label on average, and the share of images that it takes for each."""
        found = classifier.decision_function(
            standardizer.transform(np.reshape(images, (len(images), -1)).astype(np.float32))
        )
        return found.mean(0), np.bincount(found.argmax(1), minlength=len(directions.names)) / len(images)

    # Of each photograph as many.
    images = crops[:56]
    z, v = model.encode(images)
    np.testing.assert_array_equal(model.edit(images, directions["rocket"], 0), images)
    before = scores(images)
    for label, name in enumerate(directions.names):
        more = scores(model.decode(z + directions[name].vector, v))
        print(
            f"{name}: {before[0][label]:.2f}, {before[1][label]:.0%}; at 1 {more[0][label]:.2f}, {more[1][label]:.0%}"
        )
        assert more[0][label] > before[0][label] and more[1][label] > before[1][label], name
