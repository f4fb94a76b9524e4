"""What holds for the smaller variants of the ONNX files: the float32 file with its weights rounded, and nothing else.

How far their codes are from those of float32 depends on the model and is measured, not judged. What is judged is
exact: every weight is the float32 file's to within the rounding of its type, and the operations are the float32 file's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from export.verification.arrays import Arrays, Report, difference
from export.verification.weights import digest

# Images that a variant encodes and decodes.
_IMAGES = 64
_PIXELS = 64 * 32 * 32


def weights(model: onnx.ModelProto, whole: onnx.ModelProto, precision: str) -> Iterator[str]:
    """Compares a variant with the float32 file.

    Args:
        model: the variant.
        whole: the float32 file.
        precision: "float16" or "int8".

    Yields:
        What is wrong, to follow the name of the file.
    """
    widened, nodes = _widened(model)
    expected = {tensor.name: tensor for tensor in whole.graph.initializer}
    kept = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in expected}
    if missing := sorted({*expected} - {*kept} - {*widened}):
        yield f"lacks weight {missing[0]} of the float32 file"
        return
    for name, tensor in kept.items():
        if digest(numpy_helper.to_array(tensor)) != digest(numpy_helper.to_array(expected[name])):
            yield f"has other numbers in {name} than the float32 file, and not in fewer bits"
    for name, array in widened.items():
        if name not in expected:
            yield f"has a weight {name} that the float32 file does not have"
            continue
        right = numpy_helper.to_array(expected[name]).astype(np.float64)
        if array.shape != right.shape:
            yield f"has weight {name} of shape {list(array.shape)} where the float32 file has {list(right.shape)}"
        elif not np.all(np.abs(array - right) <= _rounding(model, name, right, precision)):
            off = float(np.nan_to_num(np.abs(array - right), nan=np.inf).max())
            yield f"has weight {name} off by {off:.1e} from the float32 file, more than {precision} rounds it"
    if [node.SerializeToString() for node in nodes] != [node.SerializeToString() for node in whole.graph.node]:
        yield "computes something else than the float32 file"


def _widened(model: onnx.ModelProto) -> tuple[dict[str, np.ndarray], list[onnx.NodeProto]]:
    """Returns the weights that are stored in a smaller type, as float32, and the nodes behind them."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, np.ndarray] = {}
    nodes = list(model.graph.node)
    while nodes and nodes[0].op_type in ("Cast", "Mul"):
        node = nodes[0]
        if node.op_type == "Cast" and node.input[0] in stored:
            found[node.output[0]] = numpy_helper.to_array(stored[node.input[0]]).astype(np.float32)
        elif node.op_type == "Mul" and node.input[0] in found and node.input[1] in stored:
            wide = found.pop(node.input[0])
            found[node.output[0]] = wide * numpy_helper.to_array(stored[node.input[1]])
        else:
            break
        nodes.pop(0)
    return found, nodes


def _rounding(model: onnx.ModelProto, name: str, right: np.ndarray, precision: str) -> Any:
    """How far rounding may move each number of a weight."""
    factors = [numpy_helper.to_array(t) for t in model.graph.initializer if t.name == f"{name}/inputs"]
    inputs = factors[0].astype(np.float64) if factors else np.float64(1)
    right = right / inputs
    if precision == "float16":
        # Half a unit of the last of 11 bits; below 2**-14 of the smallest.
        return inputs * (np.abs(right) * (2.0**-11 + 2.0**-23) + 2.0**-25)
    readers = {given: node for node in model.graph.node for given in node.input}
    axis = 0 if readers[name].op_type == "Conv" else right.ndim - 1
    others = tuple(other for other in range(right.ndim) if other != axis)
    # Half a step of 127 to the largest of each output channel, and what float32 adds to it.
    return inputs * (np.abs(right).max(axis=others, keepdims=True) / 127 * 0.5 * (1 + 1e-5) + 1e-12)


def measure(
    report: Report,
    precision: str,
    full: Callable[[str, Arrays], Arrays],
    small: Callable[[str, Arrays], Arrays],
    cases: Arrays,
) -> dict[str, object]:
    """Measures what the card says of a variant, and refuses codes that are no numbers.

    Args:
        report: takes the problems.
        precision: its name.
        full: the float32 files.
        small: the variant's.
        cases: of the gate.
    """
    size = cases["real"].shape[1]
    images = cases["real"][: max(1, min(_IMAGES, _PIXELS // size**2))]
    inputs = {"images": images}
    if "labels/real" in cases:
        inputs["labels"] = cases["labels/real"][: len(images)]
    codes, own = full("encode", inputs), small("encode", inputs)
    if not all(np.all(np.isfinite(array)) for array in own.values()):
        report.problems.append(f"the {precision} encoder returns codes that are not finite")
        return {}
    paths = small.paths  # type: ignore[attr-defined]
    sizes = {path.name: path.stat().st_size for path in paths.values()}
    return {
        "images": len(images),
        "round_trip": difference(small("decode", own)["images"], images),
        "decoding_float32_codes": difference(small("decode", codes)["images"], images),
        "codes": {name: difference(own[name], codes[name]) for name in codes},
        "bytes": sizes,
    }
