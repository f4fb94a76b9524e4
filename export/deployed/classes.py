"""What is deployed of a model's labels: their codes z, or the parts of the prior over z, and their probabilities."""

from __future__ import annotations

import dataclasses
from typing import Self

import numpy as np
import tensorflow as tf

from export.deployed.graph import Array, Deployed, rounded, values
from tfdecouple.model import DecoupledModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedClasses(Deployed):
    """A model's labels, of which each has a row in every array.

    Attributes:
        log_probabilities: log p(y), `[classes]`.
        codes: z where it is a function of the label, `[classes, d_z]`; else None.
        scale: that z is multiplied with before the flow of the prior, likewise; None where z is such a function.
        unscale: its reciprocal.
        shift: that is added after it.
        log_det: of both, `[classes]`.
    """

    log_probabilities: Array
    codes: Array | None = None
    scale: Array | None = None
    unscale: Array | None = None
    shift: Array | None = None
    log_det: Array | None = None

    @classmethod
    def from_model(cls, model: DecoupledModel) -> Self | None:
        """Folds what a model has of its labels; None for a model that knows none.

        Raises:
            InversionError: where a number is not finite.
        """
        if not model.config.has_classes:
            return None
        arrays = {"log_probabilities": values(model.class_log_probabilities)}
        if model.code_net is not None:
            arrays["codes"] = values(model.class_codes)
        if model.prior_affine is not None:
            log_scale = values(model.prior_affine.log_scale)
            arrays |= {
                "scale": np.exp(log_scale),
                "unscale": np.exp(-log_scale),
                "shift": values(model.prior_affine.shift),
                "log_det": log_scale.sum(1),
            }
        return cls(name="classes", **{name: rounded(f"classes/{name}", array) for name, array in arrays.items()})

    def of(self, array: Array, labels: tf.Tensor) -> tf.Tensor:
        """Returns the rows of labels `[batch]`."""
        with self.scope():
            # Read first: to gather from a variable is an operation with state.
            return tf.gather(tf.convert_to_tensor(array), labels)

    def moved(self, z: tf.Tensor) -> tf.Tensor:
        """Returns z `[batch, d_z]` as each label moves it, `[batch, classes, d_z]`."""
        with self.scope():
            return z[:, None] * self.scale + self.shift

    def moved_back(self, z: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Returns the z that its label, `[batch]`, has moved to this, `[batch, d_z]`."""
        shift, unscale = self.of(self.shift, labels), self.of(self.unscale, labels)
        with self.scope():
            return (z - shift) * unscale
