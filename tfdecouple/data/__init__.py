"""Data sets of images and labels, and functions that make training and evaluation batches of them (appendix C.1).

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
        count_epoch_steps,
        load_images,
        make_evaluation_batches,
        make_training_batches,
        read_chosen_batches,
        slice_for_replicas,
    )
    from tfdecouple.data.sources import choose_user_crop, open_source
    from tfdecouple.data.splits import Source

__all__ = [
    "Source",
    "read_chosen_batches",
    "choose_user_crop",
    "make_evaluation_batches",
    "load_images",
    "open_source",
    "slice_for_replicas",
    "count_epoch_steps",
    "make_training_batches",
]


def __getattr__(name: str) -> Any:
    # Help texts import this package to list the data sources; importing modules at first use spares them TensorFlow.
    for module in ("sources", "batches") if name in __all__ else ():
        home = importlib.import_module(f"tfdecouple.data.{module}")
        if hasattr(home, name):
            return getattr(home, name)
    raise AttributeError(f"module 'tfdecouple.data' has no attribute {name!r}")
