"""The writer of LiteRT (TensorFlow Lite) files for phones, which TensorFlow converts from a SavedModel."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from export.endpoints import Array, Endpoint, Tensors
from tfdecouple.errors import UserError, one_line
from tfdecouple.runtime.numerics import sizes

if TYPE_CHECKING:
    from export.deployed.deployed_model import DeployedModel

# Name of the metadata entry of a file that has the provenance as JSON.
METADATA = "tfdecouple"


def write_litert_files(
    deployed: DeployedModel,
    endpoints: Sequence[Endpoint],
    metadata: Mapping[str, str],
    folder: pathlib.Path,
    report: Callable[[str], Any],
) -> None:
    """Writes a LiteRT file for each endpoint into a folder, as `NAME.tflite`, with built-in operations in float32.

    `deployed` has the order NHWC, and `Endpoint.onnx` is the name of a file. The files are converted from a temporary
    SavedModel.

    Raises:
        UserError: if an endpoint needs more than LiteRT's built-in operations.
    """
    import tensorflow as tf

    from export.formats.saved_model import save_saved_model

    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        saved = pathlib.Path(scratch, "savedmodel")
        save_saved_model(deployed, [*map(_with_shape_checks, endpoints)], saved)
        for endpoint in endpoints:
            report(f"LiteRT: {endpoint.onnx}")
            converter = tf.lite.TFLiteConverter.from_saved_model(str(saved), signature_keys=[endpoint.name])
            # The converter then raises an error for a graph that needs operations outside this set.
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
            try:
                converted = converter.convert()
            except Exception as error:
                raise UserError(
                    f"{endpoint.name} cannot be converted to LiteRT: {one_line(error, first=True)}; "
                    "leave the format litert out"
                ) from error
            stated = {**metadata, "endpoint": endpoint.name}
            (folder / f"{endpoint.onnx}.tflite").write_bytes(_with_metadata(converted, stated))


def _with_shape_checks(endpoint: Endpoint) -> Endpoint:
    """Returns an endpoint whose files raise an error for inputs of the wrong shape.

    An interpreter resizes its inputs to any array, and no built-in operation checks a shape. So a row is appended to
    each input and cut off again: concatenated arrays must have equal shapes apart from the batch axis. Free axes take
    their size from the input.
    """

    def build(deployed: DeployedModel, inputs: Tensors) -> dict[str, Any]:
        import tensorflow as tf

        def check(array: Array) -> tf.Tensor:
            given = inputs[array.name]
            row = [1, *sizes(given)[1 : 1 + len(array.free)], *array.shape[len(array.free) :]]
            return tf.concat([given, tf.zeros(row, array.dtype)], 0)[:-1]

        return endpoint.build(deployed, {array.name: check(array) for array in endpoint.inputs})

    return dataclasses.replace(endpoint, build=build)


def _with_metadata(file: bytes, metadata: Mapping[str, str]) -> bytes:
    """Returns the bytes of a LiteRT file with a further metadata entry, which has `metadata` as JSON."""
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(file)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = json.dumps(dict(metadata)).encode()
    entry.name, entry.buffer = METADATA.encode(), len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
