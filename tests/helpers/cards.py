"""Functions that run the code in an export's model card, which must encode and decode a black image exactly."""

import json
import pathlib
import re
import sys

from export.export_folder import TEXT_NAME
from helpers.exporting import read_card
from helpers.places import read_output


def read_code_blocks(folder: pathlib.Path, language: str) -> list[str]:
    """Returns the texts of the code blocks of one language, such as "js", in the model card of an export folder."""
    return re.findall(rf"```{language}\n(.*?)```", (folder / TEXT_NAME).read_text(), re.DOTALL)


def run_python_blocks(folder: pathlib.Path, count: int = 1) -> None:
    """Asserts that an export's model card has `count` Python blocks, each of which reconstructs a black image."""
    shape = tuple(read_card(folder)["architecture"]["image_shape"])
    programs = read_code_blocks(folder, "python")
    assert len(programs) == count
    for program in programs:
        program += f"assert same.shape == (1, *{shape}) and same.dtype == np.uint8 and not same.any()\n"
        read_output(sys.executable, "-c", program, folder=folder)


def run_javascript_block(folder: pathlib.Path, example: pathlib.Path) -> None:
    """Asserts that the JavaScript in an export's model card reconstructs a black image; `example` has npm packages."""
    (program,) = read_code_blocks(folder, "js")
    shape = ",".join(map(str, (1, *read_card(folder)["architecture"]["image_shape"])))
    check = f'if (String(same.dims) !== "{shape}" || same.data.some((value) => value !== 0)) throw same;\n'
    (example / "card.mjs").write_text(program + check)
    read_output("node", example / "card.mjs", folder=folder)


def run_curl_block(folder: pathlib.Path) -> dict:
    """Serves an export's SavedModel and runs the curl command in its model card; returns {output name: value}."""
    from helpers.serving_server import Server

    (command,) = read_code_blocks(folder, "sh")
    with Server(folder / "savedmodel", read_card(folder)["name"]) as server:
        assert "localhost:8501" in command
        command = command.replace("localhost:8501", f"localhost:{server.rest_port}")
        (prediction,) = json.loads(read_output("sh", "-c", command))["predictions"]
    return prediction
