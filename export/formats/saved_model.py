"""The SavedModel: every endpoint as a signature of one `keras.export.ExportArchive`."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from export.deployed.model import DeployedModel
from export.endpoint import Endpoint

# Of the names of the variables; the rest is the weight's own, with points for slashes.
PREFIX = "folded/"


def save_saved_model(
    deployed: DeployedModel,
    endpoints: Sequence[Endpoint],
    folder: pathlib.Path,
    progress: Callable[[str], Any] = lambda name: None,
) -> None:
    """Writes a SavedModel.

    The deployed weights are variables, so that all signatures share them and no limit of a graph's size holds for them;
    what is derived from weights, as the inverses of the 1x1 convolutions, is among them and not computed again.

    Args:
        deployed: the model, in the order NHWC, which TensorFlow runs on every device.
        endpoints: the signatures; the first is `serving_default` as well.
        folder: where to; it must not exist.
        progress: called with the name of each endpoint when it is traced; the files are written after the last.

    Raises:
        OSError, tf.errors.OpError: where the disk is full or the folder cannot be written.
    """
    # Plain variables: those of a Keras layer would be written twice.
    stored = deployed.replaced(
        lambda name, array: tf.Variable(array, trainable=False, name=f"{PREFIX}{name.replace('/', '.')}")
    )
    archive = keras.export.ExportArchive()
    for endpoint in endpoints:
        archive.add_endpoint(
            name=endpoint.name,
            fn=_function(stored, endpoint, progress),
            input_signature=[array.spec() for array in endpoint.inputs],
        )
    archive.write_out(str(folder), verbose=False)


def _function(
    stored: DeployedModel, endpoint: Endpoint, progress: Callable[[str], Any]
) -> Callable[..., dict[str, tf.Tensor]]:
    def call(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        progress(endpoint.name)
        named = {array.name: tensor for array, tensor in zip(endpoint.inputs, inputs, strict=True)}
        return endpoint.build(stored.replaced(lambda name, variable: tf.convert_to_tensor(variable)), named)

    return call
