"""Paths in the repository, folders that tests share, and the time limit and environment of programs in tests."""

import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
DATA = TESTS / "data"
# Seconds after which a test counts a program as hanging: ten times what the longest takes on a slow machine.
PATIENCE = 1800
# The environment variable with the path of a folder that several runs of pytest share, as in `make test-all`.
SHARED = "TFDECOUPLE_MADE_ONCE"


def user_environment():
    """Returns {name: value} of the environment without `TF_CPP_MIN_LOG_LEVEL`, so TensorFlow logs as for a user."""
    return {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}


def run_command(*command, folder=ROOT, **variables):
    """Runs a program in a folder, as a user would; returns a `CompletedProcess` with texts.

    `variables` are added to the environment; those that are None are removed.
    """
    environment = {name: value for name, value in {**user_environment(), **variables}.items() if value is not None}
    command = list(map(str, command))
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)


def run_python(*arguments, **options):
    """Runs Python as `run_command` runs a program."""
    return run_command(sys.executable, *arguments, **options)


def read_output(*command, **options):
    """Runs a program by `run_command`, asserts that it ends with status 0, and returns its standard output."""
    done = run_command(*command, **options)
    assert done.returncode == 0, f"{done.args}\n{done.stdout}{done.stderr}"
    return done.stdout


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """Returns the path of a folder that all test processes share; the first caller fills it by `make(folder)`.

    Each `make` needs a name of its own. Tests must neither change the folder nor lock a file in it.
    """
    base = factory.getbasetemp()
    if SHARED in os.environ:
        base = pathlib.Path(os.environ[SHARED])
    elif "PYTEST_XDIST_WORKER" in os.environ:
        # With pytest-xdist each process has its own base folder, but the parent folder is the same for all processes.
        base = base.parent
    folder, done = base / name, base / f"{name}.done"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            # An earlier process may have failed in `make`, and left an incomplete folder.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def copy_once(factory: pytest.TempPathFactory, name: str, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """Returns the path of this test process's copy of a folder, which `make(folder)` fills once for all processes."""
    return pathlib.Path(shutil.copytree(make_once(factory, f"{name}-once", make), factory.mktemp(name) / name))
