"""Tests of what the programs set for their whole process."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys

import pytest
from helpers.places import PATIENCE, ROOT

from tfdecouple.runtime import process
from tfdecouple.runtime.execution import shard_count

pytestmark = pytest.mark.usefixtures("forked")

PROGRAM = """
import json, os, sys
from tfdecouple.runtime.process import start_tensorflow
start_tensorflow(json.loads(sys.argv[1]))
import tensorflow as tf
from tfdecouple.runtime.execution import shard_count
threading = tf.config.threading
print(json.dumps([
    threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads(), shard_count()
]))
"""


def threads(asked, **environment):
    """Threads of an operation, operations side by side, and parts of a batch of a program that asks for so many."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TF_NUM_", "MALLOC_"))}
    command = [sys.executable, "-c", PROGRAM, json.dumps(asked)]
    done = subprocess.run(
        command, cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(("asked", "expected"), [(1, [1, 1, 1]), (2, [1, 2, 2]), (8, [8, 8, 1])])
def test_two_threads_take_an_operation_each_and_more_share_them(asked, expected):
    assert threads(asked) == expected


@pytest.mark.parametrize(("shards", "expected"), [(2, [4, 8, 2]), (3, [2, 6, 3]), (5, [1, 5, 5])])
def test_there_are_as_many_shards_as_the_variable_says(monkeypatch, shards, expected):
    import tensorflow as tf

    settings = tf.config.threading
    set_to = {}
    for kind in ("intra", "inter"):
        monkeypatch.setattr(settings, f"set_{kind}_op_parallelism_threads", functools.partial(set_to.__setitem__, kind))
        monkeypatch.setattr(settings, f"get_{kind}_op_parallelism_threads", functools.partial(set_to.get, kind))
        monkeypatch.delenv(f"TF_NUM_{kind.upper()}OP_THREADS", raising=False)
    process.divide_cores(8, shards)
    assert [set_to["intra"], set_to["inter"], shard_count()] == expected


def test_without_a_number_there_is_a_thread_for_every_core():
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("the system does not say which cores are ours")
    cores = len(os.sched_getaffinity(0))
    assert threads(None) == threads(cores)


def test_who_sets_a_variable_of_tensorflow_keeps_its_choice():
    assert threads(2, TF_NUM_INTRAOP_THREADS="2") == [0, 0, 1]


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
    done = subprocess.run(
        [sys.executable, "-c", LEAVES_GARBAGE], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
