"""Images: where they come from, and batches of them for training and evaluation (paper appendix C.1).

>>> from tfdecouple.config import DataConfig
>>> source = open_source(DataConfig(source="photographs"), image_size=32)
>>> source.sizes
{'train': 32768, 'validation': 512, 'test': 1000}
"""

from tfdecouple.data.batches import (
    chosen_batches,
    evaluation_batches,
    load_images,
    own_share,
    steps_per_epoch,
    training_batches,
)
from tfdecouple.data.opening import crop_of_own_images, open_source
from tfdecouple.data.source import Source

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
