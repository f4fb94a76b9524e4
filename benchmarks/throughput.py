"""Measures how fast a model trains, evaluates, encodes, decodes or samples.

    python benchmarks/throughput.py --phase train16 --preset cifar10
    python benchmarks/throughput.py --phase first_step32 --preset quickstart
    python benchmarks/throughput.py --phase train4 --preset quickstart --set 'model.steps=[8,[8,8],[8,8],8]'

A phase is a kind of work followed by the number of images in a batch. The kinds are:

  train       the training step of `train.py` with its data pipeline, a learning rate of 1e-6, and averaged weights
              (decay 0.999 if the preset averages none); only the result of a repetition's last step is copied to the
              host, as between two rows of a run's log
  eval        bits/dim with one draw of noise, as a run evaluates
  encode      `model.encode`, as the commands call it; decode and sample likewise
  first_step  one training step, the first one of the program

TensorFlow is set up as in the project's programs, but with --threads threads. Images are random. The last line of the
output is one JSON object. After the first two calls come --reps repetitions, each with as many calls as take --seconds
or longer.
`peak_rss_mib` is the largest resident memory of the whole process, tracing included. With --live, `peak_live_mib` is
the largest memory of TensorFlow's tensors at one time, weights included, counted by an allocator that TensorFlow has
for GPUs.
"""

import argparse
import itertools
import json
import math
import os
import pathlib
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

# This checkout comes first on `sys.path`, so that no other installed version of the project is measured.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from tfdecouple.config import Config, preset_config
from tfdecouple.errors import UserError
from tfdecouple.system.process import run_program, start_tensorflow

KINDS = ("train", "eval", "encode", "decode", "sample", "first_step")
# Decay of the weights' moving average for presets without one, so that every benchmark includes the averaging.
EMA_DECAY = 0.999


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", required=True, help="a kind of work and a number of images, such as train16")
    parser.add_argument("--preset", default="cifar10", help="preset of the model (default cifar10)")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="config value as for train.py")
    parser.add_argument("--threads", type=int, default=2, help="number of threads (default 2)")
    parser.add_argument("--reps", type=int, default=3, help="repetitions (default 3)")
    parser.add_argument("--seconds", type=float, default=2.0, help="least duration of a repetition (default 2)")
    parser.add_argument("--live", action="store_true", help="count the bytes of live tensors (slower)")
    options = parser.parse_args()
    kind, batch = parse_phase(options.phase)
    trains = kind in ("train", "first_step")
    config = make_config(options, kind, batch)
    if options.live:
        # With this variable TensorFlow counts the bytes of tensors on CPUs, which makes the process slower.
        os.environ["TF_CPU_ALLOCATOR_USE_BFC"] = "1"
    start_tensorflow(options.threads)
    import tensorflow as tf

    import tfdecouple.training  # noqa: F401 - imports all that train.py imports

    benchmark = Benchmark(config)
    built = time.perf_counter()
    work = benchmark.make_work("train" if kind == "first_step" else kind, batch)
    work.call()
    first = time.perf_counter() - built
    (second,), _ = time_calls(work.call, reps=1, calls=1)
    calls = max(1, math.ceil(options.seconds / second)) if kind != "first_step" else 1
    walls, cpus = time_calls(work.call, 0 if kind == "first_step" else options.reps, calls, work.begin)
    row = {
        "phase": options.phase,
        "preset": options.preset,
        "set": options.set,
        "batch": batch,
        "threads": options.threads,
        "precision": config.training.precision if trains else "float32",
        "memory": config.training.memory if trains else None,
        "ema_decay": config.training.ema_decay,
        "params": benchmark.model.parameter_count()["total"],
        "first_call_s": round(first, 2),
        "second_step_s": round(second, 4),
        "peak_rss_mib": round(read_peak_rss_mib(), 1),
    }
    if options.live:
        row["peak_live_mib"] = round(tf.config.experimental.get_memory_info("CPU:0")["peak"] / 2**20, 2)
    if walls:
        images = work.images * calls
        row |= {
            "images_per_s": round(images / statistics.median(walls), 4),
            "cpu_s_per_image": round(statistics.median(cpus) / images, 6),
            "ms_per_call": round(1000 * statistics.median(walls) / calls, 3),
            "reps": options.reps,
            "calls_per_rep": calls,
        }
    print(json.dumps(row), flush=True)
    return 0


def parse_phase(text: str) -> tuple[str, int]:
    """Splits a phase such as "train16" into the kind of work, "train", and the number of images in a batch, 16."""
    match = re.fullmatch(rf"({'|'.join(KINDS)})([1-9]\d*)", text)
    if not match:
        raise UserError(
            f"there is no phase {text!r}; it is one of {', '.join(KINDS)} and a number of images, such as train16"
        )
    return match[1], int(match[2])


def make_config(options: argparse.Namespace, kind: str, batch: int) -> Config:
    """Returns the config of --preset with --set, for timing `kind` on batches of `batch` images without micro-batches.

    The learning rate is tiny, because the benchmark repeats few images, on which training could diverge.
    """
    config = preset_config(options.preset)
    if kind in ("train", "first_step") and not config.training.ema_decay:
        print(f"the preset averages no weights: training.ema_decay={EMA_DECAY} is set, to count the work", flush=True)
    settings = [f"training.ema_decay={config.training.ema_decay or EMA_DECAY}", "training.learning_rate=1e-6"]
    settings += [f"training.{name}={batch}" for name in ("batch_size", "evaluation_batch_size")]
    config = config.override([*settings, "training.micro_batches=1", *options.set])
    if config.training.batch_size != batch:
        raise UserError(f"the phase says {batch} images and --set training.batch_size={config.training.batch_size}")
    return config


class Work(NamedTuple):
    """Work that is timed, such as a training step.

    The function `call` does the work once, on `images` images, and waits for the result. The function `begin`, if
    it is not None, starts the work and does not wait for a GPU.
    """

    call: Callable[[], Any]
    images: int
    begin: Callable[[], Any] | None = None


class Benchmark:
    """A model, initialised and set up for training on random images; `make_work` returns functions to time."""

    def __init__(self, config: Config):
        import keras

        from tfdecouple.data.batches import make_training_batches
        from tfdecouple.execution.run_mode import RunMode
        from tfdecouple.training.step import TrainingState, TrainStep
        from tfdecouple.training.workers import make_strategy

        self.config, self.strategy, self.source = config, make_strategy(1), make_random_source(config)
        keras.utils.set_random_seed(config.training.seed)
        with self.strategy.scope():
            self.state = TrainingState(config)
        self.model, self.step = self.state.model, TrainStep(self.state, self.strategy)
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
            return Work(lambda: begin().fetch_numbers(), batch, begin)
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
        given = (images, np.resize(labels, batch)) if model.config.has_labels else (images,)
        if phase == "encode":
            return Work(lambda: model.encode(*given).v.numpy(), batch)
        z, v = model.encode(*given)[:2]
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


def make_random_source(config: Config) -> Any:
    """Returns a data set (`Source`) of random images and labels with the image shape and classes of a config."""
    import numpy as np

    from tfdecouple.data.sources import Source
    from tfdecouple.data.splits import MemorySplit

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


def read_peak_rss_mib() -> float:
    """Returns the largest resident memory of this process since its start, in MiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2**20 if sys.platform == "darwin" else size / 2**10


if __name__ == "__main__":
    sys.exit(run_program(main))
