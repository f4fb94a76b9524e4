"""The config of a run: reading and writing as JSON, changes of single options, help texts of options, and presets.

A preset is a named config of this package, a JSON file in `tfdecouple/presets/`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import operator
import pathlib
import re
import typing
from collections.abc import Iterable, Mapping

from tfdecouple.config.model import ModelConfig
from tfdecouple.config.training import DataConfig, TrainingConfig
from tfdecouple.config.values import format_value, require, to_json_values, validate_options
from tfdecouple.errors import ConfigError, nearest
from tfdecouple.storage.files import Facts, parse_json, read_json

T = typing.TypeVar("T")

_PRESETS = pathlib.Path(__file__).parents[1] / "presets"

# Largest number of bytes of a config's name. A folder gets this name, and file systems accept 255 bytes.
_NAME_BYTES = 200
# Config files of more bytes are refused as damaged or malicious; usual files have some kilobytes.
_MOST_BYTES = 2**18
# Pattern of an entry in the Attributes of a docstring: "name: meaning" or "name, name: meaning", on one or more lines.
_ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", re.MULTILINE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The config of a run: model, data and training.

    >>> Config(name="mine").training.batch_size
    64

    Attributes:
        name: name of the preset, or a name that the user chose.
        description: one line that describes the config to users.
        notes: further lines for users: hardware, duration, how to shorten the run.
        model: options of the architecture.
        data: options of the images.
        training: options of the optimisation.
    """

    name: str = "custom"
    description: str = ""
    notes: str = ""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        """Raises ConfigError if no folder can have the config's name, because runs/NAME is the default run folder."""
        validate_options(self)
        name = self.name
        is_plain = name.isprintable() and name.strip(" .") == name and not set(name) & set('/\\:*?"<>|')
        require(
            is_plain and 0 < len(name.encode("utf-8", "replace")) <= _NAME_BYTES,
            f"name is {format_value(name)}; it must be the plain name of a folder, of 1 to {_NAME_BYTES} bytes: "
            'without slashes, control characters and any of :*?"<>|, without a dot or blank at its ends',
        )
        require(
            not self.training.contrast or self.model.has_encoder,
            f"training.contrast is {self.training.contrast:g}, but this model has no encoder, whose z of two crops the "
            "term would compare; leave training.contrast at 0",
        )

    def to_dict(self) -> Facts:
        """Returns this config as a nested dict of JSON values, by section and option."""
        return to_json_values(dataclasses.asdict(self))

    def to_json(self) -> str:
        """Returns this config as an indented JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def flatten_options(self) -> Facts:
        """Returns all options of this config in one dict: JSON values by dotted name, such as "model.latent_dim"."""
        values = self.to_dict()
        return {name: functools.reduce(operator.getitem, name.split("."), values) for name in list_option_names()}

    @classmethod
    def from_json(cls, path: str | pathlib.Path) -> Config:
        """Returns the config in a JSON file; raises ConfigError where the file is missing or holds no valid config."""
        try:
            values = read_json(path, _MOST_BYTES)
        except OSError as error:
            raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"the config {path} cannot be read: {error}") from error
        return parse_config(cls, values)

    def override(self, assignments: Iterable[str]) -> Config:
        """Returns a copy of this config with options changed by texts "NAME=VALUE"; a VALUE that is no JSON is text.

        >>> changed = Config().override(["model.latent_dim=32", "training.precision=tf32"])
        >>> changed.model.latent_dim, changed.training.precision
        (32, 'tf32')

        ConfigError is raised where an assignment is malformed, a name unknown or a value impossible.
        """
        values = self.to_dict()
        for assignment in assignments:
            name, separator, text = assignment.partition("=")
            if not separator:
                text = format_value(assignment)
                raise ConfigError(f"--set {text}: write it as NAME=VALUE, for example model.latent_dim=32")
            name = name.strip()
            if name not in list_option_names():
                raise make_unknown_option_error(name)
            try:
                value = parse_json(text)
            except ValueError:
                # `parse_json` refuses integers of over 64 bits. A float gets a clearer error: the value is too large.
                value = float(text) if text.isascii() and text.strip().removeprefix("-").isdecimal() else text
            section = values
            *path, last = name.split(".")
            for key in path:
                section = section[key]
            section[last] = value
        return parse_config(Config, values)


def parse_config(cls: type[T], values: Facts, prefix: str = "") -> T:
    """Returns an instance of the config class `cls` with the options in `values`; other options have their defaults.

    `values` has JSON values by name. ConfigError is raised for an unknown name, a wrong type or an impossible value; in
    its message `prefix`, such as "model.", stands before an option's name.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.') or 'the config'} is {format_value(values)}; it must be a JSON object")
    hints = typing.get_type_hints(cls)
    options = {}
    for key, value in values.items():
        if key not in hints:
            raise make_unknown_option_error(f"{prefix}{key}")
        is_section = dataclasses.is_dataclass(hints[key])
        options[key] = parse_config(hints[key], value, f"{prefix}{key}.") if is_section else value
    return cls(**options)


