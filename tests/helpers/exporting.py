"""Exports of files that hold nothing and pass: where what is tested is where they go."""

from __future__ import annotations

import time

import onnx

import export.formats.precision  # noqa: F401 - looked for by its name
import export.pipeline  # noqa: F401 - likewise
from export.verification.arrays import Report
from helpers.deployed import NoDeployedModel


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
        "export.deployed.model.DeployedModel": NoDeployedModel,
        "export.formats.onnx.build_onnx": lambda deployed, endpoint, metadata: onnx.ModelProto(producer_name="it"),
        "export.formats.precision.with_smaller_weights": lambda model, precision, names: model,
        "export.pipeline.save_saved_model": _save_saved_model,
        "export.pipeline.run_client": lambda client, onnx: "16 of 16 known images come back exactly",
        "export.pipeline.pass_gate": lambda check, folder, cases, **options: Report(),
    }.items():
        patch.setattr(name, value)
