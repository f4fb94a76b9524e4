"""How fast the real model trains, evaluates, encodes, decodes and samples, in one process for one figure.

    python benchmarks/throughput.py --phase train16 --preset cifar10
    python benchmarks/throughput.py --phase first_step32 --preset quickstart
    python benchmarks/throughput.py --phase train4 --preset quickstart --set 'model.steps=[8,[8,8],[8,8],8]'

A phase is a kind and a number of images: train, eval, encode, decode, sample or first_step, each with any number.

  train       the step of `train.py` as it is: data pipeline, noise, gradients, norm, the test for values that are not
              finite, AdamW, averaged weights (on at 0.999 where a preset has none) and reading the result
  eval        the evaluation of a run: bits/dim at one draw, with the noise of each image
  encode      `model.encode` as the commands call it; decode and sample likewise
  first_step  the training step, once: how long it takes from the start of the program until it is done

TensorFlow is set up as the programs set it up, with --threads for the number of cores. Images are crops of the
embedded photographs, or random ones where a model's images are larger than those. The last line is one JSON object.
`first_step_s` counts from the start of the process to the end of the first call; the first two calls are not among
the repetitions, each of which takes --seconds or longer. `peak_rss_mib` is the largest resident memory of the whole
process, tracing included.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

_LOADED = time.monotonic()

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The checkout that this program belongs to is measured, whatever else is installed.
sys.path.insert(0, str(ROOT))

from tfdecouple.config import PRECISIONS, Config, load_preset, option_names, override  # noqa: E402
from tfdecouple.errors import DataError, UserError  # noqa: E402
from tfdecouple.runtime.process import run_program, start_tensorflow  # noqa: E402

KINDS = ("train", "eval", "encode", "decode", "sample", "first_step")
# Images of first_step where no number is given; the others need one.
FIRST_STEP_BATCH = 16
EMA_DECAY = 0.999
# Crops of photographs where a preset names another source: enough to start from and to shuffle.
CROPS = 2048


@dataclasses.dataclass(frozen=True)
class Work:
    """What is repeated.

    Attributes:
        call: does it once.
        images: how many images that is.
    """

    call: Callable[[], Any]
    images: int


def main() -> int:
    """Measures one phase."""
    options = make_parser().parse_args()
    return run_program(lambda: measure(options))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", required=True, help="a kind and a number of images, such as train16")
    parser.add_argument("--preset", default="cifar10", help="default cifar10")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="as for train.py")
    parser.add_argument("--threads", type=int, default=2, help="that compute (default 2)")
    parser.add_argument("--reps", type=int, default=3, help="repetitions (default 3)")
    parser.add_argument("--seconds", type=float, default=2.0, help="least duration of a repetition (default 2)")
    parser.add_argument("--precision", choices=PRECISIONS, help="of training; default as the preset")
    parser.add_argument("--remat", action="store_true", help="recompute activations (training.remat)")
    parser.add_argument("--images", choices=("photographs", "random"), help="default photographs where they fit")
    return parser


def measure(options: argparse.Namespace) -> int:
    """Runs the phase and prints its figures."""
    kind, batch = parse_phase(options.phase)
    for name in ("threads", "reps"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; it must be at least 1")
    config = make_config(options, kind, batch)
    marks = {"program": time.monotonic() - process_start()}

    def mark(name: str) -> None:
        marks[name] = time.monotonic() - process_start() - sum(marks.values())

    start_tensorflow(options.threads)
    import tfdecouple.training  # noqa: F401 - all that train.py imports

    mark("import")
    session = Session(config, options.images, mark)
    work = session.work(kind, batch)
    work.call()
    mark("first_call")
    first = time.monotonic() - process_start()
    begun = time.perf_counter()
    work.call()
    second = time.perf_counter() - begun
    calls = max(1, math.ceil(options.seconds / second)) if kind != "first_step" else 1
    walls, cpus = timed(work.call, 0 if kind == "first_step" else options.reps, calls)
    row = {
        "phase": options.phase,
        "preset": options.preset,
        "set": options.set,
        "batch": batch,
        "threads": options.threads,
        "precision": config.training.precision if kind in ("train", "first_step") else "float32",
        "remat": options.remat,
        "ema_decay": config.training.ema_decay,
        "images": session.images,
        "params": session.model.parameter_count()["total"],
        "first_step_s": round(first, 2),
        "after_imports_s": round(first - marks["program"] - marks["import"], 2),
        **{f"{name}_s": round(seconds, 2) for name, seconds in marks.items()},
        "second_step_s": round(second, 4),
        "peak_rss_mib": round(peak_rss_mib(), 1),
    }
    if walls:
        images = work.images * calls
        row |= {
            "images_per_s": round(images / statistics.median(walls), 4),
            "best_images_per_s": round(images / min(walls), 4),
            "cpu_s_per_image": round(statistics.median(cpus) / images, 6),
            "ms_per_call": round(1000 * statistics.median(walls) / calls, 3),
            "reps": options.reps,
            "calls_per_rep": calls,
        }
    print(json.dumps(row), flush=True)
    return 0


def parse_phase(text: str) -> tuple[str, int]:
    """Returns kind and number of images of a phase.

    Raises:
        UserError: for an unknown phase.
    """
    match = re.fullmatch(r"([a-z_]+?)(\d*)", text)
    kind, digits = match.groups() if match else ("", "")
    if kind not in KINDS or not (digits or kind == "first_step") or (digits and not int(digits)):
        raise UserError(
            f"there is no phase {text!r}; it is one of {', '.join(KINDS)} and a number of images, such as train16"
        )
    return kind, int(digits or FIRST_STEP_BATCH)


def make_config(options: argparse.Namespace, kind: str, batch: int) -> Config:
    """Returns the preset with what the options change.

    Raises:
        UserError: for impossible options.
    """
    config = load_preset(options.preset)
    trains = kind in ("train", "first_step")
    for given, option in ((options.precision, "--precision"), (options.remat, "--remat")):
        if given and given != "float32" and not trains:
            raise UserError(f"{option} concerns training alone; {options.phase} does not train")
    if options.remat and "training.remat" not in option_names():
        raise UserError("--remat needs the option training.remat, which this version does not have")
    changes = [
        f"training.batch_size={batch}",
        "training.micro_batches=1",
        f"training.evaluation_batch_size={batch}",
    ]
    if config.data.source != "photographs":
        crops = max(CROPS, config.training.init_images, batch)
        changes += ["data.source=photographs", f"data.photograph_crops={crops}"]
    if not config.training.ema_decay:
        changes.append(f"training.ema_decay={EMA_DECAY}")
        if trains:
            print(
                f"the preset averages no weights: training.ema_decay={EMA_DECAY} is set, to count the work", flush=True
            )
    if options.precision:
        changes.append(f"training.precision={options.precision}")
    if options.remat:
        changes.append("training.remat=true")
    config = override(config, [*changes, *options.set])
    if config.training.batch_size != batch:
        raise UserError(f"the phase says {batch} images and --set training.batch_size={config.training.batch_size}")
    return config


def process_start() -> float:
    """Returns when this process started, on the clock of `time.monotonic`; when it loaded this file, where unknown."""
    try:
        fields = pathlib.Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return since_boot - time.clock_gettime(time.CLOCK_BOOTTIME) + time.monotonic()
    except (OSError, ValueError, IndexError, AttributeError):
        return _LOADED


class Session:
    """The model and its images, set up as a run sets them up.

    Attributes:
        model: the model, initialised from images.
        images: where the images come from, in words.
    """

    def __init__(self, config: Config, images: str | None, mark: Callable[[str], None]):
        import keras

        from tfdecouple.data import training_batches
        from tfdecouple.training.state import TrainingState
        from tfdecouple.training.step import TrainStep
        from tfdecouple.training.strategy import make_strategy

        self.config = config
        self.strategy = make_strategy(1)
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
        """Returns what a phase repeats."""
        return {
            "train": self._train,
            "first_step": self._train,
            "eval": self._evaluate,
            "encode": self._encode,
            "decode": self._decode,
            "sample": self._sample,
        }[kind](batch)

    def _train(self, batch: int) -> Work:
        batches = self._batches()
        micro_batches = self.config.training.micro_batches
        steps = iter(range(2**31))

        def step() -> None:
            result = self.step([next(batches) for _ in range(micro_batches)], next(steps))
            # As the loop of a run reads it; the step is not done before.
            values = [float(value) for value in result[:5]]
            if not bool(result.applied):
                raise UserError(f"a step was not applied: {values}")

        return Work(step, batch)

    def _batches(self) -> Iterator[Any]:
        from tfdecouple.data import training_batches

        training = self.config.training
        batches = training_batches(
            self.source,
            self.config.data,
            batch_size=training.batch_size // training.micro_batches,
            seed=training.seed,
        )
        images = batches.map(lambda batch: batch["image"])
        return iter(self.strategy.experimental_distribute_dataset(images))

    def _evaluate(self, batch: int) -> Work:
        from tfdecouple.data import evaluation_batches
        from tfdecouple.metrics import Evaluator

        evaluator = Evaluator(self.model, self.strategy)
        # Some batches at a time, as beginning to read a split takes a while of its own.
        count = min(max(4 * batch, 64) // batch * batch, self.source.sizes["test"])
        batches = evaluation_batches(self.source, "test", batch_size=batch, limit=count)
        return Work(lambda: evaluator(batches, seed=0), count)

    def _some_images(self, batch: int) -> Any:
        from tfdecouple.data import load_images

        return load_images(self.source, "test", batch)[0]

    def _encode(self, batch: int) -> Work:
        images = self._some_images(batch)
        # Read back, as every command does.
        return Work(lambda: self.model.encode(images).v.numpy(), batch)

    def _decode(self, batch: int) -> Work:
        z, v = self.model.encode(self._some_images(batch))
        return Work(lambda: self.model.decode(z, v).numpy(), batch)

    def _sample(self, batch: int) -> Work:
        return Work(lambda: self.model.sample(batch, temperature=0.7, seed=0).numpy(), batch)


def open_images(config: Config, images: str | None) -> tuple[Any, str]:
    """Opens the source of images and says what they are.

    Raises:
        DataError: where photographs are asked for and smaller than the images of the model.
    """
    from tfdecouple.data import open_source

    if images != "random":
        try:
            return open_source(config.data, config.model.image_size), f"crops of photographs ({config.data.source})"
        except DataError:
            if images == "photographs" or config.data.source != "photographs":
                raise
    return _random_source(config), "random uint8"


def _random_source(config: Config) -> Any:
    import numpy as np

    from tfdecouple.data.source import Source
    from tfdecouple.data.split import MemorySplit

    size, batch = config.model.image_size, config.training.batch_size
    counts = {"train": max(config.training.init_images, 4 * batch), "validation": 4 * batch, "test": 4 * batch}

    def load(count: int) -> tuple[Any, Any]:
        rng = np.random.default_rng(0)
        return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8), np.full(count, -1, np.int32)

    splits = {name: MemorySplit(count, "random", lambda count=count: load(count)) for name, count in counts.items()}
    return Source(name="random", title="random images", label_names=(), image_size=size, splits=splits)


def timed(call: Callable[[], Any], reps: int, calls: int) -> tuple[list[float], list[float]]:
    """Returns the wall and the CPU time of each repetition of so many calls."""
    walls, cpus = [], []
    for _ in range(reps):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(calls):
            call()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return walls, cpus


def peak_rss_mib() -> float:
    """Returns the largest resident memory that this process ever had."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2**20 if sys.platform == "darwin" else size / 2**10


if __name__ == "__main__":
    sys.exit(main())
