"""Every option of a run, as frozen dataclasses that come from JSON and go back to it.

A `Config` is complete: model, data, training and the presets' description in one object, from which a run can be
repeated. `override` changes single values by their dotted names (`--set model.latent_dim=32`), and every unknown name
or impossible combination is a `ConfigError` of one line that names the value.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from tfdecouple.errors import ConfigError
from tfdecouple.storage.files import parse_json
from tfdecouple.transforms import TRANSFORMS

CONDITIONING = ("coupling", "base", "none")
LINEAR_FORMS = ("full", "lu")
PRIORS = ("flow", "normal")
PRECISIONS = ("float32", "tf32", "mixed_bfloat16")
BAD_IMAGE_RULES = ("stop", "skip")

# More than any image can be halved.
MOST_LEVELS = 24
# TensorFlow needs minutes to build so many; the deepest preset has 92.
MOST_STEPS = 1000
# What keras.utils.set_random_seed takes.
SEEDS = 2**32
# A name is that of a folder: bytes that file systems take, with room for endings.
_NAME_BYTES = 200
# Names of devices, which Windows knows in every folder, with any ending.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{kind}{number}" for kind in ("com", "lpt") for number in range(1, 10))}


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _shown(value: Any) -> str:
    """Returns a value for a message, cut short where it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]} ... ({len(text):,} characters)"


def _one_of(name: str, value: Any, choices: Iterable[Any]) -> None:
    choices = tuple(choices)
    _check(value in choices, f"{name} is {_shown(value)}; it must be one of {', '.join(map(repr, choices))}")


