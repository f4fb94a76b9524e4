"""Folders that take long to make: made by the first of pytest's processes that asks, for all of them."""

from __future__ import annotations

import fcntl
import os
import pathlib
import shutil
from collections.abc import Callable

import pytest

# Names a folder for them in the environment: the quick tests and the long ones then share them, too (`make test-all`).
SHARED = "TFDECOUPLE_MADE_ONCE"


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """Returns a folder that `make(folder)` fills where no process of this run has done so; others wait for it.

    Args:
        factory: the fixture `tmp_path_factory`.
        name: of the folder, one for each call.
        make: is given an empty folder.

    Returns:
        The folder itself, which processes share: nothing may change it, nor lock a file in it.
    """
    base = factory.getbasetemp()
    if SHARED in os.environ:
        base = pathlib.Path(os.environ[SHARED])
    elif "PYTEST_XDIST_WORKER" in os.environ:
        # Each process has its own folder within the run's.
        base = base.parent
    folder, done = base / name, base / f"{name}.done"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            # Where a process failed here a part of it is left.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def copied_once(factory: pytest.TempPathFactory, name: str, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """Returns a copy of its own for this process of what `made_once` returns."""
    return pathlib.Path(shutil.copytree(made_once(factory, f"{name}-once", make), factory.mktemp(name) / name))
