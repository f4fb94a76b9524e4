"""Whether images come back through exported files: a SavedModel on every device, ONNX files with every provider.

The files are made and used by `export.verification.runtimes`, in processes of their own: the library does not import
the export, which stands on top of it.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdecouple.doctor import exactness, trained
from tfdecouple.doctor.finding import Finding
from tfdecouple.runtime.extras import MissingPackageError, require

if TYPE_CHECKING:
    from tfdecouple.doctor.examination import Examination

_RUNTIMES = "export.verification.runtimes"


def check(examination: Examination) -> Iterator[Finding]:
    """Exports the small model and sends images through the files."""
    try:
        require("tf2onnx", "onnx", "onnxruntime", "tensorflow_serving", what="an export")
    except MissingPackageError as error:
        yield Finding("the export", None, f"not tried: {error}")
        return
    try:
        scratch = tempfile.TemporaryDirectory()
    except OSError as error:
        said = f"no folder for temporary files can be written ({error.strerror or error})"
        yield Finding("the export", False, said, "set TMPDIR to a folder that can be written")
        return
    with scratch as name:
        folder = pathlib.Path(name)
        images = exactness.every_kind(exactness.count_of(examination))
        arrays: dict[str, Any] = {f"kind_{number}": array for number, array in enumerate(images.values())}
        np.savez(folder / "images.npz", names=np.array(list(images)), **arrays)
        what, arguments = "the export", {"run": str(trained.FOLDER), "folder": name}
        made = list(examination.findings(f"{_RUNTIMES}:make", _made, what, arguments))
        yield from made
        if any(finding.holds is False for finding in made):
            return
        for device in dict.fromkeys(["CPU:0", *examination.devices]):
            arguments = {"folder": name, "device": device}
            what = f"SavedModel, {device}"
            yield from examination.findings(f"{_RUNTIMES}:use_saved_model", exactness.judge, what, arguments)
        (providers,) = [finding.figures["providers"] for finding in made]
        for provider in providers:
            arguments = {"folder": name, "provider": provider}
            what = f"ONNX, {provider}"
            yield from examination.findings(f"{_RUNTIMES}:use_onnx", judge, what, arguments, tensorflow=False)


def _made(found: dict) -> Finding:
    said = f"SavedModel and ONNX files; ONNX Runtime has {', '.join(found['providers'])}"
    return Finding("the export", True, said, figures=found)


def judge(found: dict) -> Finding:
    """Returns the finding of what a runtime gave back."""
    if reason := found.get("unavailable"):
        return Finding(found["where"], None, f"installed, but not usable here: {reason}", figures=found)
    return exactness.judge(found)
