"""ONNX Runtime's own format, for its small builds for phones: made of the ONNX files by the tool that comes with it."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

from export.formats.files import FileFormat, Sources
from tfdecouple.errors import UserError

# What a build for these files alone needs to have, beside them.
OPERATORS = "required_operators.config"


class Ort(FileFormat):
    """Files whose graphs are optimised already, for any processor, and the list of operations that a build needs."""

    name = "ort"
    title = "ORT"
    suffix = ".ort"
    layout = "NCHW"
    made_of = "onnx"

    def write(self, sources: Sources, folder: pathlib.Path) -> None:
        """Converts the ONNX files of float32.

        Raises:
            UserError: where the tool fails, with what it said.
        """
        from export.formats.onnx import FORMAT as ONNX

        sources.say("ORT: converting the ONNX files")
        for name in sources.names.values():
            model = sources.area / ONNX.name / f"{name}{ONNX.suffix}"
            command = [
                *(sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", str(model)),
                *("--output_dir", str(folder), "--optimization_style", "Fixed"),
            ]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            if done.returncode or not (folder / f"{name}{self.suffix}").is_file():
                lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
                said = lines[-1].strip()[:300] if lines else "no message"
                raise UserError(f"ONNX Runtime's tool cannot convert {model.name}: {said}")
        _merge(folder)

    def calls(self, endpoints: Mapping[str, Any]) -> list[str]:
        """Returns what differs from the calls of ONNX files."""
        return [
            "The files of `ort/` are opened and called as those of `onnx/`, by any build of ONNX Runtime that has the "
            f"operations of `ort/{OPERATORS}`.",
            "",
        ]


FORMAT = Ort()


def operators_in(models: Iterable[pathlib.Path]) -> str:
    """Returns the list of operations that a build for files of this format needs, as the files themselves have them."""
    from onnxruntime.tools.ort_format_model import create_config_from_models

    with tempfile.TemporaryDirectory() as scratch:
        listed = pathlib.Path(scratch, OPERATORS)
        create_config_from_models(list(models), listed, False)
        return _merged([listed])


def _merge(folder: pathlib.Path) -> None:
    """Makes one list of operations of those that the tool wrote for each file."""
    paths = sorted(folder.glob(f"*{OPERATORS}"))
    text = _merged(paths)
    for path in paths:
        path.unlink()
    (folder / OPERATORS).write_text(text, encoding="utf-8")


def _merged(paths: Iterable[pathlib.Path]) -> str:
    """Returns one list of operations of several."""
    found: dict[tuple[str, str], set[str]] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip() and not line.startswith("#"):
                domain, opset, operations = line.strip().split(";")
                found.setdefault((domain, opset), set()).update(operations.split(","))
    lines = [f"{domain};{opset};{','.join(sorted(names))}" for (domain, opset), names in sorted(found.items())]
    return "\n".join(lines) + "\n"
