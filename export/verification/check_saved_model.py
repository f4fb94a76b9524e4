"""The gate's process for a SavedModel: `python -m export.verification.check_saved_model FOLDER CASES REPORT OPTIONS`.

The SavedModel is loaded into a session, which reads graph, signatures and variables by the C++ loader's rules and knows
nothing of Python objects: what only Python can load does not pass.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from export.verification.arrays import Arrays, Report, answers_in, cases_of, group, reason, run_check
from export.verification.weights import by_name, same
from tfdecouple.runtime.process import start_tensorflow
from tfdecouple.runtime.progress import Lines
from tfdecouple.runtime.settings import cores

_FILES = {
    "saved_model.pb", "fingerprint.pb", "variables/variables.index", "variables/variables.data-00000-of-00001",
    "assets.extra/tf_serving_warmup_requests", "assets.extra/model_card.json",
}  # fmt: skip
_METHOD = "tensorflow/serving/predict"
_DEFAULT = "serving_default"
# What a saved graph has state for: its variables, and functions that read them.
_STATEFUL = {
    "AssignVariableOp", "DisableCopyOnRead", "MergeV2Checkpoints", "PartitionedCall", "ReadVariableOp", "RestoreV2",
    "SaveV2", "StatefulPartitionedCall", "VarHandleOp", "VarIsInitializedOp",
}  # fmt: skip
# They have no state of their own, and yet answer by what lies on the disk.
_READS_FILES = {"MatchingFiles", "ReadFile"}
# Endpoints that are asked side by side on a CPU: each graph is one chain, whose small operations leave cores idle.
_AT_ONCE = 2
# Of the names that Keras gives to the variables of `export.formats.saved_model`.
_PREFIX = "folded/"


def check(
    folder: pathlib.Path,
    cases: Arrays,
    endpoints: list[str],
    name: str,
    timed: Sequence[str] = (),
    tell: Callable[[str], Any] = print,
    alone: Callable[[], Any] = lambda: None,
) -> Report:
    """Checks a SavedModel.

    Args:
        folder: holds saved_model.pb.
        cases: of the gate.
        endpoints: the signatures that there must be, the default one first.
        name: of the model, as requests to a server say it.
        timed: the signatures whose calls are timed.
        tell: is told how far this is.
        alone: returns when nothing else computes; only then are calls timed.
    """
    start_tensorflow()
    import tensorflow as tf

    from tfdecouple.runtime.precision import full_float32

    at_once = 1 if tf.config.list_physical_devices("GPU") else _AT_ONCE
    if at_once > 1:
        # Each of all cores, where it is alone as when it is timed. TensorFlow that has started keeps its threads.
        with contextlib.suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(cores())
    report = Report(notes={"tensorflow": tf.__version__})
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if strange := sorted(there - _FILES):
        report.problems.append(f"the SavedModel holds {', '.join(strange)}, which is compared with nothing")
    # Before anything of it runs.
    if wrong := list(_operations(folder)):
        report.problems += wrong
        return report
    with (
        full_float32(),
        tf.Graph().as_default(),
        tf.compat.v1.Session() as session,
        concurrent.futures.ThreadPoolExecutor(at_once) as pool,
    ):
        try:
            meta = tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
        except Exception as error:  # noqa: BLE001 - whatever TensorFlow raises, a server cannot load it either
            report.problems.append(f"the SavedModel cannot be loaded: {reason(error)}")
            return report
        report.problems += _fingerprint(folder)
        signatures = meta.signature_def
        # `__saved_model_init_op` names an operation for the loader; it is no signature that anybody calls.
        found = {signature for signature in signatures if not signature.startswith("__")}
        if found != {*endpoints, _DEFAULT}:
            report.problems.append(f"the signatures are {sorted(found)}; expected {sorted(endpoints)}")
            return report
        report.problems += _weights(session, by_name(cases["weights/NHWC"]))
        count = int(cases["batches"].sum())
        extra = len(cases["real"]) + sum(map(len, group(cases, "extreme/").values()))
        weights = {endpoint: _passes(cases, endpoint) for endpoint in endpoints}
        work = count * sum(weights[one] * (1 + len(cases_of(cases, one))) for one in endpoints) + 2 * extra - count
        progress, counting = Lines(tell, work), threading.Lock()

        def call(signature_name: str, inputs: Arrays) -> Arrays:
            signature = signatures[signature_name]
            feeds = {signature.inputs[key].name: array for key, array in inputs.items()}
            made = session.run({key: info.name for key, info in signature.outputs.items()}, feeds)
            with counting:
                progress.advance(weights.get(signature_name, 1) * len(next(iter(inputs.values()))))
            return made

        unfit = {endpoint: list(_signature(endpoint, signatures[endpoint], cases)) for endpoint in endpoints}
        report.problems += [problem for problems in unfit.values() for problem in problems]
        right = [endpoint for endpoint, problems in unfit.items() if not problems]
        answered = report.check_endpoints(right, call, cases, pool.map)
        report.problems += _default(signatures[_DEFAULT], endpoints[0], call, cases, answered.get(endpoints[0], {}))
        report.problems += _warm_up(folder, name, [_DEFAULT, *endpoints], cases)
        if report.problems:
            return report
        if {"encode", "decode"} <= set(endpoints):
            report.check_round_trip(call, cases, answered["encode"], pool.map)
        alone()
        report.measure_latencies([one for one in timed if one in endpoints], call, cases)
    return report


def _passes(cases: Arrays, endpoint: str) -> int:
    """How many images' worth of work a call for an image is: each image that comes in or goes out is coded."""
    answers = [answer.right for answer in answers_in(cases, endpoint).values()]
    every = [*group(cases, f"in/{endpoint}/").values(), *answers]
    return max(1, sum(array.dtype == np.uint8 for array in every))


