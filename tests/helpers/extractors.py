"""Feature extractors for tests of the Fréchet distance; their features are the mean colour of an image."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from helpers.evaluations import compute_metric
from tfdecouple.metrics.frechet import FrechetDistance


def write_onnx(
    path, *, dtype=TensorProto.UINT8, shape=("n", "h", "w", 3), keep_dims=0, outputs=("features",), divide_by=1.0
):
    """Writes an ONNX extractor whose shape[-1] features are the mean colour of an image; returns the path."""
    nodes = [
        helper.make_node("Cast", ["images"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["values", "divisor"], ["scaled"]),
        *(
            helper.make_node("ReduceMean", ["scaled", "axes"], [output], keepdims=keep_dims, name=output)
            for output in outputs
        ),
    ]
    features = [shape[0], 1, 1, shape[-1]] if keep_dims else [shape[0], shape[-1]]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("images", dtype, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, features) for output in outputs],
        [
            helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
            helper.make_tensor("divisor", TensorProto.FLOAT, [], [divide_by]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


def colours(images):
    """Returns the features that the extractors compute for images, float64 `[n, channels]`."""
    return images.mean((1, 2), dtype=np.float64)


def frechet_result(model, source, extractor, **options):
    """Returns the result of `evaluate --frechet` for 40 samples at temperature 0.7."""
    options = {"frechet_images": 40, "temperature": 0.7, "batch_size": 16, **options}
    return compute_metric(FrechetDistance, model, source, frechet=extractor, **options)
