"""Functions that replace the slow functions of the package `export` in a test, and that read export folders."""

import json
import shutil

import numpy as np
import onnx

import export.pipeline  # noqa: F401 - its functions are replaced by their dotted names
from export.endpoints import list_endpoints
from export.export_folder import EDITABLE, JSON_NAME, MANIFEST, TEXT_NAME, VECTORS
from export.formats.web import PAGE_MODELS
from export.verification.comparison import Report
from helpers.models import TINY


def list_onnx_names(config):
    """Returns {endpoint: name of its ONNX file without suffix} for the endpoints of a model that have a file."""
    return {one.name: one.onnx for one in list_endpoints(config) if one.onnx}


# Names of the ONNX files in an export of a model with the config TINY.
PARTS = tuple(f"{name}.onnx" for name in list_onnx_names(TINY).values())
# Names of the ONNX files that the web page of an export loads.
ON_PAGE = tuple(f"{name}.onnx" for name in PAGE_MODELS)
# Names in an export folder with the formats savedmodel and onnx.
COMPLETE = {"savedmodel", "onnx", "client.py", JSON_NAME, TEXT_NAME, MANIFEST, VECTORS, *EDITABLE}
# The signatures with which tests build a small SavedModel, which loads faster than one with all signatures.
SIGNATURES = ("encode", "decode")


def _save_placeholder_model(exported, chosen, folder, report):
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_text("graph")
    for name in ("variables.index", "variables.data-00000-of-00001"):
        (folder / "variables" / name).write_text("weights")


class NoNetworks:
    """Stands in for the folded networks of an export."""

    def __init__(self, *arguments):
        pass

    def find_faults(self):
        return []

    def collect_arrays(self):
        return {}


def _replace_slow_parts(patch, opened, **parts):
    """Patches slow functions of the package `export`; `parts` maps more of their dotted names to replacements."""
    parts = {
        "pipeline.open_run": lambda run, name: opened,
        "pipeline.load_real_images": lambda data, shape: (None, "test images"),
        "pipeline.ExportedModel": NoNetworks,
        **parts,
    }
    for name, value in parts.items():
        patch.setattr(f"export.{name}", value)


def write_placeholders(patch, opened):
    """Patches the export to write placeholder files instead of models, and to skip the check of the files.

    Args:
        patch: pytest's `monkeypatch`.
        opened: the exported run, a model and its provenance; only the model's config is used.
    """
    parts = {
        "pipeline.make_test_vectors": lambda model, images, report: {},
        "formats.onnx.build_onnx": lambda exported, endpoint, metadata: onnx.ModelProto(producer_name="it"),
        "formats.saved_model.save_saved_model": _save_placeholder_model,
        "pipeline.compare_in_process": lambda runtime, folder, vectors, options, report: Report(),
    }
    _replace_slow_parts(patch, opened, **parts)


def copy_finished_files(patch, exported, opened, saved_model, vectors):
    """Patches the export to copy the ONNX files of `exported` and the folder `saved_model`, not to build models."""
    onnx_files = exported / "onnx"
    digests = np.concatenate([array for name, array in vectors.items() if name.startswith("weights/")])
    parts = {
        "pipeline.make_test_vectors": lambda model, images, report: dict(vectors),
        "pipeline.digest_weights": lambda arrays: digests,
        "formats.onnx.build_onnx": lambda exported, endpoint, metadata: onnx.load(onnx_files / f"{endpoint.onnx}.onnx"),
        "formats.saved_model.save_saved_model": lambda *given: shutil.copytree(saved_model, given[2]),
        "formats.saved_model.write_warmup_requests": lambda folder, name, chosen: None,
    }
    _replace_slow_parts(patch, opened, **parts)


def read_vectors(folder):
    """Returns the test vectors in an export folder: {name: array} of inputs and of outputs of the Keras model."""
    with np.load(folder / VECTORS) as archive:
        return dict(archive)


def ignore_message(text):
    """Ignores a progress message of the export, instead of printing the message."""


def read_tree(folder):
    """Returns {relative path: bytes} of all files below `folder`, hidden ones too; the value of a subfolder is None."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def read_card(folder):
    return json.loads((folder / JSON_NAME).read_text())
