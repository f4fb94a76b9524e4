"""Models of the paper's authors in tests/data, and what their code computed of each in float64."""

from __future__ import annotations

import copy
import json

import numpy as np

from helpers.places import DATA
from helpers.refusals import message_of
from tfdecouple.errors import WolfError
from tfdecouple.interop.wolf import import_wolf, translate_config

# Of an array's largest value: what is promised is 1e-4, and float32 keeps to this.
NEAR = 1e-5
INPUTS = {
    "images",
    "labels",
    "n_bits",
    "dequantization_normal_noise",
    "posterior_noise",
    "prior_noise",
    "v_input",
    "z_input",
}


class Reference:
    """A model in tests/data.

    Attributes:
        folder: that has config.json, model.npz and reference.npz.
        config: of the authors' code.
        arrays: float64, what their code was given and what it computed, by name.
        given: the same in float32, without the pixels and how many bits they have.
        results: the names of what it computed, sorted.
        images: uint8 `[batch, 32, 32, 3]`.
    """

    def __init__(self, name):
        self.folder = DATA / name
        self.config = json.loads((self.folder / "config.json").read_text())
        self.arrays = dict(np.load(self.folder / "reference.npz"))
        self.images = self.arrays["images"]
        self.given = {
            name: array.astype("float32") for name, array in self.arrays.items() if name not in ("images", "n_bits")
        }
        # Uniform noise is drawn, that of a learned dequantisation is computed.
        drawn = set() if "dequantization_normal_noise" in self.arrays else {"dequantization_noise"}
        self.results = sorted(set(self.arrays) - INPUTS - drawn)

    def imported(self, workdir):
        """The model, imported into a run folder."""
        return import_wolf(
            self.folder / "config.json", self.folder / "model.npz", image_shape=(32, 32, 3), workdir=workdir
        )

    def assert_computed(self, computed, name):
        """Asserts that an array of `computed` is the reference's, by its largest value."""
        ours, theirs = np.asarray(computed[name], "float64"), self.arrays[name]
        assert ours.shape == theirs.shape and np.abs(theirs).max() > 0.01
        assert np.abs(ours - theirs).max() < NEAR * np.abs(theirs).max()

    def edited(self, changes):
        """The config with values changed, `{dotted name: value}`; a value of ... removes one."""
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
    """Asserts that a config is refused in a line that has the words."""
    message = message_of(WolfError, lambda: translate_config(config, image_shape=(32, 32, 3)))
    assert [word for word in words if word not in message] == []
