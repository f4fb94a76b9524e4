"""The model and its images as a run sets them up, to be trained and used again and again under a clock.

`doctor` and the programs under `benchmarks/` time the same things.
"""

from __future__ import annotations

import dataclasses
import functools
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tfdecouple.config import Config, override
from tfdecouple.errors import DataError, UserError

# What can be timed of a model; each is given a number of images.
PHASES = ("train", "eval", "encode", "decode", "sample")
# Of weights that a preset does not average, so that the work is counted.
EMA_DECAY = 0.999
# Crops of photographs where a preset names another source: enough to start from and to shuffle.
CROPS = 2048
# With it in the environment before TensorFlow starts, its allocator of a CPU counts what it gives; it is slower.
COUNTING = {"TF_CPU_ALLOCATOR_USE_BFC": "1"}


def as_timed(config: Config, batch: int) -> Config:
    """Returns a config with so many images a batch, in one piece, of the photographs, and with averaged weights.

    What is timed is not to learn: on few images, which come again and again, a preset's rate can diverge.
    """
    changes = [
        "training.learning_rate=1e-6",
        f"training.batch_size={batch}",
        "training.micro_batches=1",
        f"training.evaluation_batch_size={batch}",
    ]
    if config.data.source != "photographs":
        crops = max(CROPS, config.training.init_images, batch)
        changes += ["data.source=photographs", f"data.photograph_crops={crops}"]
    if not config.training.ema_decay:
        changes.append(f"training.ema_decay={EMA_DECAY}")
    return override(config, changes)


@dataclasses.dataclass(frozen=True)
class Work:
    """What is repeated.

    Attributes:
        call: does it once and waits until it is done.
        images: how many images that is.
        begin: does it once; on a GPU it need not be done yet. None where that is the same.
    """

    call: Callable[[], Any]
    images: int
    begin: Callable[[], Any] | None = None


