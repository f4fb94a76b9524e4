"""Paths of the repository, folders that are made only once, and time limit and environment of programs in tests."""

from __future__ import annotations

import fcntl
import os
import pathlib
import shutil
from collections.abc import Callable

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
DATA = TESTS / "data"
# Seconds after which a program counts as hanging: ten times longer than any program takes on a slow machine.
PATIENCE = 1800
# The environment variable that names a folder which several runs of pytest share, as in `make test-all`.
SHARED = "TFDECOUPLE_MADE_ONCE"


def user_environment():
    """Returns the environment variables without `TF_CPP_MIN_LOG_LEVEL`, which silences TensorFlow in tests."""
    return {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
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


def copy_once(factory: pytest.TempPathFactory, name: str, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """Returns a copy, for this process alone, of a folder that `make_once` makes with the same arguments."""
    return pathlib.Path(shutil.copytree(make_once(factory, f"{name}-once", make), factory.mktemp(name) / name))
