"""Tools to time a model that is set up as for a training, for `doctor` and the programs of `benchmarks/`."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tfdecouple.config import Config, override
from tfdecouple.errors import UserError

# Decay of averaged weights if a preset has none, so that every benchmark includes the work of averaging.
EMA_DECAY = 0.999
# Environment variable that makes TensorFlow count bytes on CPUs, which is slower. TensorFlow reads it at its start.
COUNTING = {"TF_CPU_ALLOCATOR_USE_BFC": "1"}


def make_timed_config(config: Config, batch: int) -> Config:
    """Returns a config for timing: with batch size `batch`, without micro-batches, and with averaged weights.

    The learning rate is tiny, because a preset's own learning rate can diverge on few images that repeat.
    """
    return override(
        config,
        [
            "training.learning_rate=1e-6",
            f"training.batch_size={batch}",
            "training.micro_batches=1",
            f"training.evaluation_batch_size={batch}",
            f"training.ema_decay={config.training.ema_decay or EMA_DECAY}",
        ],
    )


class Work(NamedTuple):
    """A piece of work that is timed, such as a training step.

    Attributes:
        call: a function that does the work once and waits until it is done.
        images: the number of images of a call.
        begin: a function that starts the work without waiting for a GPU; None if only `call` is available.
    """

    call: Callable[[], Any]
    images: int
    begin: Callable[[], Any] | None = None


class Benchmark:
    """A model and its images, set up as for a training, with the work that can be timed.

    Args:
        config: the config of the training.
        source: the images; None for random images.
        devices: the number of devices that train.
        mark: a callback that receives the name of each part once it is set up.

    Attributes:
        model: the model, initialised from images.
        source: the opened images.
    """

    def __init__(
        self, config: Config, source: Any = None, devices: int = 1, mark: Callable[[str], None] = lambda name: None
    ):
        import keras

        from tfdecouple.data import training_batches
        from tfdecouple.training.state import TrainingState
        from tfdecouple.training.step import TrainStep
        from tfdecouple.training.workers import make_strategy

        self.config, self.strategy = config, make_strategy(devices)
        self.source = source or _make_random_source(config)
        mark("data")
        keras.utils.set_random_seed(config.training.seed)
        with self.strategy.scope():
            self.state = TrainingState(config)
        self.model, self.step = self.state.model, TrainStep(config, self.state, self.strategy)
        mark("model")
        count = min(config.training.init_images, self.source.sizes["train"])
        first = training_batches(self.source, config.data, batch_size=count, seed=config.training.seed)
        self.model.initialize(next(iter(first))["image"], seed=config.training.seed)
        self.state.optimizer.start_averages()
        mark("initialize")

    def make_work(self, phase: str, batch: int) -> Work:
        """Returns the work of a phase, one of `result.PHASES`, on `batch` images."""
        import numpy as np

        from tfdecouple.data import load_images
        from tfdecouple.runtime.execution import jit_compiled

        # With training.jit_compile, inference is compiled too, as `load_model(run, jit_compile=True)` compiles it.
        compiled, model = jit_compiled(self.config.training.jit_compile), self.model
        if phase == "train":
            begin = self._make_step()
            return Work(compiled(lambda: _require_applied(begin().read())), batch, compiled(begin))
        if phase == "eval":
            return self._evaluate(batch, compiled)
        if phase == "sample":
            return Work(compiled(lambda: model.sample(batch, temperature=0.7, seed=0).numpy()), batch)
        images, labels = load_images(self.source, "test", batch, at_most=True)
        images, labels = np.resize(images, (batch, *images.shape[1:])), model.wanted_labels(np.resize(labels, batch))
        if phase == "encode":
            return Work(compiled(lambda: model.encode(images, labels).v.numpy()), batch)
        z, v = model.encode(images, labels)[:2]
        return Work(compiled(lambda: model.decode(z, v).numpy()), batch)

    def _make_step(self) -> Callable[[], Any]:
        """Returns a function that begins the next training step and returns its result, which may not be there yet."""
        from tfdecouple.data import training_batches
        from tfdecouple.data.labels import make_step_inputs
        from tfdecouple.training.workers import device_input_options

        training, steps = self.config.training, itertools.count()
        options = {"batch_size": training.batch_size, "seed": training.seed, "micro_batches": training.micro_batches}
        examples = training_batches(self.source, self.config.data, **options)
        inputs = make_step_inputs(examples, self.source, self.config.model)
        batches = iter(self.strategy.experimental_distribute_dataset(inputs, device_input_options()))
        return lambda: self.step([next(batches) for _ in range(training.micro_batches)], next(steps))

    def _evaluate(self, batch: int, compiled: Callable[..., Any]) -> Work:
        from tfdecouple.data import evaluation_batches
        from tfdecouple.metrics.bits_per_dim import BoundEvaluator

        evaluator = BoundEvaluator(self.model, self.strategy)
        # A call evaluates several batches, because the first batch of a pass takes longer.
        count = min(max(4 * batch, 64) // batch * batch, self.source.sizes["test"])
        batches = evaluation_batches(self.source, "test", batch_size=batch, limit=count)
        return Work(compiled(lambda: evaluator(batches, seed=0)), count)


def _require_applied(result: Any) -> None:
    if not result.applied:
        raise UserError(f"a step was not applied: {result}")


def _make_random_source(config: Config) -> Any:
    import numpy as np

    from tfdecouple.data.splits import MemorySplit, Source

    shape, held_out = config.model.image_shape, 4 * config.training.batch_size
    counts = {"train": max(config.training.init_images, held_out), "validation": held_out, "test": held_out}

    def load(count: int) -> tuple[Any, Any]:
        labels = np.arange(count, dtype=np.int32) % max(config.model.classes, 1)
        return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8), labels

    splits = {name: MemorySplit(count, "random", functools.partial(load, count)) for name, count in counts.items()}
    return Source(name="random", title="random images", label_names=(), image_shape=shape, splits=dict(splits))


def time_calls(
    call: Callable[[], Any], reps: int, calls: int, begin: Callable[[], Any] | None = None
) -> tuple[list[float], list[float]]:
    """Returns the wall times and the CPU times of `reps` repetitions of `calls` calls, in seconds.

    All calls but the last of a repetition use `begin` if there is one, as a training waits only when it logs.
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


def read_live_bytes(device: str, kind: str = "peak") -> int:
    """Returns the "peak" or "current" bytes of TensorFlow's tensors on a device; for a CPU, `COUNTING` must be set."""
    import tensorflow as tf

    return int(tf.config.experimental.get_memory_info(device)[kind])