def make_unknown_option_error(name: str) -> ConfigError:
    """Returns the ConfigError for an unknown option; the message suggests the option with the most similar name."""
    # An option of the same name in any section is suggested first, because the user may have left out the section.
    same = [full for full in list_option_names() if full.rpartition(".")[2] == name.rpartition(".")[2]]
    similar = nearest(name, (*typing.get_type_hints(Config), *list_option_names()))
    hint = f"; did you mean {same[0]}?" if same else similar or "; tfdecouple explain describes all"
    return ConfigError(f"there is no option {format_value(name)}{hint}")


def list_option_names() -> tuple[str, ...]:
    """Returns the dotted names of all options, a tuple of texts such as "model.latent_dim"."""
    names = []
    for name, section in typing.get_type_hints(Config).items():
        is_section = dataclasses.is_dataclass(section)
        names += [f"{name}.{field.name}" for field in dataclasses.fields(section)] if is_section else [name]
    return tuple(names)


def describe_options() -> dict[str, str]:
    """Returns the help texts of all options by dotted name, each one line from the docstring of a config class.

    >>> describe_options()["model.steps"][:30]
    'flow steps of each level. The '
    """
    meanings: dict[str, str] = {}
    for prefix, cls in (("", Config), ("model.", ModelConfig), ("data.", DataConfig), ("training.", TrainingConfig)):
        for names, text in _ENTRY.findall(inspect.getdoc(cls) or ""):
            meanings |= {prefix + name: " ".join(text.split()) for name in names.split(", ")}
    return {name: meanings[name] for name in list_option_names()}


def compare_configs(ours: Config, theirs: Config) -> dict[str, tuple[object, object]]:
    """Returns the options in which two configs differ: a dict of pairs of values (ours, theirs) by dotted name."""
    others = theirs.flatten_options()
    return {name: (value, others[name]) for name, value in ours.flatten_options().items() if value != others[name]}


def preset_names() -> tuple[str, ...]:
    """Returns the names of all presets, the quickstart first.

    >>> preset_names()[0], "cifar10" in preset_names()
    ('quickstart', True)
    """
    names = [path.stem for path in _PRESETS.glob("*.json")]
    return tuple(sorted(names, key=lambda name: (name != "quickstart", name)))


def preset_config(name: str) -> Config:
    """Returns the config of a preset; for an unknown name raises ConfigError, which suggests the most similar preset.

    >>> preset_config("cifar10").model.latent_dim
    64
    """
    if name not in preset_names():
        hint = nearest(name, preset_names()) or f"; there are {', '.join(preset_names())}"
        raise ConfigError(f"there is no preset {name!r}{hint}")
    values = json.loads((_PRESETS / f"{name}.json").read_text(encoding="utf-8"))
    return parse_config(Config, {"name": name, **values})


def describe_config(config: Config) -> str:
    """Returns the name of a config, with the options of the model that differ from the preset of this name (if any).

    >>> describe_config(preset_config("quickstart").override(["model.latent_dim=64", "training.steps=5"]))
    'quickstart with model.latent_dim=64'
    """
    if config.name not in preset_names():
        return config.name
    changes = compare_configs(preset_config(config.name), config)
    texts = [f"{name}={json.dumps(ours)}" for name, (_, ours) in changes.items() if name.startswith("model.")]
    return f"{config.name} with {', '.join(texts)}" if texts else config.name
