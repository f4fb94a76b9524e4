"""The config of a run: reading and writing as JSON, changes of single options, and the meanings of all options."""

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
from typing import Any

from tfdecouple.config.data import DataConfig
from tfdecouple.config.model import ModelConfig
from tfdecouple.config.training import TrainingConfig
from tfdecouple.config.values import build_config, check_fields, format_value, require, to_plain, unknown_option
from tfdecouple.errors import ConfigError
from tfdecouple.storage.files import parse_json, read_json

T = typing.TypeVar("T")

# Largest number of bytes of a name, which becomes the name of a folder; file systems take 255 bytes with endings.
_NAME_BYTES = 200
# Largest number of bytes of a config's file; a real config has some kilobytes.
_MOST_BYTES = 2**18
# Pattern of "name: meaning" or "name, name: meaning" in the Attributes of a docstring.
_ENTRY = re.compile(r"(\w+(?:, \w+)*): (.*)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The config of a run: model, data and training.

    >>> from tfdecouple.config import load_preset
    >>> config = load_preset("cifar10")
    >>> config.model.latent_dim, config.training.batch_size
    (64, 512)
    >>> override(config, ["model.latent_dim=32"]).model.latent_dim
    32

    Attributes:
        name: name of the preset, or another name.
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
        """Raises ConfigError if no folder can have the config's name, because runs/NAME is the default run folder."""
        check_fields(self)
        name = self.name
        is_plain = name.isprintable() and name.strip(" .") == name and not set(name) & set('/\\:*?"<>|')
        require(
            is_plain and 0 < len(name.encode("utf-8", "replace")) <= _NAME_BYTES,
            f"name is {format_value(name)}; it must be the plain name of a folder, of 1 to {_NAME_BYTES} bytes: "
            'without slashes, control characters and any of :*?"<>|, without a dot or blank at its ends',
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the config as a dict of plain JSON values."""
        return to_plain(dataclasses.asdict(self))

    def to_json(self) -> str:
        """Returns the config as indented JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def options(self) -> dict[str, Any]:
        """Returns the value of every option by its dotted name, as plain JSON values."""
        values = self.to_dict()
        return {name: functools.reduce(operator.getitem, name.split("."), values) for name in option_names()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Returns the config with the options in a dict of plain JSON values; absent options take their defaults.

        Raises:
            ConfigError: where a name is unknown (the message has the nearest name), a type wrong or a value impossible.
        """
        return from_plain(cls, values)

    @classmethod
    def from_json(cls, path: str | pathlib.Path) -> Config:
        """Returns the config in a JSON file; absent options take their defaults.

        Raises:
            ConfigError: where the file is missing or no JSON, a name is unknown, or a value impossible.
        """
        try:
            values = read_json(path, _MOST_BYTES)
        except OSError as error:
            raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"the config {path} cannot be read: {error}") from error
        return cls.from_dict(values)


def from_plain(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Returns an instance of the config class `cls`, whose options begin with `prefix`, from plain JSON values.

    Raises:
        ConfigError: where a name is unknown, a type wrong or a value impossible.
    """
    return build_config(cls, values, option_names(), prefix)


def override(config: Config, assignments: Iterable[str]) -> Config:
    """Returns a config with single options changed.

    >>> from tfdecouple.config import load_preset
    >>> changed = override(load_preset("cifar10"), ["model.latent_dim=32", "training.precision=tf32"])
    >>> changed.model.latent_dim, changed.training.precision
    (32, 'tf32')

    Args:
        config: the config to start from.
        assignments: texts such as `"model.latent_dim=32"`, with JSON on the right side; anything else there is a text.

    Raises:
        ConfigError: where an assignment is malformed, a name unknown or a value impossible.
    """
    values = config.to_dict()
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(
                f"--set {format_value(assignment)}: write it as NAME=VALUE, for example model.latent_dim=32"
            )
        name = name.strip()
        if name not in option_names():
            raise unknown_option(name, option_names())
        try:
            value = parse_json(text)
        except ValueError:
            # A number beyond 64 bits becomes a float, so that the error says it is too large.
            value = float(text) if text.strip().removeprefix("-").isdecimal() else text
        section = values
        *path, last = name.split(".")
        for key in path:
            section = section[key]
        section[last] = value
    return Config.from_dict(values)


def option_names() -> tuple[str, ...]:
    """Returns the dotted names of all options, such as "model.latent_dim"."""
    names = []
    for name, section in typing.get_type_hints(Config).items():
        is_section = dataclasses.is_dataclass(section)
        names += [f"{name}.{field.name}" for field in dataclasses.fields(section)] if is_section else [name]
    return tuple(names)


def describe_options() -> dict[str, str]:
    """Returns the meaning of each option by its dotted name, as one line of plain text from the docstrings.

    >>> describe_options()["model.steps"][:30]
    'steps of flow per level. The f'
    """
    meanings = {}
    for name in option_names():
        section, _, option = name.rpartition(".")
        cls = typing.get_type_hints(Config)[section] if section else Config
        meanings[name] = _read_attributes(cls)[option]
    return meanings


@functools.cache
def _read_attributes(cls: type) -> dict[str, str]:
    """Returns the meanings by name in the Attributes section of a class's docstring."""
    _, _, section = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    attributes: dict[str, str] = {}
    names: list[str] = []
    for line in section.partition("\n\n")[0].splitlines():
        entry = _ENTRY.fullmatch(line.strip()) if line.startswith("    ") and line[4] != " " else None
        if entry:
            names = entry[1].split(", ")
            attributes |= dict.fromkeys(names, entry[2])
        else:
            attributes |= {name: f"{attributes[name]} {line.strip()}" for name in names}
    return attributes


def difference(ours: Config, theirs: Config) -> dict[str, tuple[Any, Any]]:
    """Returns the values `(ours, theirs)` of the options in which two configs differ, by dotted name."""
    mine, other = ours.options(), theirs.options()
    return {name: (mine[name], other[name]) for name in mine if mine[name] != other[name]}
