"""Checkpoints of wolf, the paper authors' PyTorch code, in tests/data, with float64 results that wolf computed."""

from __future__ import annotations

import copy
import json

import numpy as np

from helpers.places import DATA
from helpers.refusals import message_of
from tfdecouple.errors import WolfError
from tfdecouple.interop.wolf import import_wolf, translate_config

# Largest allowed difference from a result of wolf, the authors' code, divided by the result's largest value.
NEAR = 1e-5
# Names of the arrays in reference.npz that were inputs of wolf, the authors' code; the other arrays are its results.
INPUTS = {"images", "labels", "n_bits", "dequantization_normal_noise", "posterior_noise", "prior_noise"}
INPUTS |= {"v_input", "z_input"}


class Reference:
    """A checkpoint of wolf, the paper authors' PyTorch code, with wolf's float64 results, from a folder in tests/data.

    Attributes:
        folder: path of the folder, which has config.json, model.npz (weights) and reference.npz (inputs and results).
        config: wolf's config of the model, a dict.
        arrays: {name: array} of wolf's inputs and results; results are float64.
        given: {name: float32 array} of the same arrays, without `images` and `n_bits`.
        results: sorted names of the results in `arrays`.
        images: the images that wolf encoded, uint8 `[batch, 32, 32, 3]`.
    """

    def __init__(self, name):
        self.folder = DATA / name
        self.config = json.loads((self.folder / "config.json").read_text())
        self.arrays = dict(np.load(self.folder / "reference.npz"))
        self.images = self.arrays["images"]
        self.given = {
            name: array.astype("float32") for name, array in self.arrays.items() if name not in ("images", "n_bits")
        }
        # wolf computed the noise of a learned dequantisation, but took uniform dequantisation noise as an input.
        drawn = set() if "dequantization_normal_noise" in self.arrays else {"dequantization_noise"}
        self.results = sorted(set(self.arrays) - INPUTS - drawn)

    def imported(self, workdir):
        """Imports this checkpoint of the authors' code into a new run folder `workdir`; returns a `DecoupledModel`."""
        return import_wolf(
            self.folder / "config.json", self.folder / "model.npz", image_shape=(32, 32, 3), workdir=workdir
        )

    def assert_computed(self, computed, name):
        """Asserts that `computed[name]` differs from the authors' result by less than 1e-5 of its largest value."""
        ours, theirs = np.asarray(computed[name], "float64"), self.arrays[name]
        assert ours.shape == theirs.shape and np.abs(theirs).max() > 0.01
        assert np.abs(ours - theirs).max() < NEAR * np.abs(theirs).max()

    def edited(self, changes):
        """Returns a copy of a config of wolf with {dotted name: value} changed; the value `...` removes an entry."""
        config = copy.deepcopy(self.config)
        for name, value in changes.items():
            *path, last = name.split(".")
            section = config
            for key in path:
                section = section[key]
            if value is ...:
                del section[last]
            else:
                section[last] = value
        return config


def assert_refused(config, words):
    """Asserts that importing `config`, of the authors' code, raises WolfError with a line that contains all `words`."""
    message = message_of(WolfError, lambda: translate_config(config, image_shape=(32, 32, 3)))
    assert [word for word in words if word not in message] == []
