"""Tests of tfdecouple.config: options to JSON and back, and one clear line for everything that does not hold."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

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
from tfdecouple.errors import ConfigError, UserError

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
    linear="lu",
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
    optimizer="adamax",
    learning_rate=0.5,
    encoder_learning_rate=0.25,
    warmup_steps=2,
    decay_rate=0.5,
    beta_1=0.5,
    beta_2=0.75,
    epsilon=0.125,
    weight_decay=0.25,
    clip_norm=3.0,
    ema_decay=0.5,
    kl_weight=0.25,
    kl_delay_steps=5,
    kl_warmup_steps=3,
    free_bits=1.5,
    noise=16.0,
    noise_steps=10,
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
    loggers=("csv",),
    init_from="runs/other",
)
EVERYTHING = Config(name="mine", description="a line", notes="more", model=MODEL, data=DATA, training=TRAINING)


def refusal(call):
    """The message of the ConfigError that `call` raises; it is one line."""
    with pytest.raises(ConfigError) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message
    return message


class TestRoundTrip:
    @pytest.mark.parametrize("config", [MODEL, DATA, TRAINING, EVERYTHING], ids=lambda config: type(config).__name__)
    def test_config_below_has_every_option_off_its_default(self, config):
        default = type(config)()
        for field in dataclasses.fields(config):
            assert getattr(config, field.name) != getattr(default, field.name), field.name

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

    def test_configs_are_hashable(self):
        assert len({MODEL, dataclasses.replace(MODEL), dataclasses.replace(MODEL, latent_dim=7)}) == 2

    @pytest.mark.parametrize(("name", "value"), [("cache_gib", 2), ("pad_and_crop", 3.0)])
    def test_whole_numbers_and_numbers_stand_for_each_other(self, name, value):
        config = Config.from_dict({"data": {name: value}}).data
        assert getattr(config, name) == value
        assert type(getattr(config, name)) is type(getattr(DataConfig(), name))


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
        assert set(difference(Config(), EVERYTHING)) == set(option_names())


class TestFormerNames:
    """`training.remat` is `training.memory` today."""

    @pytest.mark.parametrize(("then", "now"), [(False, "keep"), (True, "recompute")])
    def test_of_a_config_and_of_a_change_are_taken(self, then, now):
        assert Config.from_dict({"training": {"remat": then}}).training.memory == now
        assert override(Config(), [f"training.remat={json.dumps(then)}"]).training.memory == now

    def test_a_later_change_by_the_new_name_holds(self):
        old = Config.from_dict({"training": {"remat": True}})
        assert override(old, ["training.memory=invert"]).training.memory == "invert"
        assert difference(old, override(Config(), ["training.memory=recompute"])) == {}

    @pytest.mark.parametrize("value", [1, "yes", None])
    def test_what_it_never_was_is_refused(self, value):
        assert "training.memory today" in refusal(lambda: Config.from_dict({"training": {"remat": value}}))

    def test_both_names_are_refused(self):
        values = {"training": {"remat": True, "memory": "invert"}}
        assert "training.remat and training.memory are one option" in refusal(lambda: Config.from_dict(values))


class TestUnknownNames:
    @pytest.mark.parametrize(
        ("values", "nearest"),
        [
            ({"modle": {}}, "model"),
            ({"model": {"latent_dims": 3}}, "model.latent_dim"),
            ({"model": {"hiden_channels": [1]}}, "model.hidden_channels"),
            ({"training": {"learningrate": 1}}, "training.learning_rate"),
            ({"data": {"flip_horizontal": True}}, "data.horizontal_flip"),
            # Misplaced: it is there, in another section.
            ({"batch_size": 3}, "training.batch_size"),
        ],
    )
    def test_unknown_name_is_refused_with_the_nearest_one(self, values, nearest):
        message = refusal(lambda: Config.from_dict(values))
        wrong = next(iter(values))
        inner = values[wrong]
        name = f"{wrong}.{next(iter(inner))}" if isinstance(inner, dict) and inner else wrong
        assert f"'{name}'" in message and f"{nearest}" in message

    def test_a_name_near_to_none_is_refused_with_the_way_to_find_it(self):
        assert "tfdecouple explain" in refusal(lambda: Config.from_dict({"zzzzzz": 1}))

    def test_constructor_knows_no_other_names(self):
        with pytest.raises(TypeError):
            ModelConfig(latent_dims=3)


class TestWrongTypes:
    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("model.latent_dim", "64", "a whole number"),
            ("model.latent_dim", 1.5, "a whole number"),
            ("model.latent_dim", True, "a whole number"),
            ("model.latent_dim", None, "a whole number"),
            ("model.alpha", "1", "a number"),
            ("model.alpha", False, "a number"),
            ("model.steps", 3, "a list of a whole number or a list of a whole number"),
            ("model.steps", "22", "a list of"),
            ("model.steps", [1, "2", 1], "a whole number or a list"),
            ("model.steps", [1, [[2]], 1], "a whole number or a list"),
            ("model.hidden_channels", [4, [4]], "a whole number"),
            ("model.conditioning", 1, "text"),
            ("data.horizontal_flip", 1, "true or false"),
            ("data.horizontal_flip", "true", "true or false"),
            ("data.data_dir", 3, "text or null"),
            ("data.source", None, "text"),
            ("training.learning_rate", [1], "a number"),
            ("training.seed", {}, "a whole number"),
            ("model", [], "a JSON object"),
            ("training", 3, "a JSON object"),
        ],
    )
    def test_wrong_type_is_refused_with_name_value_and_what_it_must_be(self, name, value, expected):
        section, _, option = name.partition(".")
        message = refusal(lambda: Config.from_dict({section: {option: value} if option else value}))
        assert message.startswith(name) and expected in message
        if not isinstance(value, list):
            assert repr(value) in message

    @pytest.mark.parametrize("values", [[], "text", 3, None])
    def test_config_must_be_an_object(self, values):
        assert "JSON object" in refusal(lambda: Config.from_dict(values))


LEARNED = {"dequantization": "flow"}
IMPOSSIBLE = [
    # name, value, part of the message, other options
    ("model.image_size", 0, "at least 1", {}),
    ("model.image_size", 30, "multiple of 8", {}),
    ("model.image_size", 12, "multiple of 8", {"steps": (1, 1), "hidden_channels": (4, 4)}),
    ("model.image_shape", (8, 8), "[height, width, channels]", {}),
    ("model.n_bits", 0, "1..8", {}),
    ("model.n_bits", 9, "1..8", {}),
    ("model.latent_dim", 0, "at least 1", {}),
    ("model.latent_dim", 1, "at least 2", {}),
    ("model.conditioning", "all", "'coupling', 'base', 'none'", {}),
    ("model.transform", "cubic", "'affine', 'additive'", {}),
    ("model.multiscale_transform", "cubic", "'affine', 'additive'", {}),
    ("model.prior_transform", "cubic", "'affine', 'additive'", {}),
    ("model.linear", "qr", "'full', 'lu'", {}),
    ("model.step_layers", ("cubic",), "'sinh_arcsinh'", {}),
    ("model.step_layers", ("sinh_arcsinh",) * 2, "sinh_arcsinh more than once", {}),
    ("model.prior", "vamp", "'flow', 'normal'", {}),
    ("model.prior", "classes", "model.classes is 0", {}),
    ("model.classes", -1, "at least 0", {}),
    ("model.classes", 2, "labels enter by z", {"conditioning": "none"}),
    ("model.class_probabilities", (0.5,), "1 entries and model.classes is 2", {"classes": 2}),
    ("model.class_probabilities", (1.0, 0.0), "above 0", {"classes": 2}),
    ("training.loggers", ("paper",), "'tensorboard', 'csv'", {}),
    ("training.loggers", ("csv", "csv"), "each only once", {}),
    ("model.alpha", 0.0, "(0, 1]", {}),
    ("model.alpha", 1.1, "(0, 1]", {}),
    ("model.alpha", math.nan, "(0, 1]", {}),
    ("model.prior_alpha", -0.1, "(0, 1]", {}),
    ("model.steps", (4,), "at least 2", {"hidden_channels": (4,)}),
    ("model.steps", (), "at least 2", {"hidden_channels": ()}),
    ("model.steps", (2, (6, 6), 4), "hidden_channels has 4 entries", {}),
    ("model.steps", ((1,), (6, 6), (6, 6), 4), "first and last", {}),
    ("model.steps", (1, (6, 6), (6, 6), (4,)), "first and last", {}),
    ("model.steps", (1, 6, (6, 6), 4), "needs a list of 1 to 3", {}),
    ("model.steps", (1, (), (6, 6), 4), "needs a list of 1 to 3", {}),
    ("model.steps", (1, (1, 1, 1, 1), (6, 6), 4), "needs a list of 1 to 3", {}),
    ("model.steps", (0, (6, 6), (6, 6), 4), "at least 1", {}),
    ("model.steps", (1, (6, 0), (6, 6), 4), "at least 1", {}),
    ("model.hidden_channels", (4, 4, 4), "one entry per level", {}),
    ("model.hidden_channels", (4, 4, 0, 4), "at least 1", {}),
    ("model.factors", (4, 4, 4), "factors has 3 entries", {}),
    ("model.factors", (5,), "must divide", {}),
    ("model.factors", (0,), "its factor is 0", {}),
    ("model.encoder_channels", (), "empty", {}),
    ("model.encoder_channels", (4, 0), "at least 1", {}),
    ("model.encoder_channels", (4,) * 6, "multiple of 64", {}),
    ("model.encoder_out_channels", 0, "at least 1", {}),
    ("model.prior_steps", 0, "at least 1", {}),
    ("model.prior_hidden", 0, "at least 1", {}),
    ("model.base_hidden", 0, "at least 1", {"conditioning": "base"}),
    ("model.dequantization", "normal", "'uniform', 'flow'", {}),
    ("model.dequantization_transform", "cubic", "'affine', 'additive'", {}),
    ("model.dequantization_alpha", 1.5, "(0, 1]", {}),
    ("model.dequantization_steps", (4,), "at least 2", LEARNED | {"dequantization_hidden_channels": (4,)}),
    ("model.dequantization_steps", (1, 2, 3), "needs a list", LEARNED | {"dequantization_hidden_channels": (4, 4, 4)}),
    ("model.dequantization_hidden_channels", (4, 4, 4), "dequantization_steps 2", LEARNED),
    ("model.dequantization_hidden_channels", (4, 0), "at least 1", LEARNED),
    ("model.dequantization_factors", (2, 2), "has 2 entries", LEARNED),
    ("model.dequantization_encoder_channels", (), "empty", LEARNED),
    ("model.dequantization_encoder_channels", (4,) * 6, "multiple of 64", LEARNED),
    ("model.dequantization_map_channels", 0, "at least 1", LEARNED),
    ("data.source", "", "empty", {}),
    ("data.on_bad_image", "ignore", "'stop', 'skip'", {}),
    ("data.photographs", (), "leave it out", {}),
    ("data.pad_and_crop", -1, "at least 0", {}),
    ("data.centre_crop", -1, "at least 0", {}),
    ("data.validation_examples", 0, "at least 1", {}),
    ("data.cache_gib", -0.5, "at least 0", {}),
    ("data.photograph_crops", 0, "at least 1", {}),
    *(
        (f"training.{name}", 0, "at least 1", {})
        for name in (
            "steps",
            "batch_size",
            "micro_batches",
            "init_images",
            "max_skipped_steps",
            "log_every",
            "evaluate_every",
            "checkpoint_every",
            "keep_checkpoints",
            "evaluation_batch_size",
        )
    ),
    *(
        (f"training.{name}", -1, "at least 0", {})
        for name in (
            "learning_rate",
            "warmup_steps",
            "weight_decay",
            "clip_norm",
            "epsilon",
            "kl_weight",
            "kl_delay_steps",
            "kl_warmup_steps",
            "free_bits",
            "noise",
            "noise_steps",
            "encoder_learning_rate",
            "evaluation_images",
            "evaluation_samples",
            "pictures",
            "bytes_per_pack",
            "seed",
        )
    ),
    ("training.learning_rate", 1e30, "it must be at most 1: Adam", {}),
    ("training.learning_rate", math.nan, "at least 0", {}),
    ("training.optimizer", "sgd", "'adam', 'adamax'", {}),
    ("training.epsilon", 0.0, "above 0 with training.optimizer=adamax", {"optimizer": "adamax"}),
    ("training.encoder_learning_rate", 2.0, "it must be at most 1", {}),
    ("training.encoder_learning_rate", 0.1, "the second must be above 0", {"learning_rate": 0.0}),
    ("training.noise", 8.0, "say when the noise is gone", {}),
    ("training.decay_rate", 0.0, "(0, 1]", {}),
    ("training.decay_rate", 1.5, "(0, 1]", {}),
    ("training.beta_1", 1.0, "[0, 1)", {}),
    ("training.beta_2", -0.1, "[0, 1)", {}),
    ("training.ema_decay", 1.0, "[0, 1)", {}),
    ("training.precision", "float16", "'float32', 'tf32', 'mixed_bfloat16'", {}),
    ("training.memory", "remat", "'keep', 'recompute', 'invert'", {}),
    ("training.micro_batches", 3, "must be a multiple", {"batch_size": 64}),
]
SECTIONS = {"model": ModelConfig, "data": DataConfig, "training": TrainingConfig}


class TestImpossibleValues:
    @pytest.mark.parametrize(("name", "value", "expected", "others"), IMPOSSIBLE)
    def test_impossible_value_is_refused_in_one_line(self, name, value, expected, others):
        section, _, option = name.partition(".")
        message = refusal(lambda: SECTIONS[section](**{option: value, **others}))
        assert expected in message and f"{section}." in message

    def test_every_option_that_can_be_wrong_is_tried(self):
        free = {
            "data.data_dir",
            "data.horizontal_flip",
            "training.jit_compile",
            "training.init_from",
            "name",
            "description",
            "notes",
        }
        assert {name for name, *_ in IMPOSSIBLE} == set(option_names()) - free

    @pytest.mark.parametrize(
        "options",
        [
            # Without z nobody reads these.
            {"conditioning": "none", "latent_dim": 0, "encoder_channels": ()},
            {"prior": "normal", "latent_dim": 1, "prior_steps": 0},
            {"base_hidden": 0},
            {"dequantization_steps": (), "dequantization_encoder_channels": (), "dequantization_map_channels": 0},
            {"steps": (1, 1), "hidden_channels": (4, 4), "factors": ()},
            {"steps": (1, (1,), (1,), 1), "hidden_channels": (4,) * 4, "factors": (4, 3)},
        ],
    )
    def test_options_that_play_no_part_are_not_checked(self, options):
        config = ModelConfig(**options)
        assert {name: getattr(config, name) for name in options} == options

    def test_a_config_error_is_a_user_error_and_a_value_error(self):
        assert issubclass(ConfigError, UserError) and issubclass(ConfigError, ValueError)


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
            ("model.alpha=2", "(0, 1]"),
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
        assert "bad.json" in message and "not valid JSON" in message

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

    def test_presets_of_our_own_keep_alpha_below_1(self):
        assert load_preset("quickstart").model.alpha < 1 and load_preset("quickstart").model.prior_alpha < 1

    @pytest.mark.parametrize(
        ("name", "size", "alpha"),
        [("cifar10", 32, 1.0), ("imagenet64", 64, 0.5), ("lsun_bedroom_128", 128, 1.0), ("celeba_hq_256", 256, 1.0)],
    )
    def test_full_presets_keep_the_papers_architecture(self, name, size, alpha):
        config, glow = load_preset(name).model, load_preset(f"{name}_glow").model
        assert (config.image_size, config.alpha, glow.image_size) == (size, alpha, size)
        # The sibling is the same flow without z.
        assert (config.conditioning, glow.conditioning) == ("coupling", "none")
        assert (glow.steps, glow.hidden_channels) == (config.steps, config.hidden_channels)

    def test_unknown_preset_is_refused_with_the_nearest(self):
        assert "did you mean cifar10" in refusal(lambda: load_preset("cifar-10"))
        assert "quickstart" in refusal(lambda: load_preset("zzz"))
