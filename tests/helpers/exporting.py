"""Names of the files in an export, and functions that read export folders and run the code in their model cards."""

import json
import re
import sys

import numpy as np

from export.endpoints import list_endpoints
from export.export_folder import EDITABLE, JSON_NAME, MANIFEST, TEXT_NAME, VECTORS
from export.formats.web import PAGE_MODELS
from helpers.models import TINY
from helpers.places import read_output


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


def read_code_blocks(folder, language):
    """Returns the texts of the code blocks of one language, such as "js", in the model card of an export folder."""
    return re.findall(rf"```{language}\n(.*?)```", (folder / TEXT_NAME).read_text(), re.DOTALL)


def run_python_blocks(folder, count=1):
    """Asserts that an export's model card has `count` Python blocks, each of which reconstructs a black image."""
    shape = tuple(read_card(folder)["architecture"]["image_shape"])
    programs = read_code_blocks(folder, "python")
    assert len(programs) == count
    for program in programs:
        program += f"assert same.shape == (1, *{shape}) and same.dtype == np.uint8 and not same.any()\n"
        read_output(sys.executable, "-c", program, folder=folder)


def run_javascript_block(folder, example):
    """Asserts that the JavaScript in an export's model card reconstructs a black image; `example` has npm packages."""
    (program,) = read_code_blocks(folder, "js")
    shape = ",".join(map(str, (1, *read_card(folder)["architecture"]["image_shape"])))
    check = f'if (String(same.dims) !== "{shape}" || same.data.some((value) => value !== 0)) throw same;\n'
    (example / "card.mjs").write_text(program + check)
    read_output("node", example / "card.mjs", folder=folder)


def run_curl_block(folder):
    """Serves an export's SavedModel and runs the curl command in its model card; returns {output name: value}."""
    from helpers.serving_server import Server

    (command,) = read_code_blocks(folder, "sh")
    with Server(folder / "savedmodel", read_card(folder)["name"]) as server:
        assert "localhost:8501" in command
        command = command.replace("localhost:8501", f"localhost:{server.rest_port}")
        (prediction,) = json.loads(read_output("sh", "-c", command))["predictions"]
    return prediction
