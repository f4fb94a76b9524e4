"""The gate's process for files of ONNX Runtime's format: `python -m export.verification.check_ort` and four arguments.

The tool that makes these files multiplies weights out as a session does that opens an ONNX file, so that no weight can
be looked up: what is compared are answers, by the same cases as those of the ONNX files.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import onnxruntime

from export.formats.ort import OPERATORS, operators_in
from export.verification.arrays import Arrays, Report, answers_in, group, images_tried, reason, run_check
from export.verification.check_onnx import OnnxFiles
from tfdecouple.runtime.progress import Lines

_TYPES = {"tensor(uint8)": "uint8", "tensor(int32)": "int32", "tensor(float)": "float32"}


def check(
    folder: pathlib.Path,
    cases: Arrays,
    names: dict[str, str],
    metadata: dict[str, str],
    tell: Callable[[str], Any] = print,
) -> Report:
    """Checks the files of a folder.

    Args:
        folder: holds the files.
        cases: of the gate.
        names: of the files, without suffix, by endpoints.
        metadata: what every file must say of itself.
        tell: is told how far this is.
    """
    report = Report(notes={"onnxruntime": onnxruntime.__version__})
    files = OnnxFiles(folder, names, progress=Lines(tell, images_tried(cases, len(names))), ending=".ort")
    if strange := sorted(
        {path.name for path in folder.iterdir()} - {OPERATORS, *(path.name for path in files.paths.values())}
    ):
        report.problems.append(f"{', '.join(strange)} is compared with nothing")
    report.problems += wrong_operators(folder / OPERATORS, files.paths.values())
    for endpoint, path in files.paths.items():
        try:
            session = files.session(endpoint)
        except Exception as error:  # noqa: BLE001 - whatever ONNX Runtime raises, nobody can open it either
            report.problems.append(f"{path.name} cannot be opened: {reason(error)}")
            continue
        report.problems += [f"{path.name} {problem}" for problem in _problems(session, endpoint, cases, metadata)]
    if not report.problems:
        report.check_files(names, files, cases)
        report.measure_latencies(names, files, cases)
    return report


def wrong_operators(path: pathlib.Path, models: Iterable[pathlib.Path]) -> Iterator[str]:
    """Yields what is wrong with the list of operations that a build for the files needs."""
    if not path.is_file():
        yield f"{OPERATORS} is missing"
        return
    try:
        right = operators_in(models)
    except Exception as error:  # noqa: BLE001 - of a file that is none the reader raises what it likes
        yield f"{OPERATORS} cannot be compared with the files: {reason(error)}"
        return
    if path.read_text(encoding="utf-8", errors="replace") != right:
        yield f"{OPERATORS} does not list the operations of the files"


def _problems(
    session: onnxruntime.InferenceSession, endpoint: str, cases: Arrays, metadata: dict[str, str]
) -> list[str]:
    """Returns what is wrong with a file by itself: inputs, outputs, origin."""
    problems = []
    answers = {name: answer.right for name, answer in answers_in(cases, endpoint).items()}
    for values, expected in ((session.get_inputs(), group(cases, f"in/{endpoint}/")), (session.get_outputs(), answers)):
        found = {value.name: (_TYPES.get(value.type), list(value.shape)) for value in values}
        right = {name: (str(array.dtype), ["batch", *array.shape[1:]]) for name, array in expected.items()}
        if found != right:
            problems.append(f"has {found} where {endpoint} has {right}")
    said = session.get_modelmeta().custom_metadata_map
    for key, value in {**metadata, "endpoint": endpoint}.items():
        if said.get(key) != value:
            problems.append(f"says {key} {said.get(key)!r} where the run has {value!r}")
    return problems


if __name__ == "__main__":
    sys.exit(run_check(check, sys.argv[1:]))
