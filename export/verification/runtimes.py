"""A model's files in every runtime of this machine: made, and images sent through them; each step for a process.

`python -m tfdecouple doctor` calls these with the model that it brings along. What `python -m export` publishes passes
the gate, which compares much more.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from export.verification.arrays import Arrays
from tfdecouple.errors import one_line

_NAMES = {"encode": "encoder", "decode": "decoder"}
# Images at a time.
_BATCH = 64


def make(run: str, folder: str) -> Iterator[dict[str, Any]]:
    """Writes a SavedModel and ONNX files that encode and decode, and yields which providers there are for these."""
    import onnxruntime

    from export.deployed.deployed_model import DeployedModel
    from export.endpoints import endpoints
    from export.formats.onnx import build_onnx, save_onnx
    from export.formats.saved_model import save_saved_model
    from export.verification.folder import REMOTE
    from tfdecouple.runs import load_model
    from tfdecouple.runtime.precision import full_float32

    place, model = pathlib.Path(folder), load_model(run)
    offered = [endpoint for endpoint in endpoints(model.config) if endpoint.name in _NAMES]
    with full_float32():
        yield {"doing": "making a SavedModel"}
        save_saved_model(DeployedModel.from_model(model), offered, place / "savedmodel")
        deployed = DeployedModel.from_model(model, "NCHW")
        for endpoint in offered:
            yield {"doing": f"making ONNX files: {endpoint.name}"}
            save_onnx(build_onnx(deployed, endpoint, {}), place / f"{_NAMES[endpoint.name]}.onnx")
    yield {"providers": [name for name in onnxruntime.get_available_providers() if name != REMOTE]}


def use_saved_model(folder: str, device: str) -> Iterator[dict[str, Any]]:
    """Yields what becomes of the images of a folder in its SavedModel, on a device."""
    import tensorflow as tf

    from tfdecouple.runtime.precision import full_float32

    yield {"doing": f"the SavedModel on {device}"}
    with full_float32(), tf.device(device):
        signatures = tf.saved_model.load(str(pathlib.Path(folder) / "savedmodel")).signatures

        def call(endpoint: str, inputs: Arrays) -> Arrays:
            made = signatures[endpoint](**{name: tf.constant(array) for name, array in inputs.items()})
            return {name: value.numpy() for name, value in made.items()}

        yield {"where": f"SavedModel, {device}", "kinds": _come_back(call, folder)}


def use_onnx(folder: str, provider: str) -> Iterator[dict[str, Any]]:
    """Yields what becomes of the images of a folder in its ONNX files, with a provider of ONNX Runtime."""
    from export.verification.check_onnx import OnnxFiles

    where = f"ONNX, {provider}"
    yield {"doing": f"the ONNX files with {provider}"}
    files = OnnxFiles(pathlib.Path(folder), _NAMES, provider=provider)
    try:
        usable = provider in files.session("encode").get_providers()
        reason = "ONNX Runtime takes another in its place"
    except Exception as error:  # noqa: BLE001 - whatever a provider without its device or libraries raises
        usable, reason = False, one_line(error, first=True)
    if usable:
        yield {"where": where, "kinds": _come_back(files, folder)}
    else:
        yield {"where": where, "unavailable": reason}


def _come_back(call: Callable[[str, Arrays], Arrays], folder: str) -> dict[str, list[int]]:
    """Returns of each kind how many images there are, how many are lost, and in how many values."""
    with np.load(pathlib.Path(folder) / "images.npz") as archive:
        images = {str(kind): archive[f"kind_{number}"] for number, kind in enumerate(archive["names"])}
    kinds = {}
    for kind, every in images.items():
        differing = np.zeros(len(every), np.int64)
        for start in range(0, len(every), _BATCH):
            part = every[start : start + _BATCH]
            codes = call("encode", {"images": part})
            back = call("decode", {name: codes[name] for name in ("z", "v")})["images"]
            differing[start : start + _BATCH] = (back != part).reshape(len(part), -1).sum(1)
        kinds[kind] = [len(every), int((differing > 0).sum()), int(differing.sum())]
    return kinds
