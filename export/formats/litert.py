"""The writer of LiteRT (TensorFlow Lite) files for phones, which TensorFlow converts from a SavedModel.

No other module calls the converter. If TensorFlow drops it, the package litert-converter, which converts StableHLO, can
replace it: `tf.function.experimental_get_compiler_ir(...)(stage="stablehlo_serialized")` gives an endpoint's StableHLO.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from typing import TYPE_CHECKING

from export import LOG
from export.endpoints import Array, Arrays, Endpoint
from tfdecouple.errors import UserError, one_line
from tfdecouple.numerics.arithmetic import get_sizes

if TYPE_CHECKING:
    from export.exported_model import EndpointFunctions, ExportedModel


def write_litert_files(exported: ExportedModel, folder: pathlib.Path) -> dict[str, str]:
    """Writes a float32 LiteRT file for each endpoint that has a file into a new folder; returns {endpoint: its name}.

    TensorFlow converts the files from a temporary SavedModel. UserError is raised if an endpoint needs more than
    LiteRT's built-in operations.
    """
    import tensorflow as tf

    from export.formats.saved_model import save_saved_model

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
        import tensorflow as tf

        def check_shape(array: Array) -> tf.Tensor:
            tensor = inputs[array.name]
            row_shape = [1, *get_sizes(tensor)[1 : 1 + len(array.free)], *array.shape[len(array.free) :]]
            return tf.concat([tensor, tf.zeros(row_shape, array.dtype)], 0)[:-1]

        return endpoint.answer(answers, {array.name: check_shape(array) for array in endpoint.inputs})

    return dataclasses.replace(endpoint, answer=answer)