class Session:
    """The model and its images, set up as a run sets them up.

    Args:
        config: of the run; batches are of its `training.batch_size`.
        images: "photographs" or "random"; None for photographs where they are large enough.
        mark: is told the name of each part when it is there.
        devices: how many train.

    Attributes:
        model: the model, initialised from images.
        images: where the images come from, in words.

    Raises:
        DataError: where photographs are asked for and smaller than the images of the model.
    """

    def __init__(
        self,
        config: Config,
        images: str | None = None,
        mark: Callable[[str], None] = lambda name: None,
        devices: int = 1,
    ):
        import keras

        from tfdecouple.data import training_batches
        from tfdecouple.training.state import TrainingState
        from tfdecouple.training.step import TrainStep
        from tfdecouple.training.strategy import make_strategy

        self.config = config
        self.strategy = make_strategy(devices)
        self.source, self.images = open_images(config, images)
        mark("data")
        keras.utils.set_random_seed(config.training.seed)
        with self.strategy.scope():
            self.state = TrainingState(config)
        self.model = self.state.model
        self.step = TrainStep(config, self.state, self.strategy)
        mark("model")
        count = min(config.training.init_images, self.source.sizes["train"])
        first = training_batches(self.source, config.data, batch_size=count, seed=config.training.seed)
        self.model.initialize(next(iter(first))["image"], seed=config.training.seed)
        self.state.optimizer.start_averages()
        mark("initialize")

    def work(self, kind: str, batch: int) -> Work:
        """Returns what is repeated: one of `PHASES` with so many images."""
        from tfdecouple.runtime.xla import jit_compiled

        work = {
            "train": self._train,
            "eval": self._evaluate,
            "encode": self._encode,
            "decode": self._decode,
            "sample": self._sample,
        }[kind](batch)
        # Inference, too, as `load_model(run, jit_compile=True)` has it.
        compiled = jit_compiled(self.config.training.jit_compile)
        return Work(compiled(work.call), work.images, work.begin and compiled(work.begin))

    def _train(self, batch: int) -> Work:
        batches = self._batches()
        micro_batches = self.config.training.passes
        steps = iter(range(2**31))

        def begin() -> Any:
            return self.step([next(batches) for _ in range(micro_batches)], next(steps))

        def step() -> None:
            result = begin().read()
            if not result.applied:
                raise UserError(f"a step was not applied: {result}")

        return Work(step, batch, begin)

    def _batches(self) -> Iterator[Any]:
        from tfdecouple.data import training_batches
        from tfdecouple.data.labels import training_examples
        from tfdecouple.training.strategy import ready_on_devices

        training = self.config.training
        batches = training_batches(
            self.source,
            self.config.data,
            batch_size=training.batch_size,
            seed=training.seed,
            micro_batches=training.passes,
        )
        examples = training_examples(batches, self.source, self.config.model)
        return iter(self.strategy.experimental_distribute_dataset(examples, ready_on_devices()))

    def _evaluate(self, batch: int) -> Work:
        from tfdecouple.data import evaluation_batches
        from tfdecouple.metrics import Evaluator

        evaluator = Evaluator(self.model, self.strategy)
        # Some batches at a time, as beginning to read a split takes a while of its own.
        count = min(max(4 * batch, 64) // batch * batch, self.source.sizes["test"])
        batches = evaluation_batches(self.source, "test", batch_size=batch, limit=count)
        return Work(lambda: evaluator(batches, seed=0), count)

    def _some_images(self, batch: int) -> tuple[Any, Any]:
        """Returns images, some again where there are fewer, and what the model wants to know of their labels."""
        import numpy as np

        from tfdecouple.data import load_images

        images, labels = load_images(self.source, "test", batch, at_most=True)
        return np.resize(images, (batch, *images.shape[1:])), self.model.wanted_labels(np.resize(labels, batch))

    def _encode(self, batch: int) -> Work:
        images, labels = self._some_images(batch)
        # Read back, as every command does.
        return Work(lambda: self.model.encode(images, labels).v.numpy(), batch)

    def _decode(self, batch: int) -> Work:
        z, v = self.model.encode(*self._some_images(batch))
        return Work(lambda: self.model.decode(z, v).numpy(), batch)

    def _sample(self, batch: int) -> Work:
        return Work(lambda: self.model.sample(batch, temperature=0.7, seed=0).numpy(), batch)


def open_images(config: Config, images: str | None) -> tuple[Any, str]:
    """Opens the source of images and says what they are.

    Raises:
        DataError: where photographs are asked for and smaller than the images of the model, or their labels are others
            than it knows.
    """
    from tfdecouple.data import open_source
    from tfdecouple.data.labels import require_classes

    if images != "random":
        try:
            source = open_source(config.data, config.model.image_shape)
            require_classes(source, config.model)
            return source, f"crops of photographs ({config.data.source})"
        except DataError:
            if images == "photographs" or config.data.source != "photographs":
                raise
    return _random_source(config), "random uint8"


def _random_source(config: Config) -> Any:
    import numpy as np

    from tfdecouple.data.source import Source
    from tfdecouple.data.split import MemorySplit

    shape, batch = config.model.image_shape, config.training.batch_size
    counts = {"train": max(config.training.init_images, 4 * batch), "validation": 4 * batch, "test": 4 * batch}

    def load(count: int) -> tuple[Any, Any]:
        rng = np.random.default_rng(0)
        # Of a model that knows no labels nobody asks for them.
        labels = np.arange(count, dtype=np.int32) % max(config.model.classes, 1)
        return rng.integers(0, 256, (count, *shape), dtype=np.uint8), labels

    splits = {name: MemorySplit(count, "random", functools.partial(load, count)) for name, count in counts.items()}
    return Source(name="random", title="random images", label_names=(), image_shape=shape, splits=splits)


def timed(
    call: Callable[[], Any], reps: int, calls: int, begin: Callable[[], Any] | None = None
) -> tuple[list[float], list[float]]:
    """Returns the wall and the CPU time of each repetition of so many calls.

    Args:
        call: does the work once and waits for it.
        reps: how many repetitions.
        calls: in each.
        begin: does the work without waiting: as a run does between two rows of its log, all but the last are of these.
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


def peak_rss_mib() -> float:
    """Returns the largest resident memory that this process ever had."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2**20 if sys.platform == "darwin" else size / 2**10


def peak_live_bytes(device: str) -> int:
    """Returns the most bytes that TensorFlow's tensors ever had at once on a device; of a CPU with `COUNTING` alone."""
    import tensorflow as tf

    return int(tf.config.experimental.get_memory_info(device)["peak"])
