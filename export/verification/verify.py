"""`python -m export --verify DIR`: an export folder is verified once more, where it lies."""

from __future__ import annotations

import importlib.util
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from export import manifest
from export.verification.gate import run_gate
from export.verification.runtimes import REMOTE, RUNTIMES


def verify(folder: pathlib.Path, say: Callable[[str], Any] = print) -> tuple[list[str], list[str]]:
    """Compares an export folder with its manifest and verifies each of its parts.

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
    """Verifies one part; returns what is wrong, and whose answers were not checked."""
    problems: list[str] = []
    unavailable: list[str] = []
    ran = 0
    with tempfile.TemporaryDirectory() as scratch:
        paths = (folder / part.folder).resolve(), (folder / part.cases).resolve(), pathlib.Path(scratch, "report.json")
        for who, options in _here(part.runtime, name, say):
            say(f"{name}: {who}")
            report = run_gate(part.runtime, *paths, say, {**part.options, **options})
            if report.notes.get("unavailable"):
                say(f"{name}: {who} is installed but cannot be started here: not checked")
                unavailable.append(f"{name} by {who}")
            else:
                ran += 1
            problems += [f"{who}: {problem}" for problem in report.problems]
    return problems, unavailable if ran else [name]


def _here(runtime: str, name: str, say: Callable[[str], Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields who computes on this machine, and what the verification is told beside the part's options."""
    if runtime == "litert" and importlib.util.find_spec("ai_edge_litert") is None:
        say(f"{name}: ai-edge-litert is not installed here: not checked")
    elif runtime != "onnx":
        yield RUNTIMES[runtime].package, {}
    else:
        for provider in installed_providers():
            if provider == REMOTE:
                say(f"{name}: {provider} computes on a server elsewhere: not checked")
            else:
                yield provider, {"provider": provider}


def installed_providers() -> list[str]:
    """Returns the execution providers of the installed ONNX Runtime."""
    import onnxruntime

    return list(onnxruntime.get_available_providers())
