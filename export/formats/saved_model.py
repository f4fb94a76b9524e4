"""The writers of a SavedModel, of the settings of TensorFlow Serving, and of LiteRT files, made from a SavedModel."""

import dataclasses
import pathlib
import re
import tempfile
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from export import LOG
from export.endpoint_functions import EndpointFunctions
from export.endpoints import Array, Arrays, Endpoint
from export.exported_model import ExportedModel
from export.formats.runtimes import WARMUP_FILE
from tfdecouple.errors import UserError, one_line
from tfdecouple.numerics.arithmetic import get_sizes
from tfdecouple.storage.files import write_text

# Each folded weight is a variable of the SavedModel, named by this prefix and the weight's name, "." replacing "/".
PREFIX = "folded/"
_DEFAULT = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
# Folder of templates for the settings of TensorFlow Serving; they contain MODEL_NAME for the name of the model.
SETTINGS = pathlib.Path(__file__).parents[1] / "serving"


def save_saved_model(exported: ExportedModel, endpoints: Sequence[Endpoint], folder: pathlib.Path) -> None:
    """Writes a SavedModel into the new folder `folder`, with each endpoint as a signature.

    The first endpoint is also the signature `serving_default`. The weights of `exported` are stored as variables, so
    that all signatures share them and the size limit of a graph does not apply.
    """
    # The variables are plain TensorFlow variables, because a SavedModel would contain a Keras layer's twice.
    module = tf.Module()
    stored = {
        name: tf.Variable(array, trainable=False, name=f"{PREFIX}{re.sub('[^A-Za-z0-9_.-]', '.', name)}")
        for name, array in exported.collect_arrays().items()
    }
    module.folded = list(stored.values())
    answers = exported.make_answers(lambda name: tf.convert_to_tensor(stored[name]), shared=True)
    signatures = {endpoint.name: _trace_endpoint(answers, endpoint) for endpoint in endpoints}
    for name, function in signatures.items():
        setattr(module, name, function)
    # Gradients are left out, because uint8 images have none and tracing the gradients of all bijectors takes long.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(folder), {**signatures, _DEFAULT: signatures[endpoints[0].name]}, options)
    # TensorFlow makes a folder for files that the graph reads, of which this one has none.
    (folder / "assets").rmdir()


def _trace_endpoint(answers: EndpointFunctions, endpoint: Endpoint) -> tf.types.experimental.ConcreteFunction:
    def build_graph(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        LOG.info("SavedModel: %s", endpoint.name)
        # Shapes are checked in the graph, because a server does not check them, and a wrong rank would end its process.
        pairs = zip(specs, inputs, strict=True)
        checked = {spec.name: tf.ensure_shape(tensor, spec.shape, f"shape_of_{spec.name}") for spec, tensor in pairs}
        batches = [tf.shape(tensor)[0] for tensor in checked.values()]
        checks = [
            tf.debugging.assert_equal(batch, batches[0], "the inputs have batches of different shapes")
            for batch in batches[1:]
        ]
        with tf.control_dependencies([*checked.values(), *checks]):
            named = {name: tf.identity(tensor) for name, tensor in checked.items()}
        return endpoint.answer(answers, named)

    specs = [array.make_tensor_spec() for array in endpoint.inputs]
    return tf.function(build_graph, input_signature=specs, autograph=False).get_concrete_function()


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


def write_litert_files(exported: ExportedModel, folder: pathlib.Path) -> dict[str, str]:
    """Writes a float32 LiteRT file for each endpoint that has a file into a new folder; returns {endpoint: its name}.

    TensorFlow converts the files from a temporary SavedModel. UserError is raised if an endpoint needs more than
    LiteRT's built-in operations.
    """
    folder.mkdir()
    endpoints = [endpoint for endpoint in exported.endpoints if endpoint.onnx]
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        saved = pathlib.Path(scratch, "savedmodel")
        save_saved_model(exported, [*map(_add_shape_checks, endpoints)], saved)
        for endpoint in endpoints:
            LOG.info("LiteRT: %s", endpoint.onnx)
            converter = tf.lite.TFLiteConverter.from_saved_model(str(saved), signature_keys=[endpoint.name])
            # With this setting the converter raises an error for a graph that needs more than built-in operations.
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
            try:
                converted = converter.convert()
            except Exception as error:
                raise UserError(
                    f"{endpoint.name} cannot be converted to LiteRT: {one_line(error, first=True)}; "
                    "leave the format litert out"
                ) from error
            (folder / f"{endpoint.onnx}.tflite").write_bytes(converted)
    return {endpoint.name: str(endpoint.onnx) for endpoint in endpoints}


def _add_shape_checks(endpoint: Endpoint) -> Endpoint:
    """Returns `endpoint` with a graph that raises an error for inputs of the wrong shape.

    LiteRT's interpreter resizes its inputs to any array, and no built-in operation checks a shape. So the graph appends
    a row of the right shape to each input and cuts it off again: concatenated arrays must have equal shapes apart from
    the batch axis. Axes of any size are not checked.
    """

    def answer(answers: EndpointFunctions, inputs: Arrays) -> Arrays:
        def check_shape(array: Array) -> tf.Tensor:
            tensor = inputs[array.name]
            row_shape = [1, *get_sizes(tensor)[1 : 1 + len(array.free)], *array.shape[len(array.free) :]]
            return tf.concat([tensor, tf.zeros(row_shape, array.dtype)], 0)[:-1]

        return endpoint.answer(answers, {array.name: check_shape(array) for array in endpoint.inputs})

    return dataclasses.replace(endpoint, answer=answer)
