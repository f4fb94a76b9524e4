"""The SavedModel, with every endpoint as a signature, and the files that TensorFlow Serving reads beside it."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from export.deployed.deployed_model import DeployedModel
from export.deployed.graph import Deployed
from export.endpoints import Endpoint
from tfdecouple.storage.files import write_text

# The name of a variable is this prefix and the name of the weight, with points for slashes.
PREFIX = "folded/"
_DEFAULT = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY

Kind = TypeVar("Kind", bound=Deployed)


def save_saved_model(
    deployed: DeployedModel,
    endpoints: Sequence[Endpoint],
    folder: pathlib.Path,
    report: Callable[[str], Any] = lambda name: None,
) -> None:
    """Writes a SavedModel that has endpoints as its signatures.

    The deployed weights are variables, so that all signatures share them and no limit of a graph's size holds for them.

    Args:
        deployed: the model, in the order NHWC, which TensorFlow runs on every device.
        endpoints: the signatures; the first is `serving_default` as well.
        folder: where to; it must not exist.
        report: called with the name of each endpoint when it is traced; the files are written after the last.

    Raises:
        OSError, tf.errors.OpError: if the disk is full or the folder cannot be written.
    """
    # The variables are plain ones, because those of a Keras layer would be written twice.
    stored = deployed.with_arrays(
        lambda name, array: tf.Variable(array, trainable=False, name=f"{PREFIX}{name.replace('/', '.')}")
    )
    module = tf.Module()
    module.folded = list(stored.arrays().values())
    shared = copy.copy(stored)
    shared.flow = _Shared(stored.flow, "forward", "forward_and_log_det", "inverse")  # type: ignore[assignment]
    shared.flow.parts = stored.flow.parts  # type: ignore[method-assign]
    if stored.encoder is not None:
        shared.encoder = _Shared(stored.encoder, "infer")  # type: ignore[assignment]
    # The functions are traced here once; `keras.export.ExportArchive` would trace them again when it saves them.
    signatures = {endpoint.name: _function(shared, endpoint, report) for endpoint in endpoints}
    for name, function in signatures.items():
        setattr(module, name, function)
    # Pixels have no gradients, and those of the bijectors would be traced once for each place that uses them.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(folder), {**signatures, _DEFAULT: signatures[endpoints[0].name]}, options)


def _function(
    shared: DeployedModel, endpoint: Endpoint, report: Callable[[str], Any]
) -> tf.types.experimental.ConcreteFunction:
    def call(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        report(endpoint.name)
        # A server's session checks no shapes, and a convolution ends the process at a wrong rank.
        given = zip(specs, inputs, strict=True)
        checked = {one.name: tf.ensure_shape(tensor, one.shape, f"shape_of_{one.name}") for one, tensor in given}
        with tf.control_dependencies(checked.values()):
            named = {name: tf.identity(tensor) for name, tensor in checked.items()}
        return endpoint.build(_read(shared), named)

    specs = [array.spec() for array in endpoint.inputs]
    return tf.function(call, input_signature=specs, autograph=False).get_concrete_function()


def _read(stored: Kind) -> Kind:
    """Returns a layer with the values of its variables, to compute with."""
    return stored.with_arrays(lambda name, variable: tf.convert_to_tensor(variable))


class _Shared:
    """Methods of a layer as functions of the graph, which are traced and written once for all signatures."""

    def __init__(self, stored: Deployed, *methods: str):
        def share(method: str) -> Any:
            return tf.function(lambda *inputs: getattr(_read(stored), method)(*inputs), autograph=False)

        vars(self).update({method: share(method) for method in methods})


WARMUP_FILE = pathlib.Path("assets.extra", "tf_serving_warmup_requests")

# The settings of a server, with MODEL_NAME for the model's name.
SETTINGS = pathlib.Path(__file__).parents[1] / "serving"


def write_warmup(folder: pathlib.Path, name: str, endpoints: Sequence[Endpoint]) -> None:
    """Writes requests into a SavedModel that TensorFlow Serving runs before it calls a version available.

    Without them the first real request of each signature waits while TensorFlow optimises its graph.

    Args:
        folder: of the SavedModel, before it gets the name under which a server would find it.
        name: from `make_safe_name`.
        endpoints: the SavedModel's; the first is `serving_default` as well, whose graph is a copy of its own.

    Raises:
        OSError, tf.errors.OpError: if the disk is full or the folder cannot be written.
    """
    path = folder / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    signatures = [("serving_default", endpoints[0]), *((endpoint.name, endpoint) for endpoint in endpoints)]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, endpoint in signatures:
            writer.write(_request(name, signature, endpoint).SerializeToString())


def _request(name: str, signature: str, endpoint: Endpoint) -> prediction_log_pb2.PredictionLog:
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = name, signature
    rng = np.random.default_rng(0)
    for array in endpoint.inputs:
        request.inputs[array.name].CopyFrom(tf.make_tensor_proto(array.make_example(rng)))
    return log


def write_serving_files(folder: pathlib.Path, name: str) -> None:
    """Writes models.config, batching.config, monitoring.config and docker-compose.yml.

    Args:
        folder: of the export; the SavedModel's versions are in its folder `savedmodel`.
        name: from `make_safe_name`.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    for file in sorted(SETTINGS.iterdir()):
        write_text(folder / file.name, file.read_text(encoding="utf-8").replace("MODEL_NAME", name))
