"""`python -m export --verify DIR`: the gate once more, on what lies in an export folder, where it lies."""

from __future__ import annotations

import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from export import manifest
from export.verification.run import run_gate

# It hands calls over to a service elsewhere and computes nothing here.
REMOTE = "AzureExecutionProvider"


def verify(folder: pathlib.Path, say: Callable[[str], Any] = print) -> list[str]:
    """Compares an export folder with its manifest and runs the gate on each of its parts.

    ONNX files are tried with every execution provider of ONNX Runtime that is installed here.

    Args:
        folder: the export folder.
        say: is told each thing that takes its time, and what cannot be verified.

    Returns:
        What is wrong, a line each: one for each file that is changed, missing or unknown, and one for each part that
        does not pass.

    Raises:
        UserError: where the folder has no manifest, or a damaged one.
    """
    known = manifest.load(folder)
    problems = []
    for what, name in manifest.changes(folder, known):
        if what == "changed" and name in manifest.EDITABLE:
            say(f"changed: {name} (settings of a server, which are yours to edit)")
        else:
            problems.append(f"{what}: {name}")
    same = len(known["files"]) - sum(not line.startswith("unknown") for line in problems)
    say(f"{same} of {len(known['files'])} files are as they were exported")
    if not known["parts"]:
        problems.append("the manifest names nothing that could be checked")
    for name, part in known["parts"].items():
        problems += [f"{name}: {problem}" for problem in _check(folder, name, part, say)]
    return problems


def _check(folder: pathlib.Path, name: str, part: dict[str, Any], say: Callable[[str], Any]) -> Iterator[str]:
    """Runs the gate on one part; yields what is wrong."""
    cases = folder / part["cases"]
    if not cases.is_file() or not (folder / part["folder"]).is_dir():
        yield "cannot be checked, since files of it are missing"
        return
    with tempfile.TemporaryDirectory() as scratch:
        checked, result = (folder / part["folder"]).resolve(), pathlib.Path(scratch, "report.json")
        if part["check"] == "check_saved_model":
            say(f"{name}: TensorFlow")
            report = run_gate("check_saved_model", checked, cases.resolve(), result, say, **part["options"])
            yield from report.problems
            return
        if part["folder"] != name:
            # The page keeps its models among other files.
            models = pathlib.Path(scratch, "models")
            models.mkdir()
            for path in checked.glob("*.onnx*"):
                shutil.copyfile(path, models / path.name)
            checked = models
        for provider in _providers():
            if provider == REMOTE:
                say(f"{name}: {provider} computes on a server elsewhere: not checked")
                continue
            say(f"{name}: ONNX Runtime, {provider}")
            options = {**part["options"], "provider": provider}
            report = run_gate("check_onnx", checked, cases.resolve(), result, say, **options)
            if report.notes.get("unavailable"):
                say(f"{name}: {provider} is installed but cannot be started here: not checked")
            yield from (f"{provider}: {problem}" for problem in report.problems)


def _providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def part_of(check: str, folder: str, cases: str, options: dict[str, Any]) -> dict[str, Any]:
    """Returns how a part is checked, as the manifest keeps it."""
    return {"check": check, "folder": folder, "cases": cases, "options": json.loads(json.dumps(options))}
