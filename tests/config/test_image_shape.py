"""`model.image_shape` beside `model.image_size`: one says the other, and what was written before stays as it is."""

import dataclasses
import json

import pytest

from tfdecouple.config import Config, ModelConfig, load_preset, override, preset_names
from tfdecouple.config.presets import title
from tfdecouple.errors import ConfigError

QUICKSTART = load_preset("quickstart")


@pytest.mark.parametrize(
    ("given", "size", "shape"),
    [
        ({}, 32, (32, 32, 3)),
        ({"image_size": 64}, 64, (64, 64, 3)),
        ({"image_shape": [64, 64, 3]}, 64, (64, 64, 3)),
        ({"image_size": 64, "image_shape": (64, 64, 3)}, 64, (64, 64, 3)),
        ({"image_shape": (32, 32, 1)}, None, (32, 32, 1)),
        ({"image_shape": (48, 64, 3)}, None, (48, 64, 3)),
    ],
)
def test_each_says_the_other(given, size, shape):
    config = ModelConfig(**given)
    assert (config.image_size, config.image_shape) == (size, shape)
    # A square of RGB is one however it was said; another size may be put in its place.
    assert ModelConfig(**config.to_dict()) == config == ModelConfig(**dataclasses.asdict(config))
    assert dataclasses.replace(config, latent_dim=3).image_shape == shape
    if size is not None:
        assert dataclasses.replace(config, image_size=96).image_shape == (96, 96, 3)


def test_configs_of_squares_are_written_as_ever():
    for name in preset_names():
        model = load_preset(name).to_dict()["model"]
        assert model["image_size"] and "image_shape" not in model and next(iter(model)) == "image_size"
    grey = override(QUICKSTART, ["model.image_shape=[32,48,1]"])
    written = json.loads(grey.to_json())["model"]
    assert written["image_shape"] == [32, 48, 1] and "image_size" not in written
    assert Config.from_dict(json.loads(grey.to_json())) == grey
    assert title(grey) == "quickstart with model.image_shape=[32, 48, 1]"
    assert grey.options()["model.image_size"] is None


def test_the_last_that_is_set_counts():
    grey = override(QUICKSTART, ["model.image_shape=[32,48,1]"])
    assert override(grey, ["model.image_size=64"]).model.image_shape == (64, 64, 3)
    assert override(grey, ["model.latent_dim=8"]).model.image_shape == (32, 48, 1)


@pytest.mark.parametrize(
    ("assigned", "said"),
    [
        (
            ["model.image_shape=[28,28,1]"],
            "is [28, 28, 1]; 4 levels halve height and width 4 times (model.steps, with a",
        ),
        (
            ["model.image_shape=[28,28,1]"],
            "squeeze before the first), so both must be multiples of 16, such as [32, 32",
        ),
        (
            ["model.image_shape=[48,60,3]"],
            "halve height and width 3 times (model.steps), so both must be multiples of 8",
        ),
        (["model.image_size=30"], "is 30; 4 levels halve it 3 times (model.steps), so it must be a multiple of 8"),
        (["model.image_shape=[32,32]"], "is [32, 32]; it must be [height, width, channels], each at least 1"),
        (["model.image_shape=[32,32,0]"], "each at least 1"),
        (["model.image_shape=32"], "must be a list"),
        (
            ["model.image_size=32", "model.image_shape=[32,32,1]"],
            "model.image_size is 32, which means images of [32, 32, 3], and model.image_shape is [32, 32, 1]; give one",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_line(assigned, said):
    with pytest.raises(ConfigError) as refused:
        override(QUICKSTART, assigned)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_levels_of_few_channels_begin_with_a_squeeze():
    grey, colour = (override(QUICKSTART, [f"model.image_shape=[32,48,{channels}]"]).model for channels in (1, 4))
    assert [(level[0].height, level[0].width, level[0].channels) for level in grey.levels] == [
        (16, 24, 4), (8, 12, 16), (4, 6, 32), (2, 3, 64)
    ]  # fmt: skip
    assert [(level[0].height, level[0].width, level[0].channels) for level in colour.levels] == [
        (32, 48, 4), (16, 24, 16), (8, 12, 32), (4, 6, 64)
    ]  # fmt: skip
