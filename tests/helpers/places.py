"""Paths of the repository, the limit of time for programs, and the environment in which tests run them."""

from __future__ import annotations

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
DATA = TESTS / "data"
# Seconds after which a program counts as hanging: over ten times what any program takes, so that slow machines pass.
PATIENCE = 1800


def user_environment():
    """Returns the environment variables without `TF_CPP_MIN_LOG_LEVEL`, by which tests silence TensorFlow."""
    return {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
