"""The gate's process for ONNX files: `python -m export.verification.check_onnx FOLDER CASES REPORT OPTIONS`.

Without TensorFlow: it uses the files as their users will: by the ONNX checker, by ONNX Runtime, by nothing else.
"""

from __future__ import annotations

import concurrent.futures
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from export.verification.arrays import Arrays, Report, answers_in, group, images_tried, run_check
from export.verification.weights import by_name, same
from tfdecouple.errors import one_line
from tfdecouple.runtime.progress import Lines
from tfdecouple.runtime.settings import cores

# What runtimes of all kinds read: `export.formats.onnx` writes no other.
_OPSET, _IR_VERSION = 18, 8
# Operations that answer otherwise each time, or compute one thing for some inputs and another for others.
_NOT_OF_A_FUNCTION = {
    "Bernoulli", "Dropout", "If", "Loop", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike", "Scan", "SequenceMap",
}  # fmt: skip
# Operations that take shapes, places or axes beside what they compute with.
_OF_SHAPES = {
    "ConstantOfShape", "Expand", "Gather", "GatherElements", "GatherND", "Pad", "ReduceL2", "ReduceLogSumExp",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Reshape", "Resize", "Slice",
    "Split", "Squeeze", "Tile", "TopK", "Unsqueeze",
}  # fmt: skip
# What lets a provider compute in full float32; without it images do not come back.
_PROVIDER_OPTIONS = {
    "CUDAExecutionProvider": {"use_tf32": "0"},
    "TensorrtExecutionProvider": {"trt_fp16_enable": "0"},
    "OpenVINOExecutionProvider": {"precision": "FP32"},
}


class OnnxFiles:
    """The endpoints of a folder of ONNX files.

    Args:
        folder: where the files lie.
        names: of the files, without suffix, by endpoints.
        provider: of ONNX Runtime, which computes.
        progress: is told of each call.
        threads: of each operation; 0 for as many as ONNX Runtime takes by itself.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        names: Mapping[str, str],
        provider: str = "CPUExecutionProvider",
        progress: Lines | None = None,
        threads: int = 0,
    ):
        self.paths = {endpoint: folder / f"{name}.onnx" for endpoint, name in names.items()}
        self._provider, self._progress, self._threads, self._lock = provider, progress, threads, threading.Lock()
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def session(self, endpoint: str) -> onnxruntime.InferenceSession:
        """Returns the session of an endpoint, opened when it is first asked for."""
        with self._lock:
            if endpoint not in self._sessions:
                self._sessions[endpoint] = session(str(self.paths[endpoint]), self._provider, self._threads)
            return self._sessions[endpoint]

    def __call__(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Runs an endpoint."""
        opened = self.session(endpoint)
        names = [output.name for output in opened.get_outputs()]
        made = dict(zip(names, opened.run(names, inputs), strict=True))
        if self._progress is not None:
            with self._lock:
                self._progress.advance(len(next(iter(inputs.values()))))
        return made


def session(
    model: str | bytes, provider: str = "CPUExecutionProvider", threads: int = 0
) -> onnxruntime.InferenceSession:
    """Opens a model with one provider, in full float32; 0 threads are as many as ONNX Runtime takes by itself."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    providers = [(provider, _PROVIDER_OPTIONS.get(provider, {}))]
    return onnxruntime.InferenceSession(model, options, providers=providers)


def check(
    folder: pathlib.Path,
    cases: Arrays,
    names: dict[str, str],
    metadata: dict[str, str],
    provider: str = "CPUExecutionProvider",
    tell: Callable[[str], Any] = print,
) -> Report:
    """Checks the files of a folder.

    Args:
        folder: holds the ONNX files.
        cases: of the gate.
        names: of the files, without suffix, by endpoints.
        metadata: what every file must say of itself.
        provider: of ONNX Runtime, which computes.
        tell: is told how far this is.
    """
    report = Report(notes={"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__})
    progress = Lines(tell, images_tried(cases, len(names)))
    # Two calls side by side leave no core waiting; each takes half of the threads.
    at_once = 2 if provider == "CPUExecutionProvider" and cores() > 1 else 1
    files = OnnxFiles(folder, names, provider=provider, progress=progress, threads=cores() // 2 if at_once > 1 else 0)
    stems = [f"{name}.onnx" for name in names.values()]
    strange = {path.name for path in folder.iterdir()} - {*stems, *(f"{stem}.data" for stem in stems)}
    if strange:
        report.problems.append(f"{', '.join(sorted(strange))} is compared with nothing")
    for endpoint in names:
        _check_file(report, endpoint, files.paths[endpoint], cases, metadata)
    if report.problems:
        return report
    if provider not in files.session("encode").get_providers():
        report.notes["unavailable"] = provider
        return report
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        report.check_files(names, files, cases, pool.map)
    if report.problems:
        return report
    # As those open them who have nothing else to run; the others make room.
    files = OnnxFiles(folder, names, provider=provider, progress=progress)
    report.measure_latencies(names, files, cases)
    return report


def _check_file(report: Report, endpoint: str, path: pathlib.Path, cases: Arrays, metadata: Mapping[str, str]) -> None:
    """What holds for a file by itself: valid ONNX, inputs and outputs, batch free, origin, weights."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path))
    except Exception as error:  # noqa: BLE001 - the checker raises what it likes; all of it means: not this file
        report.problems.append(f"{path.name} is not valid ONNX: {one_line(error, first=True)}")
        return
    problems = [*_signature(model, endpoint, cases), *_operations(model)]
    said = {entry.key: entry.value for entry in model.metadata_props}
    for key, value in {**metadata, "endpoint": endpoint}.items():
        if said.get(key) != value:
            problems.append(f"says {key} {said.get(key)!r} where the run has {value!r}")
    problems += wrong_weights(model, by_name(cases["weights/NCHW"]))
    report.problems += [f"{path.name} {problem}" for problem in problems]


