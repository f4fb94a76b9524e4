"""Whether images come back through exported files: a SavedModel on every device, ONNX files with every provider."""

from __future__ import annotations

import importlib
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np

from tfdecouple.doctor import round_trips, small_model
from tfdecouple.doctor.result import Result, Task
from tfdecouple.runtime.extras import MissingPackageError, require


def run(task: Task) -> Iterator[Result]:
    """Exports the small model and sends images through the files."""
    try:
        require("tf2onnx", "onnx", "onnxruntime", "tensorflow_serving", what="an export")
        scratch = tempfile.TemporaryDirectory()
    except MissingPackageError as error:
        yield Result("the export", None, f"not tried: {error}")
        return
    except OSError as error:
        message = f"no folder for temporary files can be written ({error.strerror or error})"
        yield Result("the export", False, message, "set TMPDIR to a folder that can be written")
        return
    # The library does not import the export, which stands on top of it.
    runtimes = importlib.import_module("export.verification.runtimes")
    with scratch as folder:
        kinds = round_trips.images_by_kind(task)
        arrays = {f"kind_{number}": images for number, images in enumerate(kinds.values())}
        np.savez(pathlib.Path(folder) / "images.npz", names=np.array(list(kinds)), **arrays)  # type: ignore[arg-type]
        *_, made = runtimes.make(str(small_model.FOLDER), folder)
        message = f"SavedModel and ONNX files; ONNX Runtime has {', '.join(made['providers'])}"
        yield Result("the export", True, message, figures=made)
        for device in dict.fromkeys(["CPU:0", *task.devices]):
            *_, found = runtimes.use_saved_model(folder, device)
            yield judge(found)
        for provider in made["providers"]:
            *_, found = runtimes.use_onnx(folder, provider)
            yield judge(found)


def judge(found: dict) -> Result:
    """Returns whether a runtime gave all images back; a provider without its device or libraries breaks no promise."""
    if reason := found.get("unavailable"):
        return Result(found["where"], None, f"installed, but not usable here: {reason}", figures=found)
    return round_trips.judge(found)
