"""The SavedModel: every endpoint as a signature."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tensorflow as tf

from export.deployed.deployed_encoder import DeployedEncoder
from export.deployed.deployed_flow import DeployedFlow
from export.deployed.deployed_model import DeployedModel
from export.deployed.graph import Deployed, LogDets
from export.endpoint import Endpoint

# Of the names of the variables; the rest is the weight's own, with points for slashes.
PREFIX = "folded/"
_DEFAULT = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY

Kind = TypeVar("Kind", bound=Deployed)


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
    module = tf.Module()
    module.folded = list(stored.arrays().values())
    shared = dataclasses.replace(
        stored,
        flow=_SharedFlow(stored.flow),  # type: ignore[arg-type]
        encoder=None if stored.encoder is None else _SharedEncoder(stored.encoder),  # type: ignore[arg-type]
    )
    # Concrete functions: `keras.export.ExportArchive` tracks what can be traced, and saving then traces it all again.
    signatures = {endpoint.name: _function(shared, endpoint, progress) for endpoint in endpoints}
    for name, function in signatures.items():
        setattr(module, name, function)
    # Pixels have no gradients; those of the bijectors would be traced once for each place that uses them.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(folder), {**signatures, _DEFAULT: signatures[endpoints[0].name]}, options)


def _function(
    shared: DeployedModel, endpoint: Endpoint, progress: Callable[[str], Any]
) -> tf.types.experimental.ConcreteFunction:
    def call(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        progress(endpoint.name)
        # A server's session checks no shapes, and a convolution ends the process at a wrong rank.
        given = zip(specs, inputs, strict=True)
        checked = {one.name: tf.ensure_shape(tensor, one.shape, f"shape_of_{one.name}") for one, tensor in given}
        with tf.control_dependencies(checked.values()):
            named = {name: tf.identity(tensor) for name, tensor in checked.items()}
        return endpoint.build(_read(shared), named)

    specs = [array.spec() for array in endpoint.inputs]
    return tf.function(call, input_signature=specs, autograph=False).get_concrete_function()


def _read(stored: Kind) -> Kind:
    """Returns a layer of what its variables hold, to compute with."""
    return stored.replaced(lambda name, variable: tf.convert_to_tensor(variable))


class _SharedFlow:
    """The flow, each direction a function of the graph that is traced and written once for all signatures.

    Args:
        flow: of variables.
    """

    def __init__(self, flow: DeployedFlow):
        self._flow, self.parts = flow, flow.parts
        self._forward = tf.function(lambda x, z: _read(flow).forward(x, z), autograph=False)
        self.inverse = tf.function(lambda v, z: _read(flow).inverse(v, z), autograph=False)

    def forward(self, x: tf.Tensor, z: tf.Tensor | None, log_dets: LogDets | None = None) -> tf.Tensor:
        """Maps x to v; with log-determinants, which one signature wants, in a graph of its own."""
        return self._forward(x, z) if log_dets is None else _read(self._flow).forward(x, z, log_dets)


class _SharedEncoder:
    """The encoder, a function of the graph for all signatures.

    Args:
        encoder: of variables.
    """

    def __init__(self, encoder: DeployedEncoder):
        self.scope = encoder.scope
        self._call = tf.function(lambda x: _read(encoder)(x), autograph=False)

    def __call__(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mean and log-variance of z."""
        return self._call(x)