def _signature(model: onnx.ModelProto, endpoint: str, cases: Arrays) -> Iterator[str]:
    answers = {name: answer.right for name, answer in answers_in(cases, endpoint).items()}
    for values, expected in ((model.graph.input, group(cases, f"in/{endpoint}/")), (model.graph.output, answers)):
        found = {value.name: value.type.tensor_type for value in values}
        if list(found) != list(expected):
            yield f"has {list(found)} where {endpoint} has {list(expected)}"
            continue
        for name, array in expected.items():
            shape = [axis.dim_param or axis.dim_value for axis in found[name].shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(found[name].elem_type)
            if shape != ["batch", *array.shape[1:]] or dtype != array.dtype:
                yield f"has {name} as {dtype} {shape}"


def _operations(model: onnx.ModelProto) -> Iterator[str]:
    domains = {entry.domain for entry in model.opset_import} | {node.domain for node in model.graph.node}
    if foreign := sorted(domains - {"", "ai.onnx"}):
        yield f"uses operations of {', '.join(foreign)}, which not every runtime has"
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if versions != [_OPSET] or model.ir_version > _IR_VERSION:
        yield (
            f"is of opset {versions}, format {model.ir_version}; expected opset {_OPSET}, format {_IR_VERSION} at most"
        )
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    if model.graph.sparse_initializer or any(one.sparse_tensors or one.HasField("sparse_tensor") for one in attributes):
        yield "has sparse weights, which are compared with nothing"
    if model.functions:
        yield f"defines functions of its own: {', '.join(sorted({function.name for function in model.functions}))}"
    if found := sorted({node.op_type for node in model.graph.node} & _NOT_OF_A_FUNCTION):
        yield f"has {', '.join(found)}, so that its answers need not be the same every time"


def wrong_weights(model: onnx.ModelProto, expected: Mapping[str, str]) -> Iterator[str]:
    """Compares every array of the file with the folded one of its name.

    Single numbers belong to the arithmetic, and so do integers that say shapes, places and axes.
    """
    readers: dict[str, list[tuple[str, int]]] = {}
    for node in model.graph.node:
        for place, given in enumerate(node.input):
            readers.setdefault(given, []).append((node.op_type, place))
    for name, array, output in _arrays_of(model):
        # A weight that is read in two orders of axes goes by its name and the order in one of them.
        known = expected.get(name) or expected.get(name.rpartition("/")[0])
        if known is None:
            of_shapes = array.size == 1 or all(map(_is_of_shapes, readers.get(output, ())))
            if array.dtype not in (np.int32, np.int64) or not of_shapes:
                yield f"has a weight {name} that the run does not have"
        elif array.dtype != np.float32 or not same(array, known):
            yield f"has other numbers in weight {name} than the run"
        elif not np.isfinite(array).all():
            yield f"has numbers in weight {name} that are not finite"


def _is_of_shapes(reader: tuple[str, int]) -> bool:
    """Whether an operation takes, in this place among its inputs, shapes, places or axes."""
    operation, place = reader
    return operation in _OF_SHAPES and (place > 0 or operation == "ConstantOfShape")


def _arrays_of(model: onnx.ModelProto) -> Iterator[tuple[str, np.ndarray, str]]:
    """Returns names and values of all constants that are no single numbers, and the names under which they are read."""
    for tensor in model.graph.initializer:
        if tensor.dims:
            yield tensor.name, numpy_helper.to_array(tensor), tensor.name
    for node in model.graph.node:
        for attribute in node.attribute:
            tensors = [*attribute.tensors, *([attribute.t] if attribute.type == onnx.AttributeProto.TENSOR else [])]
            arrays = [numpy_helper.to_array(tensor) for tensor in tensors if tensor.dims]
            if attribute.floats:
                arrays.append(np.array(attribute.floats, np.float32))
            if attribute.ints and node.op_type == "Constant":
                arrays.append(np.array(attribute.ints, np.int64))
            for array in arrays:
                yield f"{node.output[0]} of a {node.op_type}", array, node.output[0]


if __name__ == "__main__":
    sys.exit(run_check(check, sys.argv[1:]))
