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
    from tfdecouple.data.batches import (  # noqa: F401 - `__getattr__` imports these names for programs
        count_epoch_steps,
        load_images,
        make_evaluation_batches,
        make_training_batches,
        read_chosen_batches,
        slice_for_replicas,
    )
    from tfdecouple.data.sources import choose_user_crop, open_source  # noqa: F401
    from tfdecouple.data.splits import Source  # noqa: F401


def __getattr__(name: str) -> Any:
    # Modules are imported at first use, because help texts list the data sources and need no TensorFlow.
    for module in () if name.startswith("_") else ("sources", "batches"):
        home = importlib.import_module(f"tfdecouple.data.{module}")
        if hasattr(home, name):
            return getattr(home, name)
    raise AttributeError(f"module 'tfdecouple.data' has no attribute {name!r}")
