"""The package of additions of docs/extending.md, as it is installed: on the path, with the entry points it declares."""

import contextlib
import importlib
import os
import pathlib
import sys
import tomllib
from collections.abc import Iterator

import pytest

from helpers.places import TESTS
from tfdecouple.registry import REGISTRIES

FOLDER = TESTS / "additions"


def install_additions(folder: pathlib.Path) -> str:
    """Writes the metadata that pip would install into `folder`; returns a PYTHONPATH with them and the package."""
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = folder / f"{project['name']}-{project['version']}.dist-info"
    metadata.mkdir()
    lines = [f"{key}: {project[key.lower()]}" for key in ("Name", "Version")]
    (metadata / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, ""]), encoding="utf-8")
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {place}" for name, place in entries.items()), ""])
        for group, entries in project["entry-points"].items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
    return os.pathsep.join(map(str, (FOLDER, folder)))


@contextlib.contextmanager
def registered_additions() -> Iterator[None]:
    """A context in which the additions are registered in this process, without an entry point."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        for registry in REGISTRIES.values():
            patch.setattr(registry, "entries", dict(registry.entries))
        sys.modules.pop("mine.additions", None)
        importlib.import_module("mine.additions")
        yield
