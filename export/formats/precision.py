"""Smaller ONNX files: the weights of the nets stored in fewer bits, the arithmetic still float32.

A coupling is inverted exactly whatever its net computes, as long as both directions compute the same. So the weights
of the coupling nets can be rounded, and the rounded encoder and decoder still belong together; only the 1x1
convolutions and their inverses must keep their digits. Activations are never rounded: in half precision an image does
not come back from its codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

PRECISIONS = ("float16", "int8")


def with_smaller_weights(
    model: onnx.ModelProto, precision: str, rounded: Mapping[str, Sequence[float] | None]
) -> onnx.ModelProto:
    """Returns a copy of a float32 model of which some weights are stored in a smaller type.

    ONNX Runtime widens them once, when it loads the file: they cost no time later.

    Args:
        model: a model of `build_onnx`.
        precision: "float16", or "int8" with one scale for each output channel.
        rounded: the weights and the sizes of their inputs, as `DeployedModel.may_be_rounded` gives them. Where there
            are sizes, it is each weight times the size of its input that is rounded.
    """
    smaller = onnx.ModelProto()
    smaller.CopyFrom(model)
    graph = smaller.graph
    readers = {name: node for node in graph.node for name in node.input}
    initializers, nodes = [], []
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        # A weight that is read in two orders of axes goes by its name and the order in one of them.
        name = next((name for name in (tensor.name, tensor.name.rpartition("/")[0]) if name in rounded), None)
        if name is None:
            initializers.append(tensor)
            continue
        convolves = readers[tensor.name].op_type == "Conv"
        stored = f"{tensor.name}/{precision}"
        factors: dict[str, np.ndarray] = {}
        if (sizes := rounded[name]) is not None:
            factors["inputs"] = 1 / np.array(sizes).reshape((1, -1, 1, 1) if convolves else (-1, 1))
            array = array / factors["inputs"]
        if precision == "float16":
            initializers.append(numpy_helper.from_array(array.astype(np.float16), stored))
        else:
            axis = 0 if convolves else array.ndim - 1
            largest = np.abs(array).max(axis=tuple({*range(array.ndim)} - {axis}), keepdims=True)
            scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
            initializers.append(numpy_helper.from_array(np.round(array / scale).astype(np.int8), stored))
            factors = {"scale": scale, **factors}
        # Widened, then multiplied by each factor; the last node gives the weight its name.
        wide = f"{tensor.name}/wide" if factors else tensor.name
        nodes.append(helper.make_node("Cast", [stored], [wide], f"{tensor.name}/widen", to=onnx.TensorProto.FLOAT))
        for number, (factor, values) in enumerate(factors.items(), 1):
            by = f"{tensor.name}/{factor}"
            made = tensor.name if number == len(factors) else f"{tensor.name}/wide_{number}"
            initializers.append(numpy_helper.from_array(values.astype(np.float32), by))
            nodes.append(helper.make_node("Mul", [wide, by], [made], f"{tensor.name}/rescale_{factor}"))
            wide = made
    nodes.extend(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(initializers)
    graph.node.extend(nodes)
    properties = {entry.key: entry.value for entry in smaller.metadata_props}
    helper.set_model_props(smaller, {**properties, "precision": precision})
    return smaller
