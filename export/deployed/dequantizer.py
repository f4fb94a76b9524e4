"""The dequantisation as it is deployed: from an image and noise to the places u in the bins of its pixels."""

from __future__ import annotations

import dataclasses
from typing import Self

import tensorflow as tf

from export.deployed.deployed_encoder import DeployedBlock
from export.deployed.deployed_flow import DeployedFlow
from export.deployed.graph import Deployed, LogDets
from export.deployed.layout import Layout
from tfdecouple.bijectors import Sigmoid
from tfdecouple.networks.dequantizer import Dequantizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedDequantizer(Deployed):
    """q(u|x) of images in the layout of the graph.

    Attributes:
        blocks: of the network from images to maps, in their order.
        flow: from noise to u, but for the sigmoid.
        layout: of the images.
    """

    blocks: tuple[DeployedBlock, ...]
    flow: DeployedFlow
    layout: Layout

    @classmethod
    def from_layer(cls, dequantizer: Dequantizer, layout: Layout) -> Self:
        """Folds both networks."""
        blocks = dequantizer.encoder.blocks
        return cls(
            name="dequantizer",
            blocks=tuple(DeployedBlock.from_layer(one, f"dequantizer/encoder/{one.name}", layout) for one in blocks),
            flow=DeployedFlow.from_layer(dequantizer.flow, layout, "dequantizer/flow"),
            layout=layout,
        )

    def forward(self, x: tf.Tensor, noise: tf.Tensor, log_dets: LogDets) -> tf.Tensor:
        """Returns u of x in [-1, 1), without noise, and of normal noise; `log_dets` takes the log-determinants."""
        with self.scope():
            for block in self.blocks:
                x = block(x)
            y = self.flow.forward(noise, x, log_dets)
            u, log_det = Sigmoid().forward_and_log_det(y)
            log_dets.append(log_det)
            return u
