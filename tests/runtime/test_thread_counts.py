"""A test of many threads: the same numbers with any count of them, and in any number of shards, within rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.places import PATIENCE, ROOT

PROGRAM = """
import json, sys
sys.path.insert(0, "tests")
from tfdecouple.runtime.process import start_tensorflow
start_tensorflow(int(sys.argv[1]))
import keras, numpy as np, tensorflow as tf
from helpers.models import SMALL, give_effect, random_images
from tfdecouple.config import Config, TrainingConfig
from tfdecouple.runtime.execution import shard_count
from tfdecouple.training.state import TrainingState
from tfdecouple.training.step import TrainStep
from tfdecouple.training.strategy import make_strategy

config = Config(model=SMALL, training=TrainingConfig(batch_size=16, learning_rate=1e-3, warmup_steps=0))
strategy = make_strategy(1)
keras.utils.set_random_seed(1)
with strategy.scope():
    state = TrainingState(config)
state.model.initialize(random_images(16, seed=9), seed=0)
give_effect(state.model)
images = random_images(16)
step = TrainStep(config, state, strategy)
results = [step([tf.constant(images)], number) for number in range(2)]
codes = state.model.encode(images)
print(json.dumps({
    "shards": shard_count(),
    "steps": [[float(value) for value in result[:5]] for result in results],
    "z": codes.z.numpy().tolist(),
    "v": codes.v.numpy().tolist(),
    "came back": bool(np.array_equal(state.model.decode(*codes), images)),
}))
"""


def computed(threads, shards=""):
    """What a program with so many threads trains, encodes and decodes."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TF_NUM_", "TFDECOUPLE_SHARDS"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(threads)],
        cwd=ROOT,
        env={**clean, "TFDECOUPLE_SHARDS": shards},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_any_number_of_threads_computes_the_same(forked):
    one = computed(1)
    assert one["shards"] == 1
    for threads, shards, expected in ((2, "", 2), (4, "4", 4), (16, "", 1)):
        found = computed(threads, shards)
        assert found["shards"] == expected and found["came back"], (threads, shards)
        np.testing.assert_allclose(found["steps"], one["steps"], rtol=1e-4, err_msg=f"{threads} threads")
        # The second step has moved the weights by Adam, which makes much of a gradient's rounding near 0.
        np.testing.assert_allclose(found["z"], one["z"], atol=1e-3, err_msg=f"{threads} threads")
        np.testing.assert_allclose(found["v"], one["v"], atol=1e-2, err_msg=f"{threads} threads")
