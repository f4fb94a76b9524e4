"""`python -m export --verify DIR`: the gate once more, on what lies in an export folder, where it lies."""

from __future__ import annotations

import importlib.util
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from export import manifest
from export.verification.run import further_checks, run_gate

# It hands calls over to a service elsewhere and computes nothing here.
REMOTE = "AzureExecutionProvider"
# Who computes, of the checks for which there is one runtime.
_ALONE = {"check_saved_model": "TensorFlow", "check_litert": "LiteRT"}


def verify(folder: pathlib.Path, say: Callable[[str], Any] = print) -> tuple[list[str], list[str]]:
    """Compares an export folder with its manifest and runs the gate on each of its parts.

    ONNX files are tried with every execution provider of ONNX Runtime that is installed here.

    Args:
        folder: the export folder.
        say: is told each thing that takes its time, and what cannot be verified.

    Returns:
        What is wrong, a line each: one for each file that is changed, missing or unknown, and one for each part that
        does not pass. And whose answers were not checked: a part, or a part and a runtime.

    Raises:
        UserError: where the folder has no manifest, or a damaged one.
    """
    known = manifest.load(folder)
    problems: list[str] = []
    unchecked: list[str] = []
    changed: set[str] = set()
    for what, name in known.changes(folder):
        if what == "changed" and name in manifest.EDITABLE:
            say(f"changed: {name} (settings of a server, which are yours to edit)")
        else:
            problems.append(f"{what}: {name}")
        changed.add(name)
    same = len({*known.files} - changed)
    say(f"{same} of {len(known.files)} files are as they were exported")
    problems += [f"no part of the manifest: {name}" for name in known.unclaimed(folder)]
    if not known.parts:
        problems.append("the manifest names nothing that could be checked")
    for name, part in known.parts.items():
        own = {one for one in known.files if one.startswith(f"{name}/")} | {part.cases}
        if changed & own or not own <= {*known.files}:
            problems.append(f"{name}: its answers were not checked, since files of it are not as they were exported")
            continue
        wrong, left = _check(folder, name, part, say)
        problems += [f"{name}: {problem}" for problem in wrong]
        unchecked += left
    return problems, unchecked


def _check(
    folder: pathlib.Path, name: str, part: manifest.Part, say: Callable[[str], Any]
) -> tuple[list[str], list[str]]:
    """Runs the gate on one part; returns what is wrong, and whose answers were not checked."""
    cases = folder / part.cases
    problems: list[str] = []
    unavailable: list[str] = []
    ran = 0
    with tempfile.TemporaryDirectory() as scratch:
        checked, result = (folder / part.folder).resolve(), pathlib.Path(scratch, "report.json")
        if part.folder != name:
            # The page keeps its models among other files.
            models = pathlib.Path(scratch, "models")
            models.mkdir()
            for path in checked.glob("*.onnx*"):
                shutil.copyfile(path, models / path.name)
            checked = models
        for who, prefix, check, options in _gates(part.check, name, say):
            say(f"{name}: {who}")
            report = run_gate(check, checked, cases.resolve(), result, say, **{**part.options, **options})
            if report.notes.get("unavailable"):
                say(f"{name}: {report.notes['unavailable']} is installed but cannot be started here: not checked")
                unavailable.append(f"{name} by {report.notes['unavailable']}")
            else:
                ran += 1
            problems += [f"{prefix}{problem}" for problem in report.problems]
    return problems, unavailable if ran else [name]


def _gates(check: str, name: str, say: Callable[[str], Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yields of all that is installed who computes, how its problems begin, its check and what that is told, too."""
    if check in _ALONE:
        if check == "check_litert" and importlib.util.find_spec("ai_edge_litert") is None:
            say(f"{name}: ai-edge-litert is not installed here: not checked")
        else:
            yield _ALONE[check], "", check, {}
        return
    for provider in installed_providers():
        if provider == REMOTE:
            say(f"{name}: {provider} computes on a server elsewhere: not checked")
        else:
            yield f"ONNX Runtime, {provider}", f"{provider}: ", check, {"provider": provider}
    for package, further in further_checks(check).items():
        yield package, f"{package}: ", further, {}


def installed_providers() -> list[str]:
    """Returns the execution providers of the installed ONNX Runtime."""
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def part_of(check: str, folder: str, cases: str, options: dict[str, Any]) -> manifest.Part:
    """Returns how a part is checked, as the manifest keeps it."""
    return manifest.Part(check=check, folder=folder, cases=cases, options=options)
