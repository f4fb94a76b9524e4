"""What is written of each image beside its key and its label."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

from tfdecouple.config import ModelConfig

# Where the label of an image is not known.
NO_LABEL = -1
# How unlike the training an image is, a number each: those of `tfdecouple.metrics.outliers`.
SCORES = ("bits_per_dim", "bits_per_dim_minus_codec", "prior_nats", "shell", "typicality")


@dataclasses.dataclass(frozen=True)
class Field:
    """One float32 array of each image.

    Attributes:
        name: "z", the posterior mean; "z_std", the posterior's standard deviation; "v", the local code; or of `SCORES`.
        shape: of one image; () for a single number.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def plain(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {"name": self.name, "dtype": "float32", "shape": list(self.shape)}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Field:
        """Builds a field from `plain()`'s values."""
        return cls(values["name"], tuple(values["shape"]))


def key_bytes(key: str) -> bytes:
    r"""Returns what is written of an image's name: UTF-8, which Parquet wants.

    >>> key_bytes("cats/7.png"), key_bytes("caf\udce9.png")
    (b'cats/7.png', b'caf\\xe9.png')
    """
    try:
        return key.encode()
    except UnicodeEncodeError:
        return os.fsencode(key).decode("utf-8", "backslashreplace").encode()


def chosen_fields(config: ModelConfig, *, v: bool, z_std: bool, scores: bool = False) -> tuple[Field, ...]:
    """Returns the fields of a model's codes: z where the model has one, and what is asked for besides."""
    latent = (config.latent_dim,)
    return (
        *([Field("z", latent)] if config.has_latent else []),
        *([Field("z_std", latent)] if z_std else []),
        *([Field("v", config.image_shape)] if v else []),
        *([Field(name, ()) for name in SCORES if name != "prior_nats" or config.has_encoder] if scores else []),
    )


def bytes_of(fields: Sequence[Field]) -> int:
    """Returns about how many bytes an image takes."""
    return 64 + sum(4 * field.size for field in fields)
