"""Measures speed and memory of a model that is set up for training."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tfdecouple.config import Config
from tfdecouple.errors import UserError

# The kinds of work that are timed: training, evaluation of bits/dim, encoding, decoding, sampling.
PHASES = ("train", "eval", "encode", "decode", "sample")
# Decay of the weights' moving average for presets without one, so that every benchmark includes the averaging.
EMA_DECAY = 0.999
# With this environment variable TensorFlow counts the bytes of tensors on CPUs; it makes the process slower.
COUNTING = {"TF_CPU_ALLOCATOR_USE_BFC": "1"}


def make_timed_config(config: Config, batch: int) -> Config:
    """Returns `config` changed for timing: batch size `batch`, no micro-batches, averaged weights, tiny learning rate.

    With the learning rate of `config`, training can diverge, because the benchmark repeats few images.
    """
    decay = config.training.ema_decay or EMA_DECAY
    settings = ["training.learning_rate=1e-6", "training.micro_batches=1", f"training.ema_decay={decay}"]
    settings += [f"training.{name}={batch}" for name in ("batch_size", "evaluation_batch_size")]
    return config.override(settings)


class Work(NamedTuple):
    """Work that is timed, such as a training step.

    The function `call` does the work once, on `images` images, and waits for the result. The function `begin`, if
    it is not None, starts the work and does not wait for a GPU.
    """

    call: Callable[[], Any]
    images: int
    begin: Callable[[], Any] | None = None


class Benchmark:
    """A model and a data set, set up for training on `devices` devices; `make_work` returns functions to time.

    Attributes:
        model: the model, whose data-dependent weights are initialised from images.
        source: the data set (`Source`): the argument `source`, or random images if the argument is None.
    """

    def __init__(self, config: Config, source: Any = None, devices: int = 1):
        import keras

        from tfdecouple.data.batches import make_training_batches
        from tfdecouple.runtime.run_mode import RunMode
        from tfdecouple.training.state import TrainingState
        from tfdecouple.training.step import TrainStep
        from tfdecouple.training.workers import make_strategy

        self.config, self.strategy = config, make_strategy(devices)
        self.source = source or _make_random_source(config)
        keras.utils.set_random_seed(config.training.seed)
        with self.strategy.scope():
            self.state = TrainingState(config)
        self.model, self.step = self.state.model, TrainStep(config, self.state, self.strategy)
        # With training.jit_compile XLA also compiles inference, as it does after `load_model(run, jit_compile=True)`.
        self.model.flow.runner.mode = RunMode(jit_compile=config.training.jit_compile)
        count = min(config.training.init_images, self.source.sizes["train"])
        first = make_training_batches(self.source, config.data, batch_size=count, seed=config.training.seed)
        self.model.initialize(next(iter(first))["image"], seed=config.training.seed)
        self.state.optimizer.start_averages()

    def make_work(self, phase: str, batch: int) -> Work:
        """Returns the `Work` (functions to time) of a phase, such as "train", on batches of `batch` images."""
        import numpy as np

        from tfdecouple.data.batches import load_images, make_evaluation_batches
        from tfdecouple.metrics.bits_per_dim import BoundEvaluator

        model = self.model
        if phase == "train":
            begin = self._make_step()
            return Work(lambda: _require_applied(begin().fetch_numbers()), batch, begin)
        if phase == "eval":
            evaluator = BoundEvaluator(model, self.strategy)
            # A timed call evaluates several batches, so that the slower first batch of an evaluation weighs less.
            count = min(max(4 * batch, 64) // batch * batch, self.source.sizes["test"])
            batches = make_evaluation_batches(self.source, "test", batch_size=batch, limit=count)
            return Work(lambda: evaluator(batches, seed=0), count)
        if phase == "sample":
            return Work(lambda: model.sample(batch, temperature=0.7, seed=0).numpy(), batch)
        images, labels = load_images(self.source, "test", batch, at_most=True)
        images = np.resize(images, (batch, *images.shape[1:]))
        labels = np.resize(labels, batch) if model.config.has_labels else None
        if phase == "encode":
            return Work(lambda: model.encode(images, labels).v.numpy(), batch)
        z, v = model.encode(images, labels)[:2]
        return Work(lambda: model.decode(z, v).numpy(), batch)

    def _make_step(self) -> Callable[[], Any]:
        """Returns a function that starts a training step and returns the step's result without waiting for a GPU."""
        from tfdecouple.data.batches import make_training_batches
        from tfdecouple.data.labels import make_training_inputs
        from tfdecouple.training.workers import make_device_input_options

        training, steps = self.config.training, itertools.count()
        options = {"batch_size": training.batch_size, "seed": training.seed, "micro_batches": training.micro_batches}
        examples = make_training_batches(self.source, self.config.data, **options)
        inputs = make_training_inputs(examples, self.source, self.config.model)
        batches = iter(self.strategy.experimental_distribute_dataset(inputs, make_device_input_options()))
        return lambda: self.step([next(batches) for _ in range(training.micro_batches)], next(steps))


def _require_applied(result: Any) -> None:
    """Raises UserError if the training step with this result left the weights unchanged, as with a NaN loss."""
    if not result.applied:
        raise UserError(f"a step was not applied: {result}")


def _make_random_source(config: Config) -> Any:
    """Returns a data set (`Source`) of random images and labels with the image shape and classes of a config."""
    import numpy as np

    from tfdecouple.data.splits import MemorySplit, Source

    shape, held_out = config.model.image_shape, 4 * config.training.batch_size
    counts = {"train": max(config.training.init_images, held_out), "validation": held_out, "test": held_out}

    def make_split(count: int) -> Any:
        images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
        labels = np.arange(count, dtype=np.int32) % max(config.model.classes, 1)
        return MemorySplit(count, "random", lambda: (images, labels))

    splits = {name: make_split(count) for name, count in counts.items()}
    return Source(name="random", title="random images", label_names=(), image_shape=shape, splits=splits)


def time_calls(
    call: Callable[[], Any], reps: int, calls: int, begin: Callable[[], Any] | None = None
) -> tuple[list[float], list[float]]:
    """Times `reps` repetitions of `calls` calls; returns two lists: wall times and CPU times of repetitions in seconds.

    If `begin` is given, which starts the work without waiting for a GPU, it is called instead of `call`, except for the
    last call of a repetition. Training, too, waits for the GPU only when it logs.
    """
    walls, cpus = [], []
    for _ in range(reps):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(calls - 1):
            (begin or call)()
        call()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return walls, cpus


def read_peak_bytes(device: str) -> int:
    """Returns the largest number of bytes of tensors on a device; a CPU needs the environment of `COUNTING`."""
    import tensorflow as tf

    return int(tf.config.experimental.get_memory_info(device)["peak"])
