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
output is one JSON object. `built_cpu_s` has the CPU seconds of the process until the model is built, and
`first_call_cpu_s` those of the first call. After the first two calls come --reps repetitions, each with as many calls
as take --seconds or longer.
`peak_rss_mib` is the largest resident memory of the whole process, tracing included. With --live, `peak_live_mib` is
the largest memory of TensorFlow's tensors at one time, weights included, counted by an allocator that TensorFlow has
for GPUs.
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

ROOT = pathlib.Path(__file__).resolve().parents[1]
# This checkout comes first on `sys.path`, so that no other installed version of the project is measured.
sys.path.insert(0, str(ROOT))

from benchmarks.model_benchmark import (  # noqa: E402
    COUNTING,
    EMA_DECAY,
    PHASES,
    Benchmark,
    make_timed_config,
    read_peak_bytes,
    time_calls,
)
from tfdecouple.config import MEMORY, PRECISIONS, Config, preset_config  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402
from tfdecouple.runtime.process import run_program, start_tensorflow  # noqa: E402

KINDS = (*PHASES, "first_step")
# Batch size of the phase "first_step" without a number; all other phases, such as train16, need a number.
FIRST_STEP_BATCH = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", required=True, help="a kind of work and a number of images, such as train16")
    parser.add_argument("--preset", default="cifar10", help="preset of the model (default cifar10)")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="config value as for train.py")
    parser.add_argument("--threads", type=int, default=2, help="number of threads (default 2)")
    parser.add_argument("--reps", type=int, default=3, help="repetitions (default 3)")
    parser.add_argument("--seconds", type=float, default=2.0, help="least duration of a repetition (default 2)")
    parser.add_argument("--precision", choices=PRECISIONS, help="training.precision (default: the preset's)")
    parser.add_argument("--memory", choices=MEMORY, help="training.memory (default: the preset's)")
    parser.add_argument("--live", action="store_true", help="count the bytes of live tensors (slower)")
    options = parser.parse_args()
    return run_program(lambda: measure_phase(options))


def measure_phase(options: argparse.Namespace) -> int:
    """Times the work in --phase, such as train16 (training on 16 images); prints a JSON object; returns status 0."""
    kind, batch = parse_phase(options.phase)
    trains = kind in ("train", "first_step")
    config = make_config(options, kind, batch)
    if options.live:
        os.environ.update(COUNTING)
    start_tensorflow(options.threads)
    import tfdecouple.training  # noqa: F401 - imports all that train.py imports

    benchmark = Benchmark(config)
    built, built_cpu = time.perf_counter(), time.process_time()
    work = benchmark.make_work("train" if kind == "first_step" else kind, batch)
    work.call()
    first, first_cpu = time.perf_counter() - built, time.process_time() - built_cpu
    (second,), (second_cpu,) = time_calls(work.call, reps=1, calls=1)
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
        "built_cpu_s": round(built_cpu, 2),
        "first_call_cpu_s": round(first_cpu, 2),
        "second_call_cpu_s": round(second_cpu, 2),
        "peak_rss_mib": round(read_peak_rss_mib(), 1),
    }
    if options.live:
        row["peak_live_mib"] = round(read_peak_bytes("CPU:0") / 2**20, 2)
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
    match = re.fullmatch(r"([a-z_]+?)(\d*)", text)
    kind, digits = match.groups() if match else ("", "")
    if kind not in KINDS or not (digits or kind == "first_step") or (digits and not int(digits)):
        raise UserError(
            f"there is no phase {text!r}; it is one of {', '.join(KINDS)} and a number of images, such as train16"
        )
    return kind, int(digits or FIRST_STEP_BATCH)


def make_config(options: argparse.Namespace, kind: str, batch: int) -> Config:
    """Returns the config of --preset, with --precision, --memory and --set, for timing work such as "train"."""
    config = preset_config(options.preset)
    trains = kind in ("train", "first_step")
    for value, option in ((options.precision, "--precision"), (options.memory, "--memory")):
        if value and value != "float32" and not trains:
            raise UserError(f"{option} concerns training alone; {options.phase} does not train")
    if trains and not config.training.ema_decay:
        print(f"the preset averages no weights: training.ema_decay={EMA_DECAY} is set, to count the work", flush=True)
    training = {"precision": options.precision, "memory": options.memory}
    changes = [f"training.{name}={value}" for name, value in training.items() if value]
    config = make_timed_config(config, batch).override([*changes, *options.set])
    if config.training.batch_size != batch:
        raise UserError(f"the phase says {batch} images and --set training.batch_size={config.training.batch_size}")
    return config


def read_peak_rss_mib() -> float:
    """Returns the largest resident memory of this process since its start, in MiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2**20 if sys.platform == "darwin" else size / 2**10


if __name__ == "__main__":
    sys.exit(main())
