"""Functions that make a folder only once for all processes of pytest, because making it takes long."""

from __future__ import annotations

import fcntl
import os
import pathlib
import shutil
from collections.abc import Callable

import pytest

# Environment variable with a folder that several runs of pytest share, such as those of `make test-all`.
SHARED = "TFDECOUPLE_MADE_ONCE"


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """Returns a folder that all processes share; the first process fills it with `make(folder)` while others wait.

    No test may change the folder or lock a file in it.

    Args:
        factory: the fixture `tmp_path_factory`.
        name: name of the folder, unique for each `make`.
        make: function that fills an empty folder.
    """
    base = factory.getbasetemp()
    if SHARED in os.environ:
        base = pathlib.Path(os.environ[SHARED])
    elif "PYTEST_XDIST_WORKER" in os.environ:
        # With pytest-xdist each process has its own base folder inside the folder of the run.
        base = base.parent
    folder, done = base / name, base / f"{name}.done"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            # A process that failed may have left an incomplete folder.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def copied_once(factory: pytest.TempPathFactory, name: str, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """Returns this process's own copy of a folder that `made_once` makes with the same arguments."""
    return pathlib.Path(shutil.copytree(made_once(factory, f"{name}-once", make), factory.mktemp(name) / name))
