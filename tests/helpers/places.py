"""Where things are, and how programs are run as a user would."""

from __future__ import annotations

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
DATA = TESTS / "data"
# Seconds after which a program is taken to hang. No test fails because a machine is slow: nothing takes a tenth of it.
PATIENCE = 1800


def user_environment():
    """The environment for programs as a user has it: without the setting by which tests keep TensorFlow quiet."""
    return {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