def _at_least(name: str, value: float, least: float) -> None:
    _check(value >= least, f"{name} is {value}; it must be at least {least}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture: flow, prior and encoder (paper sections 2.1, 2.2 and appendix B).

    Attributes:
        image_size: height and width of the square RGB images, in pixels.
        n_bits: bits per colour channel, 1 to 8. Below 8, pixels are quantised to `2**n_bits` levels.
        latent_dim: size of the global code z (the paper's d_z). Ignored where `conditioning` is "none".
        conditioning: where z enters. "coupling": every coupling of the flow (the paper's model). "base": only mean and
            scale of the Gaussian of v (the paper's Table 3 baseline). "none": no z, no encoder (refined Glow).
        steps: steps of flow per level. The first and the last level hold a number; each level between them holds a
            list, one number for each part of the fine-grained multi-scale structure (paper Figure 3c).
        hidden_channels: width of the coupling nets, one number per level.
        factors: for each inner level, the fraction of channels that leave at the end of each of its parts (4: a
            quarter of the level's channels). A single entry holds for all.
        transform: of `transforms.py`: "affine" (s = 1 + alpha*tanh(u/2)) or "additive" couplings.
        multiscale_transform: the same choice for the coupling before each factor-out.
        alpha: the paper's bound of the affine scale, in (0, 1]: a scale lies in (1 - alpha, 1 + alpha). The
            smaller, the further from the training images an image may be and still come back to the last pixel
            (docs/RESULTS.md, "What comes back").
        linear: "full" (matrix and slogdet, as the paper's code) or "lu" (PLU factors, as Glow) for the 1x1
            convolutions and the prior's linear layers.
        encoder_channels: planes of the encoder's ResNet levels, each of which halves the resolution.
        encoder_out_channels: the paper's c', planes after the last ResNet level.
        prior: "flow" (a small flow over z, paper B.3) or "normal" (N(0, I), the ablation).
        prior_steps: steps of the prior flow.
        prior_hidden: width of the prior flow's coupling nets.
        prior_transform: "affine" or "additive" couplings in the prior flow.
        prior_alpha: alpha of the prior flow.
        base_hidden: width of the net from z to mean and scale of v, for `conditioning` "base" only.
    """

    image_size: int = 32
    n_bits: int = 8
    latent_dim: int = 64
    conditioning: str = "coupling"
    steps: tuple[int | tuple[int, ...], ...] = (2, (6, 6), (6, 6), 4)
    hidden_channels: tuple[int, ...] = (24, 512, 512, 512)
    factors: tuple[int, ...] = (4,)
    transform: str = "affine"
    multiscale_transform: str = "affine"
    alpha: float = 1.0
    linear: str = "full"
    encoder_channels: tuple[int, ...] = (48, 96, 96)
    encoder_out_channels: int = 8
    prior: str = "flow"
    prior_steps: int = 2
    prior_hidden: int = 256
    prior_transform: str = "affine"
    prior_alpha: float = 1.0
    base_hidden: int = 64

    def __post_init__(self) -> None:
        """Refuses impossible combinations.

        Raises:
            ConfigError: naming the option and its value.
        """
        for name in ("steps", "hidden_channels", "factors", "encoder_channels"):
            object.__setattr__(self, name, _tuples(getattr(self, name)))
        _at_least("model.image_size", self.image_size, 1)
        _check(1 <= self.n_bits <= 8, f"model.n_bits is {self.n_bits}; it must lie in 1..8")
        _one_of("model.conditioning", self.conditioning, CONDITIONING)
        _one_of("model.transform", self.transform, TRANSFORMS)
        _one_of("model.multiscale_transform", self.multiscale_transform, TRANSFORMS)
        _one_of("model.linear", self.linear, LINEAR_FORMS)
        _one_of("model.prior", self.prior, PRIORS)
        _one_of("model.prior_transform", self.prior_transform, TRANSFORMS)
        for name in ("alpha", "prior_alpha"):
            value = getattr(self, name)
            _check(0 < value <= 1, f"model.{name} is {value}; it must lie in (0, 1]")
        self._check_flow()
        if self.has_latent:
            self._check_latent()

    def _check_flow(self) -> None:
        levels = len(self.steps)
        _check(levels <= MOST_LEVELS, f"model.steps has {levels} levels; there can be {MOST_LEVELS} at most")
        _check(levels >= 2, f"model.steps has {levels} level; a flow needs at least 2, for example [2, 4]")
        _check(
            len(self.hidden_channels) == levels,
            f"model.hidden_channels has {len(self.hidden_channels)} entries and model.steps {levels}; "
            "both need one entry per level",
        )
        for width in self.hidden_channels:
            _at_least("an entry of model.hidden_channels", width, 1)
        _check(
            isinstance(self.steps[0], int) and isinstance(self.steps[-1], int),
            f"model.steps is {_plain(self.steps)}; its first and last entries must be numbers",
        )
        _check(
            len(self.factors) in (1, levels - 2),
            f"model.factors has {len(self.factors)} entries; give one, or one for each of the {levels - 2} inner "
            "levels",
        )
        for level, (steps, factor) in enumerate(zip(self.steps[1:-1], self.inner_factors, strict=True), start=1):
            _check(
                isinstance(steps, tuple) and 1 <= len(steps) < factor,
                f"model.steps[{level}] is {_plain(steps)}; an inner level needs a list of 1 to {factor - 1} numbers "
                f"(its factor is {factor})",
            )
        counts = [n for entry in self.steps for n in (entry if isinstance(entry, tuple) else (entry,))]
        for count in counts:
            _at_least("an entry of model.steps", count, 1)
        _check(sum(counts) <= MOST_STEPS, f"model.steps adds up to {sum(counts)} steps; at most {MOST_STEPS} are built")
        scale = 2 ** (levels - 1)
        _check(
            self.image_size % scale == 0,
            f"model.image_size is {self.image_size}; {levels} levels halve it {levels - 1} times, "
            f"so it must be a multiple of {scale}",
        )
        channels = 3
        for level, (steps, factor) in enumerate(zip(self.steps[1:-1], self.inner_factors, strict=True), start=1):
            channels *= 4
            _check(
                channels % factor == 0,
                f"model.factors gives {factor} at level {level}, which has {channels} channels; it must divide them",
            )
            channels -= channels // factor * len(typing.cast(tuple, steps))

    def _check_latent(self) -> None:
        _at_least("model.latent_dim", self.latent_dim, 1)
        _at_least("model.encoder_out_channels", self.encoder_out_channels, 1)
        levels = len(self.encoder_channels)
        _check(levels >= 1, "model.encoder_channels is empty; give one number per level")
        _check(levels <= MOST_LEVELS, f"model.encoder_channels has {levels} levels; there can be {MOST_LEVELS} at most")
        for width in self.encoder_channels:
            _at_least("an entry of model.encoder_channels", width, 1)
        scale = 2**levels
        _check(
            self.image_size % scale == 0,
            f"model.image_size is {self.image_size}; the encoder halves it {levels} times "
            f"(model.encoder_channels), so it must be a multiple of {scale}",
        )
        if self.prior == "flow":
            _check(
                self.latent_dim >= 2,
                f"model.latent_dim is {self.latent_dim}; a prior flow needs at least 2 (or set model.prior=normal)",
            )
            _at_least("model.prior_steps", self.prior_steps, 1)
            _check(
                self.prior_steps <= MOST_STEPS,
                f"model.prior_steps is {self.prior_steps}; at most {MOST_STEPS} are built",
            )
            _at_least("model.prior_hidden", self.prior_hidden, 1)
        if self.conditioning == "base":
            _at_least("model.base_hidden", self.base_hidden, 1)

    @property
    def has_latent(self) -> bool:
        """Whether the model has a global code z."""
        return self.conditioning != "none"

    @property
    def n_bins(self) -> int:
        """Number of levels of a pixel, `2**n_bits`."""
        return 2**self.n_bits

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image, `(height, width, 3)`."""
        return (self.image_size, self.image_size, 3)

    @property
    def inner_factors(self) -> tuple[int, ...]:
        """One factor for each inner level."""
        inner = max(len(self.steps) - 2, 0)
        return self.factors * inner if len(self.factors) == 1 else self.factors


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images come from and what is done to them (paper appendix C.1).

    Attributes:
        source: "photographs" (embedded), the name of a TFDS data set ("cifar10", "tfds:NAME") or "folder:PATH".
        data_dir: folder that holds prepared TFDS data sets; null for TFDS' own default.
        horizontal_flip: mirror each training image with probability 1/2.
        pad_and_crop: reflect-pad training images by this many pixels and crop at random; 0 for none.
        centre_crop: side in pixels of the centre square to keep before resizing; 0 for the largest square.
        validation_examples: how many training images are held out where a data set has no validation split.
        on_bad_image: "stop" at an image that cannot be read, or "skip" and count it.
        cache_gib: decoded images are kept in memory where they need at most this many GiB.
        photograph_crops: number of training crops of the embedded photographs.
    """

    source: str = "photographs"
    data_dir: str | None = None
    horizontal_flip: bool = False
    pad_and_crop: int = 0
    centre_crop: int = 0
    validation_examples: int = 1000
    on_bad_image: str = "stop"
    cache_gib: float = 4.0
    photograph_crops: int = 32768

    def __post_init__(self) -> None:
        """Refuses impossible values.

        Raises:
            ConfigError: naming the option and its value.
        """
        _check(bool(self.source), "data.source is empty; give photographs, a TFDS name or folder:PATH")
        _one_of("data.on_bad_image", self.on_bad_image, BAD_IMAGE_RULES)
        _at_least("data.pad_and_crop", self.pad_and_crop, 0)
        _at_least("data.centre_crop", self.centre_crop, 0)
        _at_least("data.validation_examples", self.validation_examples, 1)
        _at_least("data.cache_gib", self.cache_gib, 0)
        _at_least("data.photograph_crops", self.photograph_crops, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimisation and the rhythm of a run (paper appendix C.2 and Table 5).

    Attributes:
        steps: number of optimiser updates of the whole run.
        batch_size: images per update, over all devices.
        micro_batches: parts that a batch is processed in, one after the other, to save memory.
        learning_rate: the peak, reached after the warm-up.
        warmup_steps: updates of linear warm-up from 1e-7.
        decay_rate: factor of the learning rate per update after the warm-up.
        beta_1, beta_2, epsilon: Adam's.
        weight_decay: decoupled decay of every trainable parameter, times the learning rate.
        clip_norm: largest global norm of the gradient; 0 for no clipping.
        ema_decay: decay of the averaged weights used for evaluation and sampling; 0 for none.
        kl_weight: weight of the KL term in the loss; 1 in the paper. Below 1, z keeps more of the image. What is
            reported is always the whole bound, with weight 1.
        kl_warmup_steps: updates over which the weight rises linearly from 0; 0 in the paper.
        precision: of the products in a step. "float32": in full, as the paper's code computed them (and so the
            presets), which is older than TF32. "tf32": those of encoder and coupling nets as GPUs since Ampere do it
            faster, with 10 bits of mantissa; all else in full. "mixed_bfloat16": those of the coupling nets in
            bfloat16. Validation, test and whatever else is measured is always in full.
        remat: whether the hidden maps of the coupling nets are computed again in the backward pass instead of kept:
            less memory, more time, the same numbers.
        seed: of everything drawn at random.
        init_images: training images for the data-dependent initialisation.
        max_skipped_steps: updates in a row that may be skipped for values that are not finite.
        log_every, evaluate_every, checkpoint_every: in updates.
        keep_checkpoints: how many of the latest checkpoints are kept, beside the best.
        evaluation_batch_size: images per batch in evaluations, over all devices.
        evaluation_images: validation images per evaluation; 0 for all.
        evaluation_samples: draws of (z, u) per image in the final test evaluation.
        init_from: run folder whose weights this run starts from; null to start from data.
    """

    steps: int = 1000
    batch_size: int = 64
    micro_batches: int = 1
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    decay_rate: float = 0.999997
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 1e-6
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    kl_weight: float = 1.0
    kl_warmup_steps: int = 0
    precision: str = "float32"
    remat: bool = False
    seed: int = 0
    init_images: int = 512
    max_skipped_steps: int = 10
    log_every: int = 10
    evaluate_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    evaluation_batch_size: int = 64
    evaluation_images: int = 0
    evaluation_samples: int = 1
    init_from: str | None = None

    def __post_init__(self) -> None:
        """Refuses impossible values.

        Raises:
            ConfigError: naming the option and its value.
        """
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
            "evaluation_samples",
        ):
            _at_least(f"training.{name}", getattr(self, name), 1)
        for name in (
            "learning_rate",
            "warmup_steps",
            "weight_decay",
            "clip_norm",
            "epsilon",
            "kl_weight",
            "kl_warmup_steps",
            "evaluation_images",
            "seed",
        ):
            _at_least(f"training.{name}", getattr(self, name), 0)
        _check(self.seed < SEEDS, f"training.seed is {self.seed}; it must be below 2**32")
        _check(0 < self.decay_rate <= 1, f"training.decay_rate is {self.decay_rate}; it must lie in (0, 1]")
        for name in ("beta_1", "beta_2", "ema_decay"):
            value = getattr(self, name)
            _check(0 <= value < 1, f"training.{name} is {value}; it must lie in [0, 1)")
        _one_of("training.precision", self.precision, PRECISIONS)
        _check(
            self.batch_size % self.micro_batches == 0,
            f"training.batch_size is {self.batch_size} and training.micro_batches {self.micro_batches}; "
            "the first must be a multiple of the second",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run.

    >>> config = load_preset("cifar10")
    >>> config.model.latent_dim, config.training.batch_size
    (64, 512)
    >>> override(config, ["model.latent_dim=32"]).model.latent_dim
    32

    Attributes:
        name: name of the preset it came from, or of one's own.
        description: one line for people.
        notes: more lines for people: hardware, duration, how to shorten the run.
        model: the architecture.
        data: the images.
        training: the optimisation.
    """

    name: str = "custom"
    description: str = ""
    notes: str = ""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        """Refuses names that are no name of a folder: a run lies in runs/NAME unless the user says where.

        Raises:
            ConfigError: showing the name.
        """
        name = self.name
        plain = name.isprintable() and name.strip(" .") == name and not set(name) & set('/\\:*?"<>|')
        _check(
            plain and 0 < len(name.encode("utf-8", "replace")) <= _NAME_BYTES,
            f"name is {_shown(name)}; it must be the plain name of a folder, of 1 to {_NAME_BYTES} bytes: without "
            'slashes, control characters and any of :*?"<>|, without a dot or blank at its ends',
        )
        _check(
            name.partition(".")[0].lower() not in _DEVICES,
            f"name is {_shown(name)}, which Windows keeps for a device; choose another",
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the config as plain JSON values."""
        return typing.cast(dict, _plain(dataclasses.asdict(self)))

    def to_json(self) -> str:
        """Returns the config as indented JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Builds a config from plain JSON values; what is absent takes its default.

        Raises:
            ConfigError: for an unknown name (with the nearest valid one), a wrong type or an impossible value.
        """
        return from_plain(cls, values)

    @classmethod
    def from_json(cls, path: str | pathlib.Path) -> Config:
        """Reads a config from a JSON file.

        Raises:
            ConfigError: where the file is missing, is no JSON, or holds a bad value.
        """
        try:
            values = parse_json(pathlib.Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"the config {path} is not valid JSON: {error}") from error
        return cls.from_dict(values)


T = typing.TypeVar("T")

# TensorFlow's whole numbers have 64 bits, and its numbers 32 in most places.
_LARGEST = {int: 2.0**63 - 2**10, float: 1e38}


def from_plain(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Builds the config dataclass `cls` from plain JSON values.

    Raises:
        ConfigError: for an unknown name, a wrong type or an impossible value.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.') or 'the config'} is {_shown(values)}; it must be a JSON object")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ConfigError(_unknown(prefix + str(key)))
    return cls(**{key: _coerce(hints[key], value, prefix + key) for key, value in values.items()})


def override(config: Config, assignments: Iterable[str]) -> Config:
    """Returns `config` with single values changed.

    Args:
        config: the config to start from.
        assignments: texts such as `"model.latent_dim=32"`; the right side is JSON, or else taken as text.

    Raises:
        ConfigError: for a malformed assignment, an unknown name or an impossible value.
    """
    values = config.to_dict()
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--set {_shown(assignment)}: write it as NAME=VALUE, for example model.latent_dim=32")
        name = name.strip()
        if name not in option_names():
            raise ConfigError(_unknown(name))
        try:
            value = parse_json(text)
        except ValueError:
            value = text
        section = values
        *path, last = name.split(".")
        for part in path:
            section = section[part]
        section[last] = value
    return Config.from_dict(values)


def option_names() -> tuple[str, ...]:
    """Returns the dotted names of all options."""
    names = []
    for field in dataclasses.fields(Config):
        section = typing.get_type_hints(Config)[field.name]
        if dataclasses.is_dataclass(section):
            names += [f"{field.name}.{inner.name}" for inner in dataclasses.fields(section)]
        else:
            names.append(field.name)
    return tuple(names)


def difference(ours: Config, theirs: Config) -> dict[str, tuple[Any, Any]]:
    """Returns the options in which two configs differ, as `{dotted name: (ours, theirs)}`."""

    def flat(config: Config) -> dict[str, Any]:
        values = config.to_dict()
        return {name: _lookup(values, name) for name in option_names()}

    mine, other = flat(ours), flat(theirs)
    return {name: (mine[name], other[name]) for name in mine if mine[name] != other[name]}


def preset_names() -> tuple[str, ...]:
    """Returns the names of all presets, the quickstart first."""
    names = sorted(p.name.removesuffix(".json") for p in _preset_folder().iterdir() if p.name.endswith(".json"))
    return tuple(sorted(names, key=lambda name: name != "quickstart"))


def load_preset(name: str) -> Config:
    """Returns the preset of that name.

    Raises:
        ConfigError: where there is none, with the nearest name.
    """
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(preset_names())}"
        raise ConfigError(f"there is no preset {name!r}; {hint}")
    values = json.loads((_preset_folder() / f"{name}.json").read_text(encoding="utf-8"))
    return Config.from_dict({"name": name, **values})


def _preset_folder() -> Any:
    return resources.files("tfdecouple") / "presets"


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, option_names(), n=1, cutoff=0.5)
    if not near:
        # Somebody who forgets the section types the bare name: find it in whichever section has it.
        near = [full for full in option_names() if full.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    hint = f"did you mean {near[0]}?" if near else "python train.py --help lists the sections"
    return f"there is no option {_shown(name)}; {hint}"


def _lookup(values: Mapping[str, Any], name: str) -> Any:
    value: Any = values
    for part in name.split("."):
        value = value[part]
    return value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _coerce(hint: Any, value: Any, name: str) -> Any:
    """Returns `value` as the type `hint`, or raises ConfigError; JSON lists become tuples."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast(type, hint), value, name + ".")
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _coerce(option, value, name)
            except ConfigError:
                continue
    elif origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_coerce(arguments[0], inner, f"{name}[{i}]") for i, inner in enumerate(value))
    elif hint is type(None):
        if value is None:
            return None
    elif hint in (int, float):
        if isinstance(value, int | float) and not isinstance(value, bool):
            # Not so for NaN either.
            _check(abs(value) <= _LARGEST[hint], f"{name} is {_shown(value)}; it must be at most {_LARGEST[hint]:.2g}")
            if hint is float or value == int(value):
                return hint(value)
    elif hint is str:
        if isinstance(value, str):
            # TensorFlow and file systems take neither.
            _check("\0" not in value, f"{name} is {_shown(value)}; it must not hold a NUL")
            _check(_is_unicode(value), f"{name} is {_shown(value)}, which is not UTF-8; rename what it names")
            return value
    elif isinstance(value, hint):
        return value
    raise ConfigError(f"{name} is {_shown(value)}; it must be {_describe(hint)}")


def _is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogate, as Python makes them of bytes that are not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in arguments)
    if origin is tuple:
        return f"a list of {_describe(arguments[0])}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, str(hint))
