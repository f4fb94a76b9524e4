"""Functions that run the code blocks of a model card in its export folder, and check that a black image stays black."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

from export.card import JSON_NAME, TEXT_NAME
from helpers.places import PATIENCE, user_environment


def blocks(folder: pathlib.Path, language: str) -> list[str]:
    """Returns the code blocks of a model card in a language."""
    return re.findall(rf"```{language}\n(.*?)```", (folder / TEXT_NAME).read_text(), re.DOTALL)


def _shape(folder: pathlib.Path) -> tuple[int, ...]:
    return tuple(json.loads((folder / JSON_NAME).read_text())["architecture"]["image_shape"])


def run_python(folder: pathlib.Path, count: int = 1) -> None:
    """Asserts that the card has `count` Python blocks, and that each of them reconstructs the image."""
    found = blocks(folder, "python")
    assert len(found) == count
    for program in found:
        program += f"assert same.shape == (1, *{_shape(folder)}) and same.dtype == np.uint8 and not same.any()\n"
        done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def run_javascript(folder: pathlib.Path, example: pathlib.Path) -> None:
    """Asserts that the JavaScript block reconstructs the image, run with the packages of the Node example's copy."""
    (program,) = blocks(folder, "js")
    sizes = ",".join(map(str, (1, *_shape(folder))))
    check = f'if (String(same.dims) !== "{sizes}" || same.data.some((value) => value !== 0)) throw same;\n'
    (example / "card.mjs").write_text(program + check)
    command = ["node", example / "card.mjs"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


def run_curl(folder: pathlib.Path) -> dict:
    """Returns the prediction that a server of the SavedModel answers to the card's curl command."""
    from helpers.serving_server import Server

    (command,) = blocks(folder, "sh")
    with Server(folder / "savedmodel", json.loads((folder / JSON_NAME).read_text())["name"]) as server:
        assert "localhost:8501" in command
        command = command.replace("localhost:8501", f"localhost:{server.rest_port}")
        options = {"env": user_environment(), "capture_output": True, "text": True, "timeout": PATIENCE}
        done = subprocess.run(["sh", "-c", command], **options)
    (answer,) = json.loads(done.stdout)["predictions"]
    return answer
