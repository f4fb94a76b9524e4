"""Weights that were trained already: those that come along, and those that others have published.

`python -m tfdecouple publish` makes a folder of them, which is a run folder with a manifest and a card (`published`):
a folder here comes along with the installation under its name, and on the Hugging Face Hub it is a model repository
(`hub`).
"""

from __future__ import annotations

import pathlib

BUNDLED = pathlib.Path(__file__).parents[1] / "pretrained"
# What begins the address of weights on the Hub.
HUB = "hf://"
# What commands take where no run is named.
DEFAULT = "photographs"


def pretrained_names() -> tuple[str, ...]:
    """Returns the names of the weights that come along.

    >>> pretrained_names()
    ('photographs',)
    """
    return tuple(sorted(path.parent.name for path in BUNDLED.glob("*/manifest.json")))


def folder_of(name: str) -> pathlib.Path | None:
    """Returns the folder of weights that come along or lie on the Hub; None where a name is neither.

    Args:
        name: such as "photographs", or an address `hf://OWNER/NAME[@REVISION]`.

    Raises:
        RunError: where the Hub does not have them, or other files than its manifest says.
        UntrustedError: where the manifest names files that are none of a run's weights.
        MissingPackageError: where the Hub's client is not installed.
    """
    if name.startswith(HUB):
        from tfdecouple.runs.hub import fetch

        return fetch(name)
    return BUNDLED / name if name in pretrained_names() else None
