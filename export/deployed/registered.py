"""A layer of `tfdecouple/step_layers.py` as it is deployed: arrays, and the bijector that training uses."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import tensorflow as tf

from export.deployed.graph import Array, Deployed, LogDets, rounded, values
from export.deployed.layout import Layout
from tfdecouple.bijectors import forward_and_log_det
from tfdecouple.layers import RegisteredLayer
from tfdecouple.step_layers import STEP_LAYERS


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedWeight(Deployed):
    """A weight of a registered layer.

    Attributes:
        value: the array.
    """

    value: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedRegistered(Deployed):
    """A registered layer. Its bijector takes the channels last, whatever the order of axes in the graph.

    Attributes:
        kind: its name in `STEP_LAYERS`: any that is registered can be exported.
        weights: its weights, in their order.
        layout: of the images.
    """

    kind: str
    weights: tuple[DeployedWeight, ...]
    layout: Layout

    @classmethod
    def from_layer(cls, layer: RegisteredLayer, name: str, layout: Layout) -> Self:
        """Makes it from a layer of the model."""
        weights = (
            DeployedWeight(name=f"{name}/{key}", value=rounded(f"{name}/{key}", values(weight)))
            for key, weight in layer.by_name.items()
        )
        return cls(name=name, kind=layer.kind, weights=tuple(weights), layout=layout)

    def forward(self, x: tf.Tensor, conditions: Any = None, log_dets: LogDets | None = None) -> tf.Tensor:
        """Maps x towards v."""
        with self.scope():
            x = self.layout.leave(x)
            if log_dets is None:
                return self.layout.enter(self._bijector().forward(x))
            y, log_det = forward_and_log_det(self._bijector(), x)
            log_dets.append(log_det)
            return self.layout.enter(y)

    def inverse(self, y: tf.Tensor, conditions: Any = None) -> tf.Tensor:
        """Maps v towards x."""
        with self.scope():
            return self.layout.enter(self._bijector().inverse(self.layout.leave(y)))

    def _bijector(self) -> Any:
        own = {weight.name.rpartition("/")[2]: tf.convert_to_tensor(weight.value) for weight in self.weights}
        return STEP_LAYERS[self.kind].bijector(own)
