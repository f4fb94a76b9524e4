"""The gate's process for LiteRT files: `python -m export.verification.check_litert FOLDER CASES REPORT OPTIONS`.

Without TensorFlow: it uses the files as a phone will, by the interpreter of the package ai-edge-litert.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from export.formats.litert import METADATA
from export.verification.arrays import Arrays, Report, answers_in, group, images_tried, reason, run_check
from export.verification.weights import by_name, digest
from tfdecouple.runtime.progress import Lines
from tfdecouple.runtime.settings import cores

# Operations that answer otherwise each time, or compute one thing for some inputs and another for others; and those
# that are not the interpreter's own.
_NOT_OF_A_FUNCTION = {
    "CALL", "CALL_ONCE", "CUSTOM", "IF", "MULTINOMIAL", "RANDOM_STANDARD_NORMAL", "RANDOM_UNIFORM", "WHILE",
}  # fmt: skip
_OPERATIONS = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int) and name[0] != "_"
}


_TYPES = {schema.TensorType.UINT8: "uint8", schema.TensorType.INT32: "int32", schema.TensorType.FLOAT32: "float32"}
# The share of the numbers in a file's weights that must be the run's to the last bit.
_MOSTLY = 0.75


class LiteRTFiles:
    """The endpoints of a folder of LiteRT files.

    Args:
        paths: of the files, by endpoints.
        progress: is told of each call.
    """

    def __init__(self, paths: Mapping[str, pathlib.Path], progress: Lines | None = None):
        self._paths, self._progress = paths, progress
        self._runners: dict[str, Any] = {}

    def __call__(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Runs an endpoint."""
        if endpoint not in self._runners:
            interpreter = Interpreter(model_path=str(self._paths[endpoint]), num_threads=cores())
            self._runners[endpoint] = interpreter.get_signature_runner(endpoint)
        made = self._runners[endpoint](**inputs)
        if self._progress is not None:
            self._progress.advance(len(next(iter(inputs.values()))))
        return made


def check(
    folder: pathlib.Path,
    cases: Arrays,
    names: dict[str, str],
    metadata: dict[str, str],
    tell: Callable[[str], Any] = print,
) -> Report:
    """Checks the files of a folder.

    Args:
        folder: holds the LiteRT files.
        cases: of the gate.
        names: of the files, without suffix, by endpoints.
        metadata: what every file must say of itself.
        tell: is told how far this is.
    """
    report = Report(notes={"ai-edge-litert": importlib.metadata.version("ai-edge-litert")})
    paths = {endpoint: folder / f"{name}.tflite" for endpoint, name in names.items()}
    if strange := sorted({path.name for path in folder.iterdir()} - {path.name for path in paths.values()}):
        report.problems.append(f"{', '.join(strange)} is compared with nothing")
    for endpoint, path in paths.items():
        try:
            problems = list(_file_problems(path.read_bytes(), endpoint, cases, metadata))
        except Exception as error:  # noqa: BLE001 - whatever is raised by what is no file of this format
            problems = [f"is not a LiteRT file: {reason(error)}"]
        report.problems += [f"{path.name} {problem}" for problem in problems]
    if not report.problems:
        files = LiteRTFiles(paths, Lines(tell, images_tried(cases, len(names))))
        report.check_files(names, files, cases)
        report.measure_latencies(names, files, cases)
    return report


def _file_problems(content: bytes, endpoint: str, cases: Arrays, metadata: Mapping[str, str]) -> Iterator[str]:
    """Yields what is wrong with a file by itself: signature, operations, origin, weights."""
    if content[4:8] != b"TFL3":
        yield "is not a LiteRT file: its identifier is missing"
        return
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    if len(model.subgraphs) != 1 or len(model.signatureDefs or ()) != 1:
        yield f"has {len(model.subgraphs)} graphs and {len(model.signatureDefs or ())} signatures; expected one"
        return
    graph, (signature,) = model.subgraphs[0], model.signatureDefs
    yield from _signature(graph, signature, endpoint, cases)
    used = {_OPERATIONS.get(max(code.builtinCode, code.deprecatedBuiltinCode), "?") for code in model.operatorCodes}
    if foreign := sorted(used & {*_NOT_OF_A_FUNCTION, "?"}):
        yield f"has {', '.join(foreign)}: not a function of built-in operations alone"
    said = _said(model)
    for key, value in {**metadata, "endpoint": endpoint}.items():
        if said.get(key) != value:
            yield f"says {key} {said.get(key)!r} where the run has {value!r}"
    yield from _weights(model, graph, set(by_name(cases["weights/NHWC"]).values()))


def _signature(graph: Any, signature: Any, endpoint: str, cases: Arrays) -> Iterator[str]:
    if signature.signatureKey != endpoint.encode():
        yield f"has the signature {signature.signatureKey.decode()} where {endpoint} was exported"
    answers = {name: answer.right for name, answer in answers_in(cases, endpoint).items()}
    for values, expected in ((signature.inputs, group(cases, f"in/{endpoint}/")), (signature.outputs, answers)):
        found = {value.name.decode(): graph.tensors[value.tensorIndex] for value in values}
        if set(found) != set(expected):
            yield f"has {sorted(found)} where {endpoint} has {sorted(expected)}"
            continue
        for name, array in expected.items():
            tensor = found[name]
            shape = list(tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature)
            kind = _TYPES.get(tensor.type)
            if shape != [-1, *array.shape[1:]] or kind != str(array.dtype):
                yield f"has {name} as {kind} {shape}"


def _said(model: Any) -> dict[str, str]:
    """Returns what a file says of its origin."""
    for entry in model.metadata or ():
        if entry.name == METADATA.encode():
            return json.loads(bytes(model.buffers[entry.buffer].data))
    return {}


def _weights(model: Any, graph: Any, known: set[str]) -> Iterator[str]:
    """Compares the arrays of the file with the folded ones.

    The converter divides 1 by what the graph divides by, and multiplies some arrays into the ones before them: these
    are held by the answers alone.
    """
    every, ours = 0, 0
    for name, array in arrays_of(model, graph):
        if not np.isfinite(array).all():
            yield f"has numbers in weight {name} that are not finite"
        # A convolution without a bias is given one of zeros.
        if array.any():
            every += array.size
            ours += array.size * any(digest(form) in known for form in _forms(array))
    if ours < _MOSTLY * every:
        yield f"has {every} numbers in its weights, of which {ours} alone are as the run has them"


def arrays_of(model: Any, graph: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and values of all constant arrays of floats."""
    for tensor in graph.tensors:
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data) and tensor.type == schema.TensorType.FLOAT32 and np.prod(tensor.shape) > 1:
            yield tensor.name.decode(), np.frombuffer(bytes(data), np.float32).reshape(tensor.shape)


def _forms(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yields an array as the run may have it: in other orders of axes, with and without axes of one."""
    plain = array.reshape([side for side in array.shape if side != 1])
    for order in itertools.permutations(range(plain.ndim)):
        turned = plain.transpose(order)
        yield turned
        for ones in ((1, 1), (1,)):
            yield turned.reshape(*ones, *turned.shape)
    for order in itertools.permutations(range(array.ndim)):
        yield array.transpose(order)


if __name__ == "__main__":
    sys.exit(run_check(check, sys.argv[1:]))
