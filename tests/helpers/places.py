"""Paths in the repository, folders that are made once for all tests, and a time limit and environment for programs."""

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
# Name of an environment variable: the path of a folder that several runs of pytest share, as in `make test-all`.
SHARED = "TFDECOUPLE_MADE_ONCE"


def user_environment():
    """Returns a dict of the environment variables without `TF_CPP_MIN_LOG_LEVEL`, so that TensorFlow logs messages."""
    return {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """Returns the path of a folder that all test processes share; the first of them fills it by `make(folder)`.

    The other processes wait meanwhile. Tests must neither change the folder nor lock a file in it.

    Args:
        factory: the fixture `tmp_path_factory`.
        name: name of the folder, unique for each `make`.
        make: function that fills an empty folder.
    """
    base = factory.getbasetemp()
    if SHARED in os.environ:
        base = pathlib.Path(os.environ[SHARED])
    elif "PYTEST_XDIST_WORKER" in os.environ:
        # With pytest-xdist each process has its own base folder; the parent folder is common to all processes.
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
    """Returns the path of a copy, for this process alone, of the folder that `make_once` makes with these arguments."""
    return pathlib.Path(shutil.copytree(make_once(factory, f"{name}-once", make), factory.mktemp(name) / name))
