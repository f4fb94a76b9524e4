"""Exports of the models of the paper's authors: files and folded graph give the reference's float64 numbers.

Beside the models in tests/data, the folders `wolf_small`, `wolf_base`, `wolf_small_var` and `wolf_small_cat` of the
folder that the environment variable TFDECOUPLE_REFERENCE_DIR names are tried, each with config.json, model.npz and
reference.npz.
"""

import functools
import math
import os
import pathlib

import numpy as np
import onnxruntime
import pytest
from helpers.exporting import find_endpoint
from helpers.graphs import call_endpoint
from helpers.models import random_images
from helpers.places import DATA

from export.exported_model import ExportedModel
from export.formats.onnx import build_onnx
from tfdecouple.interop.wolf import import_wolf

FOLDERS = {name: DATA / name for name in ("wolf_small", "wolf_small_var", "wolf_small_cat")}
if os.environ.get("TFDECOUPLE_REFERENCE_DIR"):
    HELD_OUT = pathlib.Path(os.environ["TFDECOUPLE_REFERENCE_DIR"])
    KINDS = ("wolf_small", "wolf_base", "wolf_small_var", "wolf_small_cat")
    FOLDERS |= {f"held out {name}": HELD_OUT / name for name in KINDS}

# Largest difference over the largest value; 1e-4 is promised, and at most 1.0e-6 was measured.
MEASURED = 1e-5
# In NCHW a file of each endpoint that has one is converted; in NHWC the folded graph is tried.
CASES = [(name, layout) for name in FOLDERS for layout in ("NHWC", "NCHW")]

# Quick tests compare these models with the reference (tests/interop) and exports with their models (test_folding.py).
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("eager")]


class Reference:
    """A model of the reference, imported and folded in a layout, with what the reference computed."""

    def __init__(self, source, layout, workdir):
        self.arrays = dict(np.load(source / "reference.npz"))
        options = {"image_shape": self.arrays["images"].shape[1:], "n_bits": int(self.arrays["n_bits"])}
        model = import_wolf(source / "config.json", source / "model.npz", workdir=workdir, **options)
        # The z that belongs to `decoded`.
        self.z_input = self.arrays.get("z_input", self.arrays.get("prior_sample"))
        self.config, self.layout = model.config, layout
        self.exported = ExportedModel(model, channels_first=layout == "NCHW")

    @functools.cache  # noqa: B019 - as long as the module's fixture lives
    def session(self, of):
        built = build_onnx(self.exported, find_endpoint(self.config, of), {})
        return onnxruntime.InferenceSession(built.SerializeToString(), providers=["CPUExecutionProvider"])

    def call(self, of, **given):
        """Runs an endpoint: of the folded graph in NHWC, of an ONNX file in NCHW."""
        endpoint = find_endpoint(self.config, of)
        given = {"labels": self.arrays.get("labels"), **given}
        given = {array.name: given[array.name].astype(array.dtype) for array in endpoint.inputs}
        if self.layout == "NCHW":
            names = [array.name for array in endpoint.outputs]
            return dict(zip(names, self.session(of).run(names, given), strict=True))
        return call_endpoint(self.exported, endpoint, given)

    def same(self, ours, name):
        ours, theirs = np.asarray(ours, "float64"), self.arrays[name]
        assert ours.shape == theirs.shape and np.abs(theirs).max() > 0.01
        found = np.abs(ours - theirs).max() / np.abs(theirs).max()
        print(f"{name}: {found:.1e} of the largest value")
        assert found < MEASURED


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def reference(request, tmp_path_factory):
    folder, layout = request.param
    return Reference(FOLDERS[folder], layout, tmp_path_factory.mktemp("reference") / "run")


def test_exported_codes_are_the_references(reference):
    images, config = reference.arrays["images"], reference.config
    codes = reference.call("encode", images=images)
    reference.same(codes["v"], "v_bin_centre")
    if config.has_latent:
        reference.same(codes["z"], "z" if config.has_label_codes else "posterior_mean")
    # No file has the variance.
    if config.has_encoder and reference.layout == "NHWC":
        found = reference.call("encode_global", images=images)
        reference.same(found["z_mean"], "posterior_mean")
        reference.same(found["z_log_variance"], "posterior_log_variance")


def test_exported_decoder_gives_the_references_images(reference):
    """Pixels of the reference's x; it carries an epsilon, so that a value on the border of two levels may differ."""
    given = {"v": reference.arrays["v_input"]}
    if reference.config.has_latent:
        given["z"] = reference.z_input
    found = reference.call("decode", **given)["images"]
    n_bins = reference.config.n_bins
    x = (reference.arrays["decoded"] + 1) * n_bins / 2
    expected = np.clip(np.floor(x), 0, n_bins - 1)
    clear = np.abs(x - np.round(x)) > 1e-2
    assert np.mean(clear) > 0.95
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert len(np.unique(expected)) > 50


def test_exports_of_the_references_models_decode_images_exactly(reference):
    size = reference.config.image_shape
    images = np.concatenate([reference.arrays["images"], random_images(6, size)])
    labels = np.arange(len(images)) % max(reference.config.classes, 1)
    codes = reference.call("encode", images=images, labels=labels)
    np.testing.assert_array_equal(reference.call("decode", **codes)["images"], images)


@pytest.mark.parametrize("reference", [case for case in CASES if case[1] == "NHWC"], indirect=True, ids="-".join)
def test_exported_bits_per_dimension_are_the_references(reference):
    arrays = reference.arrays
    noise = "dequantization_normal_noise" if reference.config.has_dequantizer else "dequantization_noise"
    given = {"images": arrays["images"], "u_noise": arrays[noise]}
    if reference.config.has_encoder:
        given["z_noise"] = arrays["posterior_noise"]
    found = reference.call("score", **given)
    reference.same(found["bits_per_dim"], "bits_per_dim")
    # A tail of a few bits per dimension is easily hidden beside the constants: in nats of the whole image as well.
    nats = (found["bits_per_dim"] - arrays["bits_per_dim"]) * math.log(2) * math.prod(reference.config.image_shape)
    assert np.abs(nats).max() < MEASURED * np.abs(arrays["log_likelihood_x_given_z"]).max()
