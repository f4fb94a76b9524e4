"""Images: where they come from, and batches of them for training and evaluation (paper appendix C.1).

>>> from tfdecouple.config import DataConfig
>>> from tfdecouple.data import open_source
>>> source = open_source(DataConfig(source="photographs"), (32, 32, 3))
>>> source.sizes
{'train': 32768, 'validation': 512, 'test': 1000}
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfdecouple.data.batches import (
        chosen_batches,
        evaluation_batches,
        load_images,
        own_share,
        steps_per_epoch,
        training_batches,
    )
    from tfdecouple.data.source import Source
    from tfdecouple.data.sources import crop_of_own_images, open_source

# Names come from their modules at first use: the kinds of sources are listed before TensorFlow is imported.
_HOMES = {
    "Source": "source",
    "chosen_batches": "batches",
    "crop_of_own_images": "sources",
    "evaluation_batches": "batches",
    "load_images": "batches",
    "open_source": "sources",
    "own_share": "batches",
    "steps_per_epoch": "batches",
    "training_batches": "batches",
}

__all__ = [
    "Source",
    "chosen_batches",
    "crop_of_own_images",
    "evaluation_batches",
    "load_images",
    "open_source",
    "own_share",
    "steps_per_epoch",
    "training_batches",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tfdecouple.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tfdecouple.data.{_HOMES[name]}"), name)
