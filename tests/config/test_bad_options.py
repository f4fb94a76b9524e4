"""Tests that unknown names, wrong types and impossible values of options are refused in one clear line."""

import math

import pytest
from helpers.refusals import refusal

from tfdecouple.config import Config, DataConfig, ModelConfig, TrainingConfig, parse_config


class TestUnknownNames:
    @pytest.mark.parametrize(
        ("values", "nearest"),
        [
            ({"modle": {}}, "model"),
            ({"model": {"latent_dims": 3}}, "model.latent_dim"),
            ({"data": {"flip_horizontal": True}}, "data.horizontal_flip"),
            # Misplaced: it is there, in another section.
            ({"batch_size": 3}, "training.batch_size"),
        ],
    )
    def test_unknown_option_is_refused_with_the_nearest_name(self, values, nearest):
        message = refusal(lambda: parse_config(Config, values))
        wrong = next(iter(values))
        inner = values[wrong]
        name = f"{wrong}.{next(iter(inner))}" if isinstance(inner, dict) and inner else wrong
        assert f"'{name}'" in message and f"{nearest}" in message

    def test_unknown_option_without_a_near_name_is_refused_with_advice(self):
        assert "tfdecouple explain" in refusal(lambda: parse_config(Config, {"zzzzzz": 1}))


class TestWrongTypes:
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

    @pytest.mark.parametrize("values", [[], "text", 3, None])
    def test_config_that_is_no_object_is_refused(self, values):
        assert "JSON object" in refusal(lambda: parse_config(Config, values))


LEARNED = {"dequantization": "flow"}
IMPOSSIBLE = [
    # name, value, part of the message, other options
    ("model.image_shape", (12, 12, 3), "multiples of 8", {"steps": (1, 1), "hidden_channels": (4, 4)}),
    ("model.n_bits", 9, "at most 8", {}),
    ("model.latent_dim", 1, "at least 2", {}),
    ("model.conditioning", "all", "'coupling', 'base' or 'none'", {}),
    ("model.transform", "cubic", "'affine', 'additive'", {}),
    ("model.step_layers", ("sinh_arcsinh",) * 2, "each only once", {}),
    ("model.prior", "classes", "model.classes is 0", {}),
    ("model.classes", 2, "labels enter by z", {"conditioning": "none"}),
    ("model.class_probabilities", (0.5,), "1 entries and model.classes is 2", {"classes": 2}),
    ("training.loggers", ("paper",), "'tensorboard' or 'wandb'", {}),
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
    ("training.learning_rate", 1e30, "is 1e+30; it must be at most 1", {}),
    ("training.noise", 8.0, "set the update at which the noise ends", {}),
    ("training.patterns", 1.0, "is 1; it must be below 1", {}),
    ("training.precision", "float16", "'float32', 'tf32' or 'mixed_bfloat16'", {}),
    ("training.micro_batches", 3, "must be a multiple", {"batch_size": 64}),
]
SECTIONS = {"model": ModelConfig, "data": DataConfig, "training": TrainingConfig}


class TestImpossibleValues:
    @pytest.mark.parametrize(("name", "value", "expected", "others"), IMPOSSIBLE)
    def test_impossible_value_of_an_option_is_refused_in_one_line(self, name, value, expected, others):
        section, _, option = name.partition(".")
        message = refusal(lambda: SECTIONS[section](**{option: value, **others}))
        assert expected in message and f"{section}." in message
