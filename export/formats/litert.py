"""LiteRT (TensorFlow Lite) files, for phones, by TensorFlow's own converter from a SavedModel of the endpoints."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from export.endpoints import Endpoint, Tensors
from tfdecouple.errors import UserError, one_line

if TYPE_CHECKING:
    from export.deployed.deployed_model import DeployedModel

# The name of the entry in a file's metadata that has its provenance as JSON.
METADATA = "tfdecouple"


def write_litert_files(
    deployed: DeployedModel,
    endpoints: Sequence[Endpoint],
    metadata: Mapping[str, str],
    folder: pathlib.Path,
    report: Callable[[str], Any],
) -> None:
    """Writes `NAME.tflite` into a folder for each endpoint, converted from a SavedModel that is deleted again.

    The files have built-in operations alone, in float32.

    Args:
        deployed: the model, in the order NHWC.
        endpoints: those that have a file, named by `Endpoint.onnx`.
        metadata: the provenance that each file states.
        folder: where the files go; it exists.
        report: called with a line of progress.

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
            # The converter refuses a graph that needs other operations.
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
    """Returns an endpoint whose files refuse inputs of other shapes.

    An interpreter resizes its inputs to any array, and no built-in operation checks a shape. A row that is
    appended and cut off again does, because arrays that are concatenated must agree in all other axes.
    """

    def build(deployed: DeployedModel, inputs: Tensors) -> dict[str, Any]:
        import tensorflow as tf

        rows = {array.name: tf.zeros((1, *array.shape), array.dtype) for array in endpoint.inputs}
        return endpoint.build(deployed, {name: tf.concat([inputs[name], row], 0)[:-1] for name, row in rows.items()})

    return dataclasses.replace(endpoint, build=build)


def _with_metadata(file: bytes, metadata: Mapping[str, str]) -> bytes:
    """Returns the bytes of a file with a further entry of metadata."""
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(file)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = json.dumps(dict(metadata)).encode()
    entry.name, entry.buffer = METADATA.encode(), len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
