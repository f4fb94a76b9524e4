"""Tests of tfdecouple.config: options to JSON and back, differences, changes, files and presets."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from helpers.refusals import refusal

from tfdecouple.config import (
    Config,
    DataConfig,
    ModelConfig,
    TrainingConfig,
    difference,
    load_preset,
    option_names,
    override,
    preset_names,
)

# Every option off its default.
MODEL = ModelConfig(
    image_shape=(16, 8, 3),
    n_bits=5,
    latent_dim=6,
    conditioning="base",
    steps=(1, (1, 2), 3),
    hidden_channels=(4, 5, 6),
    factors=(3,),
    transform="additive",
    multiscale_transform="additive",
    alpha=0.5,
    step_layers=("sinh_arcsinh",),
    encoder_channels=(4, 8),
    encoder_out_channels=3,
    prior="normal",
    prior_steps=5,
    prior_hidden=7,
    prior_transform="additive",
    prior_alpha=0.25,
    base_hidden=9,
    dequantization="flow",
    dequantization_steps=(1, (2,), 3),
    dequantization_hidden_channels=(3, 4, 5),
    dequantization_factors=(3,),
    dequantization_transform="additive",
    dequantization_alpha=0.75,
    dequantization_encoder_channels=(3,),
    dequantization_map_channels=5,
    classes=3,
    class_probabilities=(0.5, 0.25, 0.25),
)
DATA = DataConfig(
    source="folder:/my/images",
    data_dir="/data",
    horizontal_flip=True,
    pad_and_crop=4,
    centre_crop=148,
    validation_examples=7,
    on_bad_image="skip",
    photographs=("coffee", "rocket"),
    cache_gib=0.5,
    photograph_crops=64,
)
TRAINING = TrainingConfig(
    steps=7,
    batch_size=12,
    micro_batches=3,
    learning_rate=0.5,
    warmup_steps=2,
    decay_rate=0.5,
    beta_1=0.5,
    beta_2=0.75,
    epsilon=0.125,
    weight_decay=0.25,
    clip_norm=3.0,
    ema_decay=0.5,
    kl_weight=0.25,
    kl_warmup_steps=3,
    noise=16.0,
    noise_steps=10,
    patterns=0.125,
    patterns_after=11,
    precision="mixed_bfloat16",
    memory="recompute",
    jit_compile=True,
    bytes_per_pack=4096,
    seed=9,
    init_images=32,
    max_skipped_steps=4,
    log_every=2,
    evaluate_every=3,
    checkpoint_every=4,
    keep_checkpoints=2,
    evaluation_batch_size=6,
    evaluation_images=5,
    pictures=6,
    evaluation_samples=11,
    loggers=("wandb",),
    init_from="runs/other",
)
EVERYTHING = Config(name="mine", description="a line", notes="more", model=MODEL, data=DATA, training=TRAINING)


class TestRoundTrip:
    @pytest.mark.parametrize("config", [MODEL, DATA, TRAINING, EVERYTHING], ids=lambda config: type(config).__name__)
    def test_config_below_has_every_option_off_its_default(self, config):
        default = type(config)()
        for field in dataclasses.fields(config):
            # Of conditioners there is one.
            assert field.name == "conditioner" or getattr(config, field.name) != getattr(default, field.name)

    def test_json_keeps_every_option_and_its_type(self, tmp_path):
        path = tmp_path / "config.json"
        path.write_text(EVERYTHING.to_json(), encoding="utf-8")
        again = Config.from_json(path)
        assert again == EVERYTHING
        for section in ("model", "data", "training"):
            for field in dataclasses.fields(getattr(EVERYTHING, section)):
                ours, theirs = (getattr(getattr(c, section), field.name) for c in (EVERYTHING, again))
                assert type(ours) is type(theirs), field.name
        assert again.model.steps == (1, (1, 2), 3) and isinstance(again.model.steps[1], tuple)

    def test_to_dict_is_plain_json(self):
        values = EVERYTHING.to_dict()
        assert json.loads(json.dumps(values)) == values

    def test_what_is_absent_takes_its_default(self):
        assert Config.from_dict({}) == Config()
        assert Config.from_dict({"model": {"latent_dim": 8}}).model == ModelConfig(latent_dim=8)

    def test_configs_cannot_be_changed_in_place(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            MODEL.latent_dim = 3

    @pytest.mark.parametrize(("name", "value"), [("cache_gib", 2), ("pad_and_crop", 3.0)])
    def test_whole_numbers_and_numbers_stand_for_each_other(self, name, value):
        config = Config.from_dict({"data": {name: value}}).data
        assert getattr(config, name) == value
        assert type(getattr(config, name)) is type(getattr(DataConfig(), name))

    def test_numbers_of_numpy_become_pythons(self):
        given = {"latent_dim": np.int64(6), "alpha": np.float32(0.5), "steps": [np.int32(1), [1, np.int64(2)], 3]}
        model = dataclasses.replace(MODEL, **given)
        training = dataclasses.replace(TRAINING, learning_rate=np.float64(0.5), micro_batches=np.int64(3))
        again = dataclasses.replace(EVERYTHING, model=model, training=training)
        assert again == EVERYTHING and again.to_json() == EVERYTHING.to_json() and repr(again) == repr(EVERYTHING)


class TestDifference:
    def test_equal_configs_do_not_differ(self):
        assert difference(EVERYTHING, Config.from_dict(EVERYTHING.to_dict())) == {}

    def test_it_names_each_option_with_both_values(self):
        other = override(EVERYTHING, ["model.steps=[1,[1,1],3]", "training.seed=1"])
        assert difference(EVERYTHING, other) == {
            "model.steps": ([1, [1, 2], 3], [1, [1, 1], 3]),
            "training.seed": (9, 1),
        }

    def test_every_option_is_compared(self):
        # Of conditioners there is one, so that it cannot differ.
        assert set(difference(Config(), EVERYTHING)) == set(option_names()) - {"model.conditioner"}


class TestDerived:
    def test_properties(self):
        assert (MODEL.n_bins, MODEL.image_shape, MODEL.has_latent) == (32, (16, 8, 3), True)
        assert not dataclasses.replace(MODEL, conditioning="none", classes=0, class_probabilities=()).has_latent

    @pytest.mark.parametrize(
        ("steps", "factors", "inner"),
        [
            ((1, (1,), (1,), 1), (4,), (4, 4)),
            ((1, (1,), (1,), 1), (4, 3), (4, 3)),
            ((1, (1,), 1), (3,), (3,)),
            ((1, 1), (4,), ()),
            ((1, 1), (), ()),
        ],
    )
    def test_a_single_factor_holds_for_every_inner_level(self, steps, factors, inner):
        config = ModelConfig(steps=steps, hidden_channels=(4,) * len(steps), factors=factors)
        assert config.inner_factors == inner


class TestOverride:
    @pytest.mark.parametrize(
        ("assignment", "section", "option", "value"),
        [
            ("model.latent_dim=32", "model", "latent_dim", 32),
            ("model.steps=[1,[2,2],2]", "model", "steps", (1, (2, 2), 2)),
            ("model.alpha=0.25", "model", "alpha", 0.25),
            ("training.learning_rate=1e-4", "training", "learning_rate", 1e-4),
            ("model.prior=flow", "model", "prior", "flow"),
            ("data.horizontal_flip=false", "data", "horizontal_flip", False),
            ("data.data_dir=null", "data", "data_dir", None),
            ("data.source=folder:/a=b", "data", "source", "folder:/a=b"),
            (" training.seed = 3 ", "training", "seed", 3),
        ],
    )
    def test_one_value_changes_and_nothing_else(self, assignment, section, option, value):
        changed = override(EVERYTHING, [assignment])
        assert getattr(getattr(changed, section), option) == value
        assert set(difference(EVERYTHING, changed)) == {f"{section}.{option}"}

    def test_the_last_of_two_holds_and_top_level_names_work(self):
        changed = override(Config(), ["name=one", "name=two", "training.seed=1", "training.seed=2"])
        assert (changed.name, changed.training.seed) == ("two", 2)

    def test_values_that_only_hold_together_may_come_one_by_one(self):
        changed = override(Config(), ["model.steps=[1,1]", "model.hidden_channels=[4,4]"])
        assert changed.model.steps == (1, 1)

    @pytest.mark.parametrize(
        ("assignment", "expected"),
        [
            ("model.latent_dim", "NAME=VALUE"),
            ("model.latentdim=3", "model.latent_dim"),
            ("latent_dim=3", "model.latent_dim"),
            ("model=3", "no option 'model'"),
            ("=3", "no option ''"),
            ("model.latent_dim=many", "'many'"),
            ("model.latent_dim=", "''"),
            ("model.alpha=2", "at most 1"),
            (f"training.steps={10**26}", "at most 9.2e+18"),
        ],
    )
    def test_bad_assignment_is_refused(self, assignment, expected):
        assert expected in refusal(lambda: override(Config(), [assignment]))


class TestFiles:
    def test_missing_file_is_named(self, tmp_path):
        message = refusal(lambda: Config.from_json(tmp_path / "none.json"))
        assert "none.json" in message and "No such file" in message

    @pytest.mark.parametrize("text", ["{", "", "{'a': 1}"])
    def test_bad_json_is_named(self, tmp_path, text):
        path = tmp_path / "bad.json"
        path.write_text(text)
        message = refusal(lambda: Config.from_json(path))
        assert "bad.json" in message and "cannot be read" in message

    def test_a_folder_or_binary_file_is_refused(self, tmp_path):
        refusal(lambda: Config.from_json(tmp_path))
        path = tmp_path / "binary.json"
        path.write_bytes(b"\xff\xfe\x00")
        refusal(lambda: Config.from_json(path))


class TestPresets:
    def test_quickstart_is_first_and_the_others_are_sorted(self):
        names = preset_names()
        assert names[0] == "quickstart" and list(names[1:]) == sorted(names[1:]) and len(names) > 5

    @pytest.mark.parametrize("name", preset_names())
    def test_every_preset_loads_describes_itself_and_comes_back_from_json(self, name):
        config = load_preset(name)
        assert config.name == name and config.description and "\n" not in config.description
        assert Config.from_dict(json.loads(config.to_json())) == config

    @pytest.mark.parametrize(
        ("name", "size", "alpha"),
        [("cifar10", 32, 1.0), ("imagenet64", 64, 0.5), ("lsun_bedroom_128", 128, 1.0), ("celeba_hq_256", 256, 1.0)],
    )
    def test_full_presets_keep_the_papers_architecture(self, name, size, alpha):
        config, glow = load_preset(name).model, load_preset(f"{name}_glow").model
        assert (config.image_shape, config.alpha, glow.image_shape) == ((size, size, 3), alpha, (size, size, 3))
        # The sibling is the same flow without z.
        assert (config.conditioning, glow.conditioning) == ("coupling", "none")
        assert (glow.steps, glow.hidden_channels) == (config.steps, config.hidden_channels)

    def test_unknown_preset_is_refused_with_the_nearest(self):
        assert "did you mean cifar10" in refusal(lambda: load_preset("cifar-10"))
        assert "quickstart" in refusal(lambda: load_preset("zzz"))
