"""Counts the packages and megabytes of an installation without extras, and those that each extra adds.

    python benchmarks/sizes.py

The program looks only at installed packages. If packages of an extra are missing, the extra's line names them.
"""

from __future__ import annotations

import importlib.metadata
import pathlib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(name: str, extras: frozenset[str]) -> tuple[set[str], set[str]]:
    """Returns the names of a package and all that it requires with these extras: those installed, those missing."""
    found: set[str] = set()
    missing: set[str] = set()
    seen, todo = set(), [(canonicalize_name(name), extras)]
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            missing.add(name)
            continue
        found.add(name)
        for requirement in map(Requirement, requires):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""})):
                todo.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found, missing


def megabytes(names: set[str]) -> float:
    """Returns the total size of the files of installed packages, in megabytes."""
    files = (file.locate() for name in names for file in importlib.metadata.files(name) or ())
    return sum(pathlib.Path(file).stat().st_size for file in files if pathlib.Path(file).is_file()) / 1e6


def main() -> int:
    """Prints a line for the installation without extras and one for each extra; returns the exit status."""
    base, _ = closure("tfdecouple", frozenset())
    print(f"{'without extras':16} {len(base):4} packages {megabytes(base):8,.0f} MB")
    for extra in importlib.metadata.metadata("tfdecouple").get_all("Provides-Extra"):
        with_it, missing = closure("tfdecouple", frozenset({extra}))
        added = with_it - base
        lacks = f"  not installed: {', '.join(sorted(missing))}" if missing else ""
        print(f"{extra:16} {len(added):4} packages {megabytes(added):8,.0f} MB{lacks}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
