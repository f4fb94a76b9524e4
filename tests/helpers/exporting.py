"""Names of the files in an export, and functions that read export folders."""

import json

import numpy as np

from export.endpoints import list_endpoints
from export.export_folder import EDITABLE, JSON_NAME, MANIFEST, TEXT_NAME, VECTORS
from export.formats.web import PAGE_MODELS
from helpers.models import TINY


def find_endpoint(config, name):
    """Returns the endpoint called `name` of a model with this config."""
    return next(endpoint for endpoint in list_endpoints(config) if endpoint.name == name)


def list_onnx_names(config):
    """Returns {endpoint: name of its ONNX file without suffix} for the endpoints of a model that have a file."""
    return {endpoint.name: endpoint.onnx for endpoint in list_endpoints(config) if endpoint.onnx}


# Names of the ONNX files in an export of a model with the config TINY.
PARTS = tuple(f"{name}.onnx" for name in list_onnx_names(TINY).values())
# Names of the ONNX files that the web page of an export loads.
ON_PAGE = tuple(f"{name}.onnx" for name in PAGE_MODELS)
# Names in an export folder with the formats savedmodel and onnx.
COMPLETE = {"savedmodel", "onnx", "client.py", "guided_filter.py", JSON_NAME, TEXT_NAME, MANIFEST, VECTORS, *EDITABLE}
# The signatures with which tests build a small SavedModel, which loads faster than one with all signatures.
SIGNATURES = ("encode", "decode")


def read_vectors(folder):
    """Returns the test vectors in an export folder: {name: array} of inputs and of outputs of the Keras model."""
    with np.load(folder / VECTORS) as archive:
        return dict(archive)


def read_tree(folder):
    """Returns {relative path: bytes} of all files below `folder`, hidden ones too; the value of a subfolder is None."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def read_card(folder):
    return json.loads((folder / JSON_NAME).read_text())