def _operations(folder: pathlib.Path) -> Iterator[str]:
    """Yields what is wrong with the graphs as they lie in the file."""
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.python.framework import op_def_registry

    try:
        message = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    except (OSError, DecodeError) as error:
        yield f"the SavedModel cannot be loaded: {reason(error)}"
        return
    if len(message.meta_graphs) != 1:
        yield f"the SavedModel holds {len(message.meta_graphs)} graphs; expected one, tagged serve"
        return
    graph = message.meta_graphs[0].graph_def
    every = {node.op for node in graph.node}
    every |= {node.op for function in graph.library.function for node in function.node_def}
    for operation in sorted(every - _STATEFUL):
        definition = op_def_registry.get(operation)
        if definition is None or definition.is_stateful or operation in _READS_FILES:
            yield f"the SavedModel has the operation {operation}, whose answers need not be the same every time"


def _fingerprint(folder: pathlib.Path) -> Iterator[str]:
    """Yields what is wrong with the digests that TensorFlow keeps beside the graph."""
    from tensorflow.core.protobuf.fingerprint_pb2 import FingerprintDef
    from tensorflow.python.saved_model.pywrap_saved_model import fingerprinting

    try:
        found = FingerprintDef.FromString((folder / "fingerprint.pb").read_bytes())
    except (OSError, DecodeError) as error:
        yield f"fingerprint.pb is missing or damaged: {reason(error)}"
        return
    right = FingerprintDef.FromString(fingerprinting.CreateFingerprintDef(str(folder)))
    # A number of its own each has anyway; and another version of TensorFlow may calculate otherwise.
    for message in (found, right):
        message.ClearField("uuid")
    if found.version.producer == right.version.producer and found != right:
        yield "fingerprint.pb is of another SavedModel"


def _weights(session: Any, expected: Mapping[str, str]) -> Iterator[str]:
    """Compares every variable with the folded weight of its name."""
    operations = [one for one in session.graph.get_operations() if one.type == "VarHandleOp"]
    # All at once: to read one costs a look at the whole graph.
    values = session.run([f"{one.name}/Read/ReadVariableOp:0" for one in operations])
    found = set()
    for operation, value in zip(operations, values, strict=True):
        weight = operation.name.removeprefix(_PREFIX).replace(".", "/")
        found.add(weight)
        if weight not in expected:
            yield f"the SavedModel has a weight {weight} that the run does not have"
        elif not same(value, expected[weight]):
            yield f"the SavedModel has other numbers in weight {weight} than the run"
    if missing := sorted({*expected} - found):
        yield f"the SavedModel lacks weight {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")


