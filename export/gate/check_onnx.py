"""The gate's process for ONNX files: `python -m export.gate.check_onnx FOLDER CASES REPORT`, without TensorFlow.

It uses the files as their users will: by the ONNX checker, by ONNX Runtime, by nothing else.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import onnx
import onnxruntime

from export.gate.arrays import DRAWN, Arrays, Report, difference, group, run_check

FILES = {"encode": "encoder", "decode": "decoder", "sample": "sampler"}


class OnnxFiles:
    """The endpoints of a folder of ONNX files.

    Args:
        folder: where the files lie.
        suffix: between name and `.onnx`, such as ".int8".
    """

    def __init__(self, folder: pathlib.Path, suffix: str = ""):
        self.paths = {endpoint: folder / f"{name}{suffix}.onnx" for endpoint, name in FILES.items()}
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def session(self, endpoint: str) -> onnxruntime.InferenceSession:
        """Returns the session of an endpoint, opened when it is first asked for."""
        if endpoint not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            self._sessions[endpoint] = onnxruntime.InferenceSession(
                str(self.paths[endpoint]), options, providers=["CPUExecutionProvider"]
            )
        return self._sessions[endpoint]

    def __call__(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Runs an endpoint."""
        session = self.session(endpoint)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))


def check(folder: pathlib.Path, cases: Arrays, exact: bool, precisions: list[str]) -> Report:
    """Checks the files of a folder.

    Args:
        folder: holds the ONNX files.
        cases: of the gate.
        exact: whether every image must come back.
        precisions: of the smaller variants beside the float32 files.
    """
    report = Report(notes={"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__})
    files = OnnxFiles(folder)
    for endpoint in FILES:
        _check_file(report, endpoint, files.paths[endpoint], cases)
    if report.problems:
        return report
    for endpoint in FILES:
        report.check_parity(endpoint, files, cases)
    report.check_parity("decode", files, cases, DRAWN)
    if report.problems:
        return report
    report.check_round_trip(files, cases, exact)
    for endpoint in FILES:
        report.measure_latency(endpoint, files, cases)
    report.notes["variants"] = {
        precision: _check_variant(report, precision, folder, files, cases) for precision in precisions
    }
    return report


def _check_file(report: Report, endpoint: str, path: pathlib.Path, cases: Arrays) -> None:
    """What holds for a file by itself: it is valid ONNX, and takes and returns what the endpoint does, batch free."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # noqa: BLE001 - the checker raises what it likes; all of it means: not this file
        report.problems.append(f"{path.name} is not valid ONNX: {_first_line(error)}")
        return
    model = onnx.load(str(path), load_external_data=False)
    for kind, values in (("in", model.graph.input), ("out", model.graph.output)):
        expected = group(cases, f"{kind}/{endpoint}/")
        found = {value.name: value.type.tensor_type for value in values}
        if set(found) != set(expected):
            report.problems.append(f"{path.name} has {sorted(found)} where {endpoint} has {sorted(expected)}")
            continue
        for name, array in expected.items():
            shape = [axis.dim_param or axis.dim_value for axis in found[name].shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(found[name].elem_type)
            if shape != ["batch", *array.shape[1:]] or dtype != array.dtype:
                report.problems.append(f"{path.name} has {name} as {dtype} {shape}")
    if not {entry.key for entry in model.metadata_props} >= {"image_size", "n_bits", "run", "config_sha256"}:
        report.problems.append(f"{path.name} does not say where it comes from")


def _check_variant(
    report: Report, precision: str, folder: pathlib.Path, full: OnnxFiles, cases: Arrays
) -> dict[str, object]:
    """Measures the pixel error of a smaller variant: nothing is promised for it but that it is stated and valid."""
    files = OnnxFiles(folder, f".{precision}")
    for endpoint in FILES:
        _check_file(report, endpoint, files.paths[endpoint], cases)
    if report.problems:
        return {}
    images = cases["real"][:64]
    codes = full("encode", {"images": images})
    own = files("encode", {"images": images})
    if not all(np.all(np.isfinite(array)) for array in own.values()):
        report.problems.append(f"the {precision} encoder returns codes that are not finite")
    return {
        "images": len(images),
        "round_trip": difference(files("decode", own)["images"], images),
        "decoding_float32_codes": difference(files("decode", codes)["images"], images),
        "codes": {name: difference(own[name], codes[name]) for name in codes},
        "bytes": {path.name: path.stat().st_size for path in files.paths.values()},
    }


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


if __name__ == "__main__":
    sys.exit(run_check(check, sys.argv[1:]))
