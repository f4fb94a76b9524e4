import dataclasses
import json
import math

import numpy as np
import pytest
from helpers.refusals import refusal

from tfdecouple.config import Config, DataConfig, ModelConfig, TrainingConfig, parse_config, preset_config, preset_names

# Options of every type, off their defaults.
FLOW = {"steps": (1, (1, 2), 3), "hidden_channels": (4, 5, 6), "alpha": 0.5, "step_layers": ("actnorm",)}
CODES = {"latent_dim": 6, "prior": "normal", "classes": 3, "class_probabilities": (0.5, 0.25, 0.25)}
MODEL = ModelConfig(image_shape=(16, 8, 3), encoder_channels=(4, 8), **FLOW, **CODES)
DATA = DataConfig(source="folder:/my/images", data_dir="/data", horizontal_flip=True, photographs=("coffee", "rocket"))
TRAINING = TrainingConfig(batch_size=12, micro_batches=3, learning_rate=0.5, seed=9, init_from="runs/other")
EVERYTHING = Config(name="mine", description="a line", notes="more", model=MODEL, data=DATA, training=TRAINING)


class TestRoundTrip:
    def test_json_of_a_config_keeps_every_option_and_its_type(self, tmp_path):
        path = tmp_path / "config.json"
        path.write_text(EVERYTHING.to_json(), encoding="utf-8")
        again = Config.from_json(path)
        assert again == EVERYTHING and repr(again) == repr(EVERYTHING)
        assert json.loads(json.dumps(EVERYTHING.to_dict())) == EVERYTHING.to_dict()

    def test_numbers_of_numpy_in_a_config_become_numbers_of_python(self):
        given = {"latent_dim": np.int64(6), "alpha": np.float32(0.5), "steps": [np.int32(1), [1, np.int64(2)], 3]}
        model = dataclasses.replace(MODEL, **given)
        training = dataclasses.replace(TRAINING, learning_rate=np.float64(0.5), micro_batches=np.int64(3))
        again = dataclasses.replace(EVERYTHING, model=model, training=training)
        assert again == EVERYTHING and again.to_json() == EVERYTHING.to_json() and repr(again) == repr(EVERYTHING)


class TestOverride:
    @pytest.mark.parametrize(
        ("assignment", "section", "option", "value"),
        [
            ("model.steps=[1,[2,2],2]", "model", "steps", (1, (2, 2), 2)),
            ("model.prior=flow", "model", "prior", "flow"),
            ("data.data_dir=null", "data", "data_dir", None),
            ("data.source=folder:/a=b", "data", "source", "folder:/a=b"),
            (" training.seed = 3 ", "training", "seed", 3),
        ],
    )
    def test_override_changes_one_option_only(self, assignment, section, option, value):
        changed = dataclasses.replace(getattr(EVERYTHING, section), **{option: value})
        assert changed != getattr(EVERYTHING, section)
        assert EVERYTHING.override([assignment]) == dataclasses.replace(EVERYTHING, **{section: changed})

    @pytest.mark.parametrize(
        ("assignment", "expected"),
        [
            ("model.latent_dim", "NAME=VALUE"),
            ("model.latentdim=3", "model.latent_dim"),
            ("model=3", "no option 'model'"),
            (f"training.steps={10**26}", "at most 9.2e+18"),
        ],
    )
    def test_override_refuses_a_wrong_assignment(self, assignment, expected):
        assert expected in refusal(lambda: Config().override([assignment]))


@pytest.mark.parametrize("name", preset_names())
def test_preset_loads_has_a_description_and_survives_json(name):
    config = preset_config(name)
    assert config.name == name and config.description and "\n" not in config.description
    assert parse_config(Config, json.loads(config.to_json())) == config


