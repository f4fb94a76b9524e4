"""What an installation without extras takes, and what each extra adds: packages and megabytes of files.

    python benchmarks/sizes.py

It reads what is installed beside this Python; an extra whose packages are not all there is named with them.
"""

from __future__ import annotations

import importlib.metadata
import pathlib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(name: str, extras: frozenset[str]) -> tuple[set[str], set[str]]:
    """Returns the packages that a package with some of its extras brings, itself too, and those that are missing."""
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
    """Returns how large the files of packages are."""
    files = (file.locate() for name in names for file in importlib.metadata.files(name) or ())
    return sum(pathlib.Path(file).stat().st_size for file in files if pathlib.Path(file).is_file()) / 1e6


def main() -> int:
    """Prints a line for the installation without extras and for each extra."""
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
