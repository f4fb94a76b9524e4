"""The gate's process for ONNX files in OpenVINO: `python -m export.verification.check_openvino` and four arguments.

By OpenVINO's own runtime, in float32, where it is installed; and timed in turns with ONNX Runtime.
"""

from __future__ import annotations

import functools
import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import openvino

from export.verification.arrays import (
    LATENCY_BATCHES,
    Arrays,
    Report,
    group,
    images_tried,
    in_turns,
    reason,
    run_check,
    takes_too_long,
)
from export.verification.check_onnx import OnnxFiles
from tfdecouple.runtime.progress import Lines

# On a processor with AMX the default is bfloat16, in which images do not come back.
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


class OpenVinoFiles:
    """The endpoints of a folder of ONNX files, in OpenVINO.

    Args:
        folder: where the files lie.
        names: of the files, without suffix, by endpoints.
        progress: is told of each call.
    """

    def __init__(self, folder: pathlib.Path, names: dict[str, str], progress: Lines | None = None):
        self._paths = {endpoint: folder / f"{name}.onnx" for endpoint, name in names.items()}
        self._core, self.progress = openvino.Core(), progress
        self._compiled: dict[str, Any] = {}

    def __call__(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Runs an endpoint."""
        if endpoint not in self._compiled:
            self._compiled[endpoint] = self._core.compile_model(str(self._paths[endpoint]), "CPU", EXACT)
        made = self._compiled[endpoint](inputs)
        if self.progress is not None:
            self.progress.advance(len(next(iter(inputs.values()))))
        # Copies, since the next call writes its answers over these.
        return {port.get_any_name(): np.array(value) for port, value in made.items()}


def check(
    folder: pathlib.Path, cases: Arrays, names: dict[str, str], tell: Callable[[str], Any] = print, **_: Any
) -> Report:
    """Checks what OpenVINO answers.

    Args:
        folder: holds the ONNX files, which have passed their own check.
        cases: of the gate.
        names: of the files, without suffix, by endpoints.
        tell: is told how far this is.
        **_: what else the check of the files is told.
    """
    report = Report(notes={"openvino": openvino.get_version().partition("-")[0]})
    try:
        files = OpenVinoFiles(folder, names, Lines(tell, images_tried(cases, len(names))))
        report.check_files(names, files, cases)
    except Exception as error:  # noqa: BLE001 - whatever OpenVINO raises, it does not run these files
        report.problems.append(f"cannot run the files: {reason(error)}")
    if not report.problems:
        files.progress = None
        report.notes["in_turns"] = _compared(files, OnnxFiles(folder, names), names, cases)
    return report


def _compared(
    ours: OpenVinoFiles, theirs: OnnxFiles, names: Iterable[str], cases: Arrays
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns {endpoint: {batch: {runtime: milliseconds}}}, the two runtimes called in turns."""
    runtimes: dict[str, Callable[[str, Arrays], Arrays]] = {"openvino": ours, "onnxruntime": theirs}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for endpoint in names:
        inputs = group(cases, f"in/{endpoint}/")
        found[endpoint] = {}
        for batch in LATENCY_BATCHES:
            part = {name: np.resize(array, (batch, *array.shape[1:])) for name, array in inputs.items()}
            calls = {name: functools.partial(run, endpoint, part) for name, run in runtimes.items()}
            times = in_turns(calls)
            found[endpoint][str(batch)] = {name: round(1000 * value, 3) for name, value in times.items()}
            if takes_too_long(max(times.values())):
                break
    return found


if __name__ == "__main__":
    sys.exit(run_check(check, sys.argv[1:]))