LEARNED = {"dequantization": "flow"}
IMPOSSIBLE = [
    # name, value, part of the message, other options
    ("model.image_shape", (12, 12, 3), "multiples of 8", {"steps": (1, 1), "hidden_channels": (4, 4)}),
    ("model.image_shape", (28, 28, 1), "with a squeeze before the first), so both must be multiples of 16", {}),
    ("model.image_shape", (32, 32), "must be [height, width, channels], each at least 1", {}),
    ("model.image_shape", 32, "must be a list", {}),
    ("model.n_bits", 9, "at most 8", {}),
    ("model.conditioning", "all", "'coupling', 'base' or 'none'", {}),
    ("model.transform", "cubic", "'affine', 'additive'", {}),
    ("model.step_layers", ("actnorm",) * 2, "only once", {}),
    ("model.prior", "classes", "model.classes is 0", {}),
    ("model.classes", 2, "labels enter by z", {"conditioning": "none"}),
    ("model.class_probabilities", (0.5,), "1 entries and model.classes is 2", {"classes": 2}),
    ("model.colour_map", True, "model.latent_dim is 8", {"latent_dim": 8}),
    ("model.colour_map", True, "'base'", {"conditioning": "base"}),
    ("model.colour_map", True, "'classes'", {"prior": "classes", "classes": 3}),
    ("model.alpha", 0.0, "above 0", {}),
    ("model.alpha", math.nan, "at most 1", {}),
    ("model.steps", (4,), "at least 2", {"hidden_channels": (4,)}),
    ("model.steps", (2, (6, 6), 4), "hidden_channels has 4 entries", {}),
    ("model.steps", ((1,), (6, 6), (6, 6), 4), "first and last", {}),
    ("model.steps", (1, 6, (6, 6), 4), "needs a list of 1 to 3", {}),
    ("model.hidden_channels", (4, 4, 4), "one entry per level", {}),
    ("model.factors", (4, 4, 4), "factors has 3 entries", {}),
    ("model.factors", (5,), "must divide", {}),
    ("model.factors", (0,), "model.factors[0] is 0; it must be at least 2", {}),
    ("model.encoder_channels", (), "empty", {}),
    ("model.dequantization_steps", (1, 2, 3), "needs a list", LEARNED | {"dequantization_hidden_channels": (4, 4, 4)}),
    ("model.dequantization_encoder_channels", (), "empty", LEARNED),
    ("data.source", "", "empty", {}),
    ("data.photographs", (), "leave it out", {}),
    ("training.noise", 8.0, "set the update at which the noise ends", {}),
    ("training.patterns", 1.0, "is 1; it must be below 1", {}),
    ("training.micro_batches", 3, "must be a multiple", {"batch_size": 64}),
]
SECTIONS = {"model": ModelConfig, "data": DataConfig, "training": TrainingConfig}


class TestConfig:
    def test_unreadable_config_file_is_refused_by_name(self, tmp_path):
        path = tmp_path / "config.json"
        assert f"{path}: No such file" in refusal(lambda: Config.from_json(path))
        for content in (b"{", b"", b"{'a': 1}", b"\xff\xfe\x00"):
            path.write_bytes(content)
            assert f"{path} cannot be read" in refusal(lambda: Config.from_json(path))

    @pytest.mark.parametrize(
        ("channels", "shapes"),
        [
            (1, [(16, 24, 4), (8, 12, 16), (4, 6, 32), (2, 3, 64)]),
            (4, [(32, 48, 4), (16, 24, 16), (8, 12, 32), (4, 6, 64)]),
        ],
    )
    def test_grey_images_are_squeezed_before_the_first_level(self, channels, shapes):
        levels = preset_config("quickstart").override([f"model.image_shape=[32,48,{channels}]"]).model.levels
        assert [(level[0].height, level[0].width, level[0].channels) for level in levels] == shapes

    @pytest.mark.parametrize(
        ("values", "name", "nearest"),
        [
            ({"modle": {}}, "modle", "model"),
            ({"model": {"latent_dims": 3}}, "model.latent_dims", "model.latent_dim"),
            ({"data": {"flip_horizontal": True}}, "data.flip_horizontal", "data.horizontal_flip"),
            # An option of another section.
            ({"batch_size": 3}, "batch_size", "training.batch_size"),
            ({"zzzzzz": 1}, "zzzzzz", "tfdecouple explain"),
        ],
    )
    def test_unknown_option_is_refused_with_the_nearest_name(self, values, name, nearest):
        message = refusal(lambda: parse_config(Config, values))
        assert f"'{name}'" in message and nearest in message

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("model.latent_dim", "64", "a whole number"),
            ("model.latent_dim", 1.5, "a whole number"),
            ("model.latent_dim", True, "a whole number"),
            ("model.steps", 3, "a list"),
            ("model.steps", [1, "2", 1], "a whole number or a list"),
            ("model.conditioning", 1, "'coupling'"),
            ("data.horizontal_flip", 1, "true or false"),
            ("data.data_dir", 3, "text or null"),
            ("model", [], "a JSON object"),
        ],
    )
    def test_option_of_a_wrong_type_is_refused_with_name_value_and_type(self, name, value, expected):
        section, _, option = name.partition(".")
        message = refusal(lambda: parse_config(Config, {section: {option: value} if option else value}))
        assert message.startswith(name) and expected in message
        if not isinstance(value, list):
            assert repr(value) in message

    @pytest.mark.parametrize(("name", "value", "expected", "others"), IMPOSSIBLE)
    def test_impossible_value_of_an_option_is_refused_in_one_line(self, name, value, expected, others):
        section, _, option = name.partition(".")
        message = refusal(lambda: SECTIONS[section](**{option: value, **others}))
        assert expected in message and f"{section}." in message

    def test_contrast_of_a_model_without_encoder_is_refused(self):
        without = {"conditioning": "none"}, {"prior": "classes", "classes": 3}
        for options in without:
            parts = {"model": ModelConfig(**options), "training": TrainingConfig(contrast=1.5)}
            assert "training.contrast is 1.5" in refusal(lambda parts=parts: Config(**parts))
