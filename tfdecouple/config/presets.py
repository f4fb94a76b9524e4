"""The presets, which are named configs of this package, each in a JSON file in `tfdecouple/presets/`."""

from __future__ import annotations

import difflib
import json
from importlib import resources
from typing import Any

from tfdecouple.config.run import Config, difference
from tfdecouple.config.values import to_plain
from tfdecouple.errors import ConfigError


def preset_names() -> tuple[str, ...]:
    """Returns the names of all presets, the quickstart first.

    >>> preset_names()[0], "cifar10" in preset_names()
    ('quickstart', True)
    """
    names = sorted(p.name.removesuffix(".json") for p in _preset_folder().iterdir() if p.name.endswith(".json"))
    return tuple(sorted(names, key=lambda name: name != "quickstart"))


def load_preset(name: str) -> Config:
    """Returns the config of the preset with this name.

    >>> load_preset("cifar10").model.latent_dim
    64

    Raises:
        ConfigError: where the name is unknown; the message has the nearest name.
    """
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(preset_names())}"
        raise ConfigError(f"there is no preset {name!r}; {hint}")
    values = json.loads((_preset_folder() / f"{name}.json").read_text(encoding="utf-8"))
    return Config.from_dict({"name": name, **values})


def describe_config(config: Config) -> str:
    """Returns a text with the name of a run's preset and the model's options that differ from the preset.

    >>> from tfdecouple.config import override
    >>> describe_config(override(load_preset("quickstart"), ["model.latent_dim=64", "training.steps=5"]))
    'quickstart with model.latent_dim=64'
    """
    if config.name not in preset_names():
        return config.name
    changes = difference(load_preset(config.name), config)
    texts = [f"{name}={json.dumps(to_plain(ours))}" for name, (_, ours) in changes.items() if name.startswith("model.")]
    return f"{config.name} with {', '.join(texts)}" if texts else config.name


def _preset_folder() -> Any:
    return resources.files("tfdecouple") / "presets"