def _signature(endpoint: str, signature: Any, cases: Arrays) -> Iterator[str]:
    """Yields what is wrong with names, types and shapes of a signature; only the first axis may be free."""
    import tensorflow as tf

    if signature.method_name != _METHOD:
        yield f"{endpoint} is of method {signature.method_name!r}; servers ask for {_METHOD!r}"
    answers = {name: answer.right for name, answer in answers_in(cases, endpoint).items()}
    for what, infos, expected in (
        ("takes", signature.inputs, group(cases, f"in/{endpoint}/")),
        ("returns", signature.outputs, answers),
    ):
        if not expected:
            # The gate's cases do not know this endpoint; parity says so.
            continue
        if {*infos} != {*expected}:
            yield f"{endpoint} {what} {sorted(infos)} where the model has {sorted(expected)}"
            continue
        for name, array in expected.items():
            sizes = [dimension.size for dimension in infos[name].tensor_shape.dim]
            dtype = tf.as_dtype(infos[name].dtype).name
            if sizes != [-1, *array.shape[1:]] or dtype != array.dtype.name:
                yield (
                    f"{endpoint} has {name} as {dtype} {sizes}; expected {array.dtype.name} "
                    f"{[-1, *array.shape[1:]]}, only the first axis free"
                )


def _default(
    signature: Any, endpoint: str, call: Callable[[str, Arrays], Arrays], cases: Arrays, answered: Arrays
) -> Iterator[str]:
    """Yields what keeps `serving_default` from answering the first image as its endpoint has answered."""
    one = {name: array[:1] for name, array in group(cases, f"in/{endpoint}/").items()}
    try:
        if {*signature.inputs} != {*one}:
            yield f"{_DEFAULT} takes {sorted(signature.inputs)}; it should be {endpoint}"
            return
        found, right = call(_DEFAULT, one), {key: array[:1] for key, array in answered.items()}
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises, it does not work
        yield f"{_DEFAULT} fails: {reason(error)}"
        return
    if {*found} != {*right} or not all(
        np.allclose(found[name].astype(np.float64), right[name], rtol=1e-4, atol=1e-4) for name in right
    ):
        yield f"{_DEFAULT} does not answer as {endpoint} does"


def _warm_up(folder: pathlib.Path, name: str, expected: Sequence[str], cases: Arrays) -> Iterator[str]:
    """Yields what is wrong with the requests to warm a server up.

    There must be one of each signature, and it must be such as the signature has answered already: one image, arrays of
    the names, types and shapes of the cases, numbers finite, labels among those that were tried.
    """
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    file = "assets.extra/tf_serving_warmup_requests"
    path = folder / file
    if not path.is_file():
        yield f"{file} is missing"
        return
    warmed = []
    try:
        for record in tf.compat.v1.io.tf_record_iterator(str(path)):
            request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
            warmed.append(request.model_spec.signature_name)
            if request.model_spec.name != name:
                yield f"{file} is for the model {request.model_spec.name!r}; this one is {name!r}"
                return
            given = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
            answered = group(cases, f"in/{expected[1] if warmed[-1] == _DEFAULT else warmed[-1]}/")
            if answered and not alike(given, answered):
                yield f"{file} has a request for {warmed[-1]} that is not such as it takes"
                return
    except Exception as error:  # noqa: BLE001 - a file that is cut, a message that is none, arrays that are none
        yield f"{file} is damaged after {len(warmed)} requests: {reason(error)}"
        return
    if sorted(warmed) != sorted(expected):
        found = ", ".join(warmed) or "nothing"
        yield f"{file} has requests for {found}; expected one for each of {', '.join(expected)}"


def alike(given: Arrays, answered: Arrays) -> bool:
    """Whether a request for one image is such as was answered."""

    def fits(found: np.ndarray, right: np.ndarray) -> bool:
        if (found.shape, found.dtype) != ((1, *right.shape[1:]), right.dtype):
            return False
        # Any pixel is one; what stands beyond the last label is none.
        return bool(np.isfinite(found).all() and (right.dtype != np.int32 or np.isin(found, right).all()))

    return {*given} == {*answered} and all(fits(found, answered[key]) for key, found in given.items())


if __name__ == "__main__":
    # What computes beside this process closes its stdin when it is done.
    sys.exit(run_check(functools.partial(check, alone=sys.stdin.read), sys.argv[1:]))
