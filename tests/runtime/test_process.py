"""Tests of what the programs set for their whole process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from helpers.places import PATIENCE, ROOT

pytestmark = pytest.mark.usefixtures("forked")

PROGRAM = """
import json
from tfdecouple.runtime.process import start_tensorflow
start_tensorflow()
import tensorflow as tf
from tfdecouple.runtime.execution import shard_count
threading = tf.config.threading
print(json.dumps([
    threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads(), shard_count()
]))
"""


def run(program):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TF_NUM_", "MALLOC_"))}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=PATIENCE
    )


def test_a_program_has_a_thread_for_every_core():
    cores = len(os.sched_getaffinity(0))
    shards = 2 if cores == 2 else 1
    assert json.loads(run(PROGRAM).stdout) == [cores // shards, cores // shards * shards, shards]


LEAVES_GARBAGE = """
import gc, sys
from tfdecouple.runtime.process import run_program

class Found:
    def __init__(self):
        self.itself = self
    def __del__(self):
        print("looked through")

gc.disable()
sys.exit(run_program(lambda: Found() and 3))
"""


def test_ends_without_looking_for_garbage_once_more():
    """With the graphs of a training that took 7 s on two busy cores, and 28 s on one core alone."""
    done = run(LEAVES_GARBAGE)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
