"""Exports of files that hold nothing and pass, where what is tested is where they go; and what stands in a folder."""

from __future__ import annotations

import contextlib
import json
import time

import onnx

import export.pipeline  # noqa: F401 - looked for by its name
from export.card import JSON_NAME
from export.endpoints import onnx_names, page_names
from export.verification.check import Report
from helpers.deployed import NoDeployedModel
from helpers.models import TINY

# The ONNX files of an export of TINY, and those of its web page.
PARTS = tuple(f"{name}.onnx" for name in onnx_names(TINY).values())
ON_PAGE = tuple(f"{name}.onnx" for name in page_names(TINY).values())
# By which an export is verified later.
RECORDS = ("manifest.json", "cases")
SERVING = ("batching.config", "docker-compose.yml", "models.config", "monitoring.config")
# Of a SavedModel that is loaded fast.
SIGNATURES = ("encode", "decode")


def _save_saved_model(deployed, chosen, folder, progress):
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_text("graph")
    time.sleep(0.01)
    for name in ("variables.index", "variables.data-00000-of-00001"):
        (folder / "variables" / name).write_text("weights")


def hold_nothing(patch, opened):
    """Puts stand-ins for all that takes time into the pipeline.

    Args:
        patch: pytest's.
        opened: model and origin of whatever run is exported; of the model its config alone.
    """
    for name, value in {
        "export.pipeline.open_run": lambda run, name: opened,
        "export.pipeline.real_images": lambda config: (None, "test images"),
        "export.pipeline.make_cases": lambda model, images, tell: {},
        "export.pipeline.weight_digests": lambda model, layouts: {},
        "export.pipeline.DeployedModel": NoDeployedModel,
        "export.deployed.deployed_model.DeployedModel": NoDeployedModel,
        "export.formats.onnx.build_onnx": lambda deployed, endpoint, metadata: onnx.ModelProto(producer_name="it"),
        "export.pipeline.save_saved_model": _save_saved_model,
        "export.pipeline.pass_gate": lambda runtime, folder, cases, tell, options: Report(),
    }.items():
        patch.setattr(name, value)


def silent(text):
    """Says nothing."""


def contents(folder):
    """Everything in a folder, hidden or not: files with their bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def read_card(folder):
    return json.loads((folder / JSON_NAME).read_text())


def half_written(folder):
    """Returns what is visible in an export folder and not whole."""
    half = []
    versions = folder / "savedmodel"
    for version in versions.iterdir() if versions.exists() else ():
        files = ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001")
        half += [f"{version.name} without {name}" for name in files if not (version / name).is_file()]
        if not (version / "assets.extra" / JSON_NAME).exists():
            half.append(f"{version.name} without a card")
    for name in (JSON_NAME, *SERVING):
        # A file that is there has its end.
        with contextlib.suppress(FileNotFoundError):
            text = (folder / name).read_text()
            if not text.endswith("\n") or (name == JSON_NAME and not json.loads(text)):
                half.append(name)
    return half
