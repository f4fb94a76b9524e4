"""LiteRT (TensorFlow Lite) files, for phones, by TensorFlow's own converter from a SavedModel of the endpoints."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from export.endpoints import Endpoint, Tensors
from export.formats.file_formats import FileFormat, Sources, zeros
from tfdecouple.errors import UserError, one_line

if TYPE_CHECKING:
    from export.deployed.deployed_model import DeployedModel

# Of the entry in a file's metadata that tells its origin, as JSON.
METADATA = "tfdecouple"


class LiteRT(FileFormat):
    """Files of built-in operations alone, in float32."""

    name = "litert"
    title = "LiteRT"
    suffix = ".tflite"
    layout = "NHWC"
    packages = ("ai_edge_litert",)

    def write(self, sources: Sources, folder: pathlib.Path) -> None:
        """Converts each endpoint, by way of a SavedModel of them that is not kept.

        Raises:
            UserError: where one needs more than LiteRT's built-in operations.
        """
        import tensorflow as tf

        from export.formats.saved_model import save_saved_model

        with tempfile.TemporaryDirectory(dir=sources.area) as scratch:
            made = pathlib.Path(scratch, "savedmodel")
            save_saved_model(sources.deployed(self.layout), [*map(_checking_shapes, sources.endpoints)], made)
            for endpoint in sources.endpoints:
                sources.say(f"LiteRT: {endpoint.onnx}")
                converter = tf.lite.TFLiteConverter.from_saved_model(str(made), signature_keys=[endpoint.name])
                # The converter itself refuses what these cannot say.
                converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
                try:
                    converted = converter.convert()
                except Exception as error:
                    raise UserError(
                        f"{endpoint.name} cannot be converted to LiteRT: {one_line(error, first=True)}; "
                        "leave the format litert out"
                    ) from error
                said = {**sources.metadata, "endpoint": endpoint.name}
                (folder / f"{endpoint.onnx}{self.suffix}").write_bytes(_with_metadata(converted, said))

    def calls(self, endpoints: Mapping[str, Any]) -> list[str]:
        """Returns how Python calls the files; Java, Kotlin, Swift and C++ have the same signatures."""
        given = ", ".join(f"{one['name']}={zeros(one)}" for one in endpoints["encode"]["inputs"])
        codes = ", ".join(f'{one["name"]}=codes["{one["name"]}"]' for one in endpoints["decode"]["inputs"])
        return [
            "Python, with numpy and ai-edge-litert:",
            "",
            "```python",
            "import numpy as np",
            "from ai_edge_litert.interpreter import Interpreter",
            "",
            'encoder = Interpreter("litert/encoder.tflite").get_signature_runner()',
            'decoder = Interpreter("litert/decoder.tflite").get_signature_runner()',
            f"codes = encoder({given})",
            f'same = decoder({codes})["images"]',
            "```",
            "",
        ]


FORMAT = LiteRT()


def _checking_shapes(endpoint: Endpoint) -> Endpoint:
    """Returns an endpoint whose files refuse inputs of other shapes.

    An interpreter resizes inputs to whatever it is given, and no built-in operation checks a shape alone. A row that
    is appended and cut off again does: what is concatenated must agree in all other axes.
    """

    def build(deployed: DeployedModel, inputs: Tensors) -> dict[str, Any]:
        import tensorflow as tf

        rows = {array.name: tf.zeros((1, *array.shape), array.dtype) for array in endpoint.inputs}
        return endpoint.build(deployed, {name: tf.concat([inputs[name], row], 0)[:-1] for name, row in rows.items()})

    return dataclasses.replace(endpoint, build=build)


def _with_metadata(file: bytes, metadata: Mapping[str, str]) -> bytes:
    """Returns a file that also says where it comes from."""
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(file)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = json.dumps(dict(metadata)).encode()
    entry.name, entry.buffer = METADATA.encode(), len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
