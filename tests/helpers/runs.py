"""Functions that write and read training runs and count copies to the host, and a fake training step."""

import collections
import contextlib
import math

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file
from tensorflow.python.framework import ops
from tensorflow.python.ops import gen_resource_variable_ops

from helpers.models import SMALL
from tfdecouple.config import Config, DataConfig, TrainingConfig
from tfdecouple.loggers import read_metrics
from tfdecouple.training.step import StepResult, TrainStep

# Names of the metrics in metrics.jsonl that measure speed, which differs between two runs of one config.
TIMING = ("images_per_second",)


def run_config(images, *, model=SMALL, **training):
    """Returns the config of a run of ten steps on the image folder `images`; steps 5 and 10 evaluate and save."""
    options = {"steps": 10, "batch_size": 8, "learning_rate": 0.01, "warmup_steps": 2, "ema_decay": 0.5}
    options |= {"init_images": 16, "log_every": 2, "evaluate_every": 5, "evaluation_batch_size": 4}
    options |= {"checkpoint_every": 5, "keep_checkpoints": 2}
    data = DataConfig(source=f"folder:{images}", horizontal_flip=True, pad_and_crop=1)
    return Config(name="tiny", model=model, data=data, training=TrainingConfig(**{**options, **training}))


def write_run(folder, model, **config):
    """Writes a model's config and weights into a run folder, as the checkpoint "best" of step 1; returns `folder`."""
    from tfdecouple.storage.checkpoints import CheckpointFolder
    from tfdecouple.storage.files import write_text

    write_text(folder / "config.json", Config(name=folder.name, model=model.config, **config).to_json())
    CheckpointFolder(folder / "checkpoints").write_checkpoint("best", 1, {"model": model.named_variables()})
    return folder


def read_checkpoint(run, name):
    """Returns {GROUP/NAME: array} of the checkpoint `name`, such as "best-000000010", of the run folder `run`."""
    return load_file(run / "checkpoints" / f"{name}.safetensors")


def assert_same_checkpoint(ours, theirs, name):
    np.testing.assert_equal(read_checkpoint(ours, name), read_checkpoint(theirs, name))


def read_log(run):
    """Returns {(kind, step): dict of metrics} of a run's metrics.jsonl; a kind is "train", "validation" or "test"."""
    rows = list(read_metrics(run / "metrics.jsonl"))
    values = {(row["kind"], row["step"]): row for row in rows}
    assert len(values) == len(rows)
    return values


def read_log_without_timing(run):
    """Returns {(kind, step): dict of metrics} of a run's metrics.jsonl, like `read_log`, without images per second."""
    return {key: {k: v for k, v in row.items() if k not in TIMING} for key, row in read_log(run).items()}


class FakeStep:
    """A stand-in for `TrainStep` that computes no gradients: it adds 0.001 to averaged weights and first moments."""

    # Tests set this to the indices of the steps whose update is to be skipped, as if the loss were not finite.
    bad = ()
    # Tests set this to the index of a step at which the run is to stop, as if another worker had asked for it.
    told_to_stop = None

    def __init__(self, state, strategy):
        self.state = state

    @staticmethod
    def kl(step):
        return 2.0 + step / 8

    def __call__(self, micro_batches, step, stop=False):
        applied = step not in self.bad and not self.state.halted.numpy()
        kl = self.kl(step) if step not in self.bad else math.nan
        if applied:
            for buffer in (self.state.optimizer._averages, self.state.optimizer._means):
                buffer.variable.assign_add(tf.fill(buffer.variable.shape, 1e-3))
        stopping = stop or step == self.told_to_stop
        numbers = map(tf.constant, (kl + 1, 1.0, kl, 0.0, kl + 2, 0.1))
        result = StepResult(*numbers, tf.constant(applied), tf.constant(float(stopping)))
        self.state.count_step(result)
        return result


def call_before_steps(monkeypatch, act, of=TrainStep):
    """Makes training call `act(step_function, index of the step)` before each step, until the test ends."""
    original = of.__call__

    def step(self, micro_batches, number, *wish):
        act(self, number)
        return original(self, micro_batches, number, *wish)

    monkeypatch.setattr(of, "__call__", step)


@contextlib.contextmanager
def count_reads():
    """Yields {count of finished steps: count of values that training copies to the host}, filled inside the context."""
    numpy, read, take = ops._EagerTensorBase._numpy, gen_resource_variable_ops.read_variable_op, TrainStep.__call__
    counts, steps = collections.Counter(), [0]

    def count_numpy(tensor):
        counts[steps[-1]] += 1
        return numpy(tensor)

    def count_variable(*args, **kwargs):
        counts[steps[-1]] += tf.executing_eagerly()
        return read(*args, **kwargs)

    def take_step(function, micro_batches, step, *flags):
        result = take(function, micro_batches, step, *flags)
        steps.append(step + 1)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops._EagerTensorBase, "_numpy", count_numpy)
        patch.setattr(gen_resource_variable_ops, "read_variable_op", count_variable)
        patch.setattr(TrainStep, "__call__", take_step)
        yield counts
