"""The presets, which are named configs of this package, each in a JSON file in `tfdecouple/presets/`."""

from __future__ import annotations

import json
import pathlib

from tfdecouple.config.run import Config, difference
from tfdecouple.config.values import to_plain
from tfdecouple.errors import ConfigError, nearest

_PRESETS = pathlib.Path(__file__).parents[1] / "presets"


def preset_names() -> tuple[str, ...]:
    """Returns the names of all presets, the quickstart first.

    >>> preset_names()[0], "cifar10" in preset_names()
    ('quickstart', True)
    """
    names = [path.stem for path in _PRESETS.glob("*.json")]
    return tuple(sorted(names, key=lambda name: (name != "quickstart", name)))


def load_preset(name: str) -> Config:
    """Returns the config of the preset with this name; for an unknown name ConfigError has the nearest name.

    >>> load_preset("cifar10").model.latent_dim
    64
    """
    if name not in preset_names():
        hint = nearest(name, preset_names()) or f"; there are {', '.join(preset_names())}"
        raise ConfigError(f"there is no preset {name!r}{hint}")
    values = json.loads((_PRESETS / f"{name}.json").read_text(encoding="utf-8"))
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
