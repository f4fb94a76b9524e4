"""The writer of a SavedModel with endpoints as signatures, and of the settings of TensorFlow Serving."""

from __future__ import annotations

import copy
import pathlib
import types
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from export.deployed.deployed_model import DeployedModel
from export.deployed.graph import Deployed
from export.endpoints import Endpoint
from export.formats import WARMUP_FILE
from tfdecouple.storage.files import write_text

# Each folded weight is a variable of the SavedModel, named by this prefix and the weight's name, "." replacing "/".
PREFIX = "folded/"
_DEFAULT = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
# Folder of templates for the settings of TensorFlow Serving; they contain MODEL_NAME for the name of the model.
SETTINGS = pathlib.Path(__file__).parents[1] / "serving"

Kind = TypeVar("Kind", bound=Deployed)


def save_saved_model(
    deployed: DeployedModel,
    endpoints: Sequence[Endpoint],
    folder: pathlib.Path,
    report: Callable[[str], Any] = lambda name: None,
) -> None:
    """Writes a SavedModel into the new folder `folder`, with each endpoint as a signature.

    `deployed` is the model with folded weights, in the layout NHWC. The first endpoint is also the signature
    `serving_default`. `report` is called with an endpoint's name when the endpoint is traced. The weights of `deployed`
    are stored as variables, so that all signatures share them and the size limit of a graph does not apply. A full disk
    raises OSError or tf.errors.OpError.
    """
    # The variables are plain TensorFlow variables, because a SavedModel would contain a Keras layer's twice.
    stored = deployed.replace_arrays(
        lambda name, array: tf.Variable(array, trainable=False, name=f"{PREFIX}{name.replace('/', '.')}")
    )
    module = tf.Module()
    module.folded = list(stored.collect_arrays().values())
    shared = copy.copy(stored)
    shared.flow = _share_methods(stored.flow, "forward_and_log_det", "inverse")
    shared.flow.split_v = stored.flow.split_v  # type: ignore[method-assign]
    if stored.encoder is not None:
        shared.encoder = _share_methods(stored.encoder, "infer_posterior")
    # The functions are traced here once; `keras.export.ExportArchive` would trace them a second time.
    signatures = {endpoint.name: _trace_endpoint(shared, endpoint, report) for endpoint in endpoints}
    for name, function in signatures.items():
        setattr(module, name, function)
    # Gradients are left out, because uint8 images have none and tracing the gradients of all bijectors takes long.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(folder), {**signatures, _DEFAULT: signatures[endpoints[0].name]}, options)
    # TensorFlow makes a folder for files that the graph reads, of which this one has none.
    (folder / "assets").rmdir()


def _trace_endpoint(
    shared: DeployedModel, endpoint: Endpoint, report: Callable[[str], Any]
) -> tf.types.experimental.ConcreteFunction:
    def build_graph(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        report(endpoint.name)
        # Shapes are checked in the graph, because a server does not check them, and a wrong rank would end its process.
        pairs = zip(specs, inputs, strict=True)
        checked = {spec.name: tf.ensure_shape(tensor, spec.shape, f"shape_of_{spec.name}") for spec, tensor in pairs}
        with tf.control_dependencies(checked.values()):
            named = {name: tf.identity(tensor) for name, tensor in checked.items()}
        return endpoint.build(_read_variables(shared), named)

    specs = [array.make_tensor_spec() for array in endpoint.inputs]
    return tf.function(build_graph, input_signature=specs, autograph=False).get_concrete_function()


def _read_variables(stored: Kind) -> Kind:
    return stored.replace_arrays(lambda name, variable: tf.convert_to_tensor(variable))


def _share_methods(stored: Deployed, *methods: str) -> Any:
    """Returns an object with `methods`, names of methods of `stored`, as `tf.function`s that are traced only once."""

    def share_method(method: str) -> Any:
        return tf.function(lambda *inputs: getattr(_read_variables(stored), method)(*inputs), autograph=False)

    return types.SimpleNamespace(**{method: share_method(method) for method in methods})


def write_warmup_requests(folder: pathlib.Path, name: str, endpoints: Sequence[Endpoint]) -> None:
    """Writes warm-up requests into a SavedModel: for each signature one request, whose inputs are zeros.

    TensorFlow Serving runs them before it offers the SavedModel, so that the first real request of a signature need not
    wait until TensorFlow has optimised the graph. `name` is the name of the model, from `make_safe_name`.
    """
    path = folder / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, endpoint in [(_DEFAULT, endpoints[0]), *((endpoint.name, endpoint) for endpoint in endpoints)]:
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name, request.model_spec.signature_name = name, signature
            for array in endpoint.inputs:
                zeros = tf.make_tensor_proto(np.zeros((1, *array.shape), array.dtype))
                request.inputs[array.name].CopyFrom(zeros)
            writer.write(log.SerializeToString())


def write_serving_files(folder: pathlib.Path, name: str) -> None:
    """Writes settings of TensorFlow Serving for the model `name`: three .config files and docker-compose.yml."""
    for file in sorted(SETTINGS.iterdir()):
        write_text(folder / file.name, file.read_text(encoding="utf-8").replace("MODEL_NAME", name))
