"""The gate's process for a SavedModel: `python -m export.gate.check_saved_model FOLDER CASES REPORT OPTIONS`.

The SavedModel is loaded into a session, which reads graph, signatures and variables by the C++ loader's rules and knows
nothing of Python objects: what only Python can load does not pass.
"""

from __future__ import annotations

import pathlib
import sys

from export.gate.arrays import DRAWN, Arrays, Report, reason, run_check
from tfdecouple.process import start_tensorflow

_TIMED = ("encode", "decode", "sample")


def check(folder: pathlib.Path, cases: Arrays, exact: bool, endpoints: list[str]) -> Report:
    """Checks a SavedModel.

    Args:
        folder: holds saved_model.pb.
        cases: of the gate.
        exact: whether every image must come back.
        endpoints: the signatures that there must be, the default one first.
    """
    start_tensorflow()
    import tensorflow as tf

    from tfdecouple.tf32 import full_float32

    report = Report(notes={"tensorflow": tf.__version__})
    with full_float32(), tf.Graph().as_default(), tf.compat.v1.Session() as session:
        try:
            meta = tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
        except Exception as error:  # noqa: BLE001 - whatever TensorFlow raises, a server cannot load it either
            report.problems.append(f"the SavedModel cannot be loaded: {reason(error)}")
            return report
        signatures = meta.signature_def
        # `__saved_model_init_op` names an operation for the loader; it is no signature that anybody calls.
        found = {name for name in signatures if not name.startswith("__")}
        if found != {*endpoints, "serving_default"}:
            report.problems.append(f"the signatures are {sorted(found)}; expected {sorted(endpoints)}")
            return report

        def call(endpoint: str, inputs: Arrays) -> Arrays:
            signature = signatures[endpoint]
            feeds = {signature.inputs[name].name: array for name, array in inputs.items()}
            return session.run({name: info.name for name, info in signature.outputs.items()}, feeds)

        for endpoint in endpoints:
            signature = signatures[endpoint]
            for name, info in [*signature.inputs.items(), *signature.outputs.items()]:
                sizes = [dimension.size for dimension in info.tensor_shape.dim]
                if not sizes or sizes[0] != -1 or any(size < 1 for size in sizes[1:]):
                    report.problems.append(f"{endpoint} has {name} of shape {sizes}; only the first axis may be free")
            report.check_parity(endpoint, call, cases)
        if "decode" in endpoints:
            report.check_parity("decode", call, cases, DRAWN)
        default = {key: info.name for key, info in signatures["serving_default"].inputs.items()}
        if set(default) != set(signatures[endpoints[0]].inputs):
            report.problems.append(f"serving_default takes {sorted(default)}; it should be {endpoints[0]}")
        if report.problems:
            return report
        if {"encode", "decode"} <= set(endpoints):
            report.check_round_trip(call, cases, exact)
        for endpoint in sorted({*_TIMED} & {*endpoints}):
            report.measure_latency(endpoint, call, cases)
    return report


if __name__ == "__main__":
    sys.exit(run_check(check, sys.argv[1:]))
