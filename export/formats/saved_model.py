"""The writer of a SavedModel with endpoints as signatures, and of the files for TensorFlow Serving beside it."""

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

# Prefix of the name of each variable; the name of the weight follows, with points for slashes.
PREFIX = "folded/"
_DEFAULT = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY

Kind = TypeVar("Kind", bound=Deployed)


def save_saved_model(
    deployed: DeployedModel,
    endpoints: Sequence[Endpoint],
    folder: pathlib.Path,
    report: Callable[[str], Any] = lambda name: None,
) -> None:
    """Writes a SavedModel of a model in the order NHWC into a new folder, with endpoints as its signatures.

    The first endpoint is also the signature `serving_default`. `report` receives the name of each endpoint when it is
    traced. The deployed weights are variables, so that all signatures share them and the size limit of a graph does not
    apply. A full disk raises OSError or tf.errors.OpError.
    """
    # The variables are plain TensorFlow variables, because the variables of a Keras layer would be written twice.
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
    # The functions are traced here once; `keras.export.ExportArchive` would trace them a second time.
    signatures = {endpoint.name: _function(shared, endpoint, report) for endpoint in endpoints}
    for name, function in signatures.items():
        setattr(module, name, function)
    # Gradients are left out, because pixels have none and tracing the gradients of all bijectors takes long.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(folder), {**signatures, _DEFAULT: signatures[endpoints[0].name]}, options)


def _function(
    shared: DeployedModel, endpoint: Endpoint, report: Callable[[str], Any]
) -> tf.types.experimental.ConcreteFunction:
    def call(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        report(endpoint.name)
        # Shapes are checked in the graph, because a server does not check them, and a wrong rank would end its process.
        given = zip(specs, inputs, strict=True)
        checked = {one.name: tf.ensure_shape(tensor, one.shape, f"shape_of_{one.name}") for one, tensor in given}
        with tf.control_dependencies(checked.values()):
            named = {name: tf.identity(tensor) for name, tensor in checked.items()}
        return endpoint.build(_read(shared), named)

    specs = [array.spec() for array in endpoint.inputs]
    return tf.function(call, input_signature=specs, autograph=False).get_concrete_function()


def _read(stored: Kind) -> Kind:
    """Returns a copy of a stored layer in which the values of the variables replace the variables."""
    return stored.with_arrays(lambda name, variable: tf.convert_to_tensor(variable))


class _Shared:
    """An object whose methods are a layer's methods as graph functions, traced and written once for all signatures."""

    def __init__(self, stored: Deployed, *methods: str):
        def share(method: str) -> Any:
            return tf.function(lambda *inputs: getattr(_read(stored), method)(*inputs), autograph=False)

        vars(self).update({method: share(method) for method in methods})


WARMUP_FILE = pathlib.Path("assets.extra", "tf_serving_warmup_requests")

# Folder of templates for the settings of a server, in which MODEL_NAME stands for the model's name.
SETTINGS = pathlib.Path(__file__).parents[1] / "serving"


def write_warmup(folder: pathlib.Path, name: str, endpoints: Sequence[Endpoint]) -> None:
    """Writes warm-up requests into a SavedModel, which TensorFlow Serving runs before it offers the version.

    Without them the first real request of each signature would wait while TensorFlow optimises its graph. `name` is the
    name of the model, from `make_safe_name`.
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
    """Writes the settings of TensorFlow Serving for a model into a folder: three .config files, docker-compose.yml."""
    for file in sorted(SETTINGS.iterdir()):
        write_text(folder / file.name, file.read_text(encoding="utf-8").replace("MODEL_NAME", name))
