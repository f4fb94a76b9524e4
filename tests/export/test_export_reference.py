"""Files of exports give the float64 numbers of the models of the paper's authors.

Beside the models in tests/data, the folders `wolf_small`, `wolf_base`, `wolf_small_var` and `wolf_small_cat` of the
folder that the environment variable TFDECOUPLE_REFERENCE_DIR names are tried, each with config.json, model.npz and
reference.npz.
"""

import os
import pathlib

import numpy as np
import onnxruntime
import pytest
from helpers.exporting import find_endpoint
from helpers.models import random_images
from helpers.places import DATA

from export.exported_model import ExportedModel
from export.formats.onnx import build_onnx
from tfdecouple.interop.wolf import import_wolf

FOLDERS = {name: DATA / name for name in ("wolf_small", "wolf_small_var", "wolf_small_cat")}
if os.environ.get("TFDECOUPLE_REFERENCE_DIR"):
    HELD_OUT = pathlib.Path(os.environ["TFDECOUPLE_REFERENCE_DIR"])
    FOLDERS |= {f"held out {name}": HELD_OUT / name for name in (*FOLDERS, "wolf_base")}
# Largest difference over the largest value; 1e-4 is promised, and at most 1.0e-6 was measured.
MEASURED = 1e-5


# Quick tests compare these models with the reference (tests/interop), and exports with their models (test_folding.py),
# among them the variance of z and bits/dim, which no file has.
@pytest.mark.slow
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", FOLDERS)
def test_exported_files_give_the_numbers_of_the_reference(name, tmp_path):
    source = FOLDERS[name]
    arrays = dict(np.load(source / "reference.npz"))
    options = {"image_shape": arrays["images"].shape[1:], "n_bits": int(arrays["n_bits"])}
    model = import_wolf(source / "config.json", source / "model.npz", workdir=tmp_path / "run", **options)
    config, exported = model.config, ExportedModel(model, channels_first=True)

    def call(name, **inputs):
        endpoint = find_endpoint(config, name)
        session = onnxruntime.InferenceSession(build_onnx(exported, endpoint, {}).SerializeToString())
        inputs = {array.name: inputs[array.name].astype(array.dtype) for array in endpoint.inputs}
        names = [array.name for array in endpoint.outputs]
        return dict(zip(names, session.run(names, inputs), strict=True))

    def assert_same(ours, name):
        ours, theirs = np.asarray(ours, "float64"), arrays[name]
        assert ours.shape == theirs.shape and np.abs(theirs).max() > 0.01
        assert np.abs(ours - theirs).max() < MEASURED * np.abs(theirs).max(), name

    codes = call("encode", images=arrays["images"], labels=arrays.get("labels"))
    assert_same(codes["v"], "v_bin_centre")
    if config.has_latent:
        assert_same(codes["z"], "z" if config.has_label_codes else "posterior_mean")

    # x of the reference carries an epsilon, so that a value on the border of two levels may differ.
    decoded = call("decode", v=arrays["v_input"], z=arrays.get("z_input", arrays.get("prior_sample")))["images"]
    x = (arrays["decoded"] + 1) * config.n_bins / 2
    expected = np.clip(np.floor(x), 0, config.n_bins - 1)
    clear = np.abs(x - np.round(x)) > 1e-2
    assert np.mean(clear) > 0.95 and len(np.unique(expected)) > 50
    np.testing.assert_array_equal(decoded[clear], expected[clear])
    assert np.abs(decoded.astype(int) - expected).max() <= 1

    images = np.concatenate([arrays["images"], random_images(6, config.image_shape)])
    labels = np.arange(len(images)) % max(config.classes, 1)
    codes = call("encode", images=images, labels=labels)
    np.testing.assert_array_equal(call("decode", **codes)["images"], images)
