"""Smaller ONNX files: the weights of the nets stored in fewer bits, the arithmetic still float32.

A coupling is inverted exactly whatever its net computes, as long as both directions compute the same. So the weights
of the coupling nets can be rounded, and the rounded encoder and decoder still belong together; only the 1x1
convolutions and their inverses must keep their digits. Activations are never rounded: in half precision an image does
not come back from its codes.
"""

from __future__ import annotations

import re

import numpy as np
import onnx
from onnx import helper, numpy_helper

PRECISIONS = ("float16", "int8")
# Kernels of coupling nets, encoder and whitening; biases are few, the 1x1 convolutions (mix, unmix) stay as they are.
_NETS = re.compile(r".*/(first|second|last|top|shortcut|condition)(/\d+)?")


def with_smaller_weights(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Returns a copy of a float32 model whose net weights are stored in a smaller type.

    ONNX Runtime widens them once, when it loads the file: they cost no time later.

    Args:
        model: a model of `build_onnx`.
        precision: "float16", or "int8" with one scale for each output channel.
    """
    smaller = onnx.ModelProto()
    smaller.CopyFrom(model)
    graph = smaller.graph
    readers = {name: node for node in graph.node for name in node.input}
    initializers, nodes = [], []
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim < 2 or not _NETS.fullmatch(tensor.name):
            initializers.append(tensor)
            continue
        stored = f"{tensor.name}/{precision}"
        if precision == "float16":
            initializers.append(numpy_helper.from_array(array.astype(np.float16), stored))
            nodes.append(
                helper.make_node("Cast", [stored], [tensor.name], f"{tensor.name}/widen", to=onnx.TensorProto.FLOAT)
            )
            continue
        output_axis = 0 if readers[tensor.name].op_type == "Conv" else array.ndim - 1
        others = tuple(axis for axis in range(array.ndim) if axis != output_axis)
        scale = np.abs(array).max(axis=others, keepdims=True) / 127
        scale = np.where(scale > 0, scale, 1).astype(np.float32)
        initializers.append(numpy_helper.from_array(np.round(array / scale).astype(np.int8), stored))
        initializers.append(numpy_helper.from_array(scale, f"{tensor.name}/scale"))
        wide, scale_name = f"{tensor.name}/wide", f"{tensor.name}/scale"
        nodes.append(helper.make_node("Cast", [stored], [wide], f"{tensor.name}/widen", to=onnx.TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [wide, scale_name], [tensor.name], f"{tensor.name}/rescale"))
    nodes.extend(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(initializers)
    graph.node.extend(nodes)
    properties = {entry.key: entry.value for entry in smaller.metadata_props}
    helper.set_model_props(smaller, {**properties, "precision": precision})
    return smaller
