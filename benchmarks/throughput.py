"""How fast the real model trains, evaluates, encodes, decodes and samples, in one process for one figure.

    python benchmarks/throughput.py --phase train16 --preset cifar10
    python benchmarks/throughput.py --phase first_step32 --preset quickstart
    python benchmarks/throughput.py --phase train4 --preset quickstart --set 'model.steps=[8,[8,8],[8,8],8]'

A phase is a kind and a number of images: train, eval, encode, decode, sample or first_step, each with any number.

  train       the step of `train.py` as it is: data pipeline, noise, gradients, norm, the test for values that are not
              finite, AdamW at a rate of 1e-6, averaged weights (on at 0.999 where a preset has none); of a repetition
              the last result is read, as of the steps between two rows of a run's log
  eval        the evaluation of a run: bits/dim at one draw, with the noise of each image
  encode      `model.encode` as the commands call it; decode and sample likewise
  first_step  the training step, once: how long it takes from the start of the program until it is done

TensorFlow is set up as the programs set it up, with --threads for the number of cores. Images are random. The last line
is one JSON object.
`first_step_s` counts from the start of the process to the end of the first call; the first two calls are not among
the repetitions, each of which takes --seconds or longer. `peak_rss_mib` is the largest resident memory of the whole
process, tracing included. With --live TensorFlow takes its memory by an allocator that counts, which it has for GPUs:
`peak_live_mib` is the most that its tensors had at once, weights included.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import re
import resource
import statistics
import sys
import time

_LOADED = time.monotonic()

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The checkout that this program belongs to is measured, whatever else is installed.
sys.path.insert(0, str(ROOT))

from tfdecouple.config import MEMORY, PRECISIONS, Config, load_preset, override  # noqa: E402
from tfdecouple.doctor.benchmark import COUNTING, EMA_DECAY, Benchmark, make_timed_config, read_live_bytes, time_calls  # noqa: E402
from tfdecouple.doctor.result import PHASES  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402
from tfdecouple.runtime.process import run_program, start_tensorflow  # noqa: E402

KINDS = (*PHASES, "first_step")
# Images of first_step where no number is given; the others need one.
FIRST_STEP_BATCH = 16


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
    parser.add_argument("--memory", choices=MEMORY, help="as training.memory; default as the preset")
    parser.add_argument("--live", action="store_true", help="count the bytes of live tensors (slower)")
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

    if options.live:
        os.environ.update(COUNTING)
    start_tensorflow(options.threads)
    import tfdecouple.training  # noqa: F401 - all that train.py imports

    mark("import")
    benchmark = Benchmark(config, mark=mark)
    work = benchmark.make_work("train" if kind == "first_step" else kind, batch)
    work.call()
    mark("first_call")
    first = time.monotonic() - process_start()
    begun = time.perf_counter()
    work.call()
    second = time.perf_counter() - begun
    calls = max(1, math.ceil(options.seconds / second)) if kind != "first_step" else 1
    walls, cpus = time_calls(work.call, 0 if kind == "first_step" else options.reps, calls, work.begin)
    row = {
        "phase": options.phase,
        "preset": options.preset,
        "set": options.set,
        "batch": batch,
        "threads": options.threads,
        "precision": config.training.precision if kind in ("train", "first_step") else "float32",
        "memory": config.training.memory if kind in ("train", "first_step") else None,
        "ema_decay": config.training.ema_decay,
        "params": benchmark.model.parameter_count()["total"],
        "first_step_s": round(first, 2),
        "after_imports_s": round(first - marks["program"] - marks["import"], 2),
        **{f"{name}_s": round(seconds, 2) for name, seconds in marks.items()},
        "second_step_s": round(second, 4),
        "peak_rss_mib": round(peak_rss_mib(), 1),
    }
    if options.live:
        row["peak_live_mib"] = round(read_live_bytes("CPU:0") / 2**20, 2)
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
    for given, option in ((options.precision, "--precision"), (options.memory, "--memory")):
        if given and given != "float32" and not trains:
            raise UserError(f"{option} concerns training alone; {options.phase} does not train")
    changes = []
    if trains and not config.training.ema_decay:
        print(f"the preset averages no weights: training.ema_decay={EMA_DECAY} is set, to count the work", flush=True)
    if options.precision:
        changes.append(f"training.precision={options.precision}")
    if options.memory:
        changes.append(f"training.memory={options.memory}")
    config = override(make_timed_config(config, batch), [*changes, *options.set])
    if config.training.batch_size != batch:
        raise UserError(f"the phase says {batch} images and --set training.batch_size={config.training.batch_size}")
    return config


def peak_rss_mib() -> float:
    """Returns the largest resident memory that this process ever had."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2**20 if sys.platform == "darwin" else size / 2**10


def process_start() -> float:
    """Returns when this process started, on the clock of `time.monotonic`; when it loaded this file, where unknown."""
    try:
        fields = pathlib.Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return since_boot - time.clock_gettime(time.CLOCK_BOOTTIME) + time.monotonic()
    except (OSError, ValueError, IndexError, AttributeError):
        return _LOADED


if __name__ == "__main__":
    sys.exit(main())
