"""Measures how time and memory grow with the batch and the depth, and calculates the largest batch on a GPU.

    python benchmarks/scaling.py --json scaling.json
    python benchmarks/scaling.py --tables batch,depth --docs docs/results/scaling.md
    python benchmarks/scaling.py --tables memory,ceiling               # only calculates, which takes no time

Each measurement runs in a process of its own (`throughput.py`). The tables are:

  batch   images/s of training with each training.memory, of encoding and of decoding, for each batch size
  depth   seconds of a training step and of tracing, and memory, for each number of flow steps in a stage and each
          training.memory
  memory  calculated, for the presets for large images: memory of a training step, and largest micro-batch on a GPU
  ceiling  calculated: images/s that a GPU can reach at most, by its published peak

An exponent is the slope of a straight line through the points of a column on logarithmic axes, by least squares; 1 is
linear growth. Costs that do not grow, such as the encoder's when the flow gets deeper, make an exponent smaller.

"process, MiB" is the largest resident memory of the process. "MiB/image, measured" is the memory of a large batch minus
that of a batch half as large, divided by the difference of their numbers of images. The memory counts only TensorFlow's
tensors, by its allocator (`throughput.py --live`), with the batch in one piece, as on a GPU. "MiB/image, calculated" is
the prediction of `tfdecouple/networks/architecture.py` for the same memory.

--docs puts each table between the lines `<!-- NAME -->` and `<!-- end NAME -->` of a file. --json is written after
each table, so that an interrupted run keeps the finished tables.
"""

import argparse
import concurrent.futures
import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, make_table, run_json, update_page
from benchmarks.training_cost import PEAKS, compute_ceiling, count_activation_bytes
from tfdecouple.config import MEMORY, PRECISIONS, Config, preset_config
from tfdecouple.errors import UserError
from tfdecouple.networks.architecture import FLOAT32, Architecture
from tfdecouple.storage.files import write_json
from tfdecouple.system.devices import describe_machine
from tfdecouple.system.process import run_program

TABLES = ("batch", "depth", "memory", "ceiling")
# Kinds of work of `throughput.py`, and numbers of images in a batch, that the table "batch" measures.
KINDS = ("train", "encode", "decode")
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
# Numbers of flow steps in each stage, and number of images in a batch, that the table "depth" measures.
DEPTHS = (1, 2, 4, 8, 16)
DEPTH_BATCH = 16
# Presets for large images, for which the table "memory" is calculated.
LARGE = ("imagenet64", "lsun_bedroom_128", "celeba_hq_256")
# Presets for which the table "ceiling" is calculated.
CEILINGS = ("quickstart", "cifar10", *LARGE)
GPUS_GIB = (24, 80)
# Fraction of a GPU's memory that tensors can use; the CUDA context, convolution workspaces and gaps take the rest.
USABLE = 0.9
GIB, MIB = 2**30, 2**20
# A memory measurement compares two batches. The smaller batch has about this many MiB of activations, so that they
# outweigh workspaces and weights; its number of images is limited to this range, so that a CPU is fast enough.
MEMORY_MIB, MEMORY_IMAGES = 256, (4, 128)
# Number of images in the data-dependent initialisation during a memory measurement. With so few images, the training
# step and not the initialisation sets the peak of memory.
INIT_IMAGES = 2

Rows = list[dict[str, Any]]


def count_state_bytes(parameters: int, averages: bool = False) -> int:
    """Returns the bytes of the float32 tensors in training with micro-batches that do not grow with the batch.

    These tensors are the `parameters` weights, their gradients and Adam's two moments, the sum of the gradients of
    micro-batches and the vector that is added to the sum; with `averages` also the averaged weights.
    """
    return FLOAT32 * parameters * (6 + averages)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default=",".join(TABLES), help=f"tables (default {','.join(TABLES)})")
    parser.add_argument("--preset", default="quickstart", help="preset that is measured (default quickstart)")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="config value as for train.py")
    parser.add_argument("--threads", type=int, default=2, help="number of threads (default 2)")
    parser.add_argument("--json", type=pathlib.Path, help="write all measurements to this file")
    parser.add_argument("--docs", type=pathlib.Path, help="put the tables into this Markdown file")
    options = parser.parse_args()
    names = [name for name in options.tables.split(",") if name]
    for name in names:
        if name not in TABLES:
            raise UserError(f"there is no table {name!r}; there are {', '.join(TABLES)}")
    measured: dict[str, Any] = {"machine": describe_machine(), "memory": calculate_memory()}
    measured["ceiling"] = calculate_ceilings()
    for name in names:
        if name == "batch":
            measured[name] = measure_batches(options)
        elif name == "depth":
            measured[name] = [measure_depth(options, memory, depth) for memory in MEMORY for depth in DEPTHS]
        if options.json:
            write_json(options.json, measured)
    tables = {name: render_table(name, measured) for name in names}
    print("\n\n".join(tables.values()))
    if options.docs:
        update_page(options.docs, tables)
    return 0


# --- Measurements, each in a new process of throughput.py. ---


def measure_batches(options: argparse.Namespace) -> Rows:
    """Returns measurements for the table "batch", a list of dicts: for each kind of work (such as encode) and batch."""
    variants = [(kind, memory) for kind in KINDS for memory in (MEMORY if kind == "train" else ("",))]
    return [
        run_phase(options, f"{kind}{batch}", ["--set", f"training.memory={memory}"] if memory else [])
        | {"kind": f"{kind}, {memory}" if memory else kind}
        for kind, memory in variants
        for batch in BATCHES
    ]


def measure_depth(options: argparse.Namespace, memory: str, depth: int) -> dict[str, Any]:
    """Returns a dict of measurements of training at a depth: times with `DEPTH_BATCH` images, and memory per image.

    Depth is the number of flow steps in a stage. Memory is measured with two batches. The smaller batch has about
    `MEMORY_MIB` MiB of activations, and a number of images within `MEMORY_IMAGES` ("recompute" can need more). The
    other batch is twice as large.
    """
    config = preset_config(options.preset).override(options.set)
    counts = [[depth] * len(entry) if isinstance(entry, tuple) else depth for entry in config.model.steps]
    deep = config.override([f"model.steps={counts}"])
    training = deep.override([f"training.memory={memory}"]).training
    expected = count_activation_bytes(deep.model, memory=memory, precision=training.precision) / MIB
    small = min(MEMORY_IMAGES[1], max(MEMORY_IMAGES[0], round(MEMORY_MIB / expected)))
    if memory == "recompute":
        # The backward pass frees activations while it makes gradients; activations set the peak only if larger.
        gradients = 4 * Architecture(deep.model).count_parameters()["total"] / MIB
        small = max(small, math.ceil(3 * gradients / expected))
    changes = [f"model.steps={json.dumps(deep.model.steps)}", f"training.init_images={INIT_IMAGES}"]
    extra = [word for change in (*changes, f"training.memory={memory}") for word in ("--set", change)]
    row = run_phase(options, f"train{DEPTH_BATCH}", extra)
    # The two batches run at the same time, because memory does not depend on speed. One thread means that the
    # batch is one shard, as on a GPU; of two shards, one could free activations before the other has computed its own.
    extra += ["--live", "--threads", "1"]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        steps = [pool.submit(run_phase, options, f"first_step{b}", extra) for b in (small, 2 * small)]
        live = [step.result()["peak_live_mib"] for step in steps]
    return row | {
        "memory": memory,
        "depth": depth,
        "mib_per_image": (live[1] - live[0]) / small,
        "calculated_mib_per_image": expected,
    }


def run_phase(options: argparse.Namespace, phase: str, extra: Sequence[str]) -> dict[str, Any]:
    """Runs `throughput.py` for a phase such as "train16", with the arguments `extra`; returns {measurement: value}."""
    command = [sys.executable, str(ROOT / "benchmarks" / "throughput.py"), "--phase", phase, "--preset", options.preset]
    changes = [word for change in options.set for word in ("--set", change)]
    # `extra` comes last, so that its number of flow steps overrides the user's --set.
    row = run_json([*command, "--threads", str(options.threads), *changes, *extra])
    rate = f"{row['images_per_s']:.2f} images/s, " if "images_per_s" in row else ""
    print(
        f"{options.preset} {phase} {' '.join(extra)}: {rate}{row['peak_rss_mib']:.0f} MiB", file=sys.stderr, flush=True
    )
    return row


# --- Calculations, which run no model. ---


def fit_exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Returns the exponent p of the best fit y = c x^p: the slope of log y over log x, by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def find_largest_micro_batch(config: Config, gib: float, memory: str) -> int:
    """Returns the number of images in the largest micro-batch that a GPU with `gib` GiB can train on; 0 for none."""
    training, parameters = config.training, Architecture(config.model).count_parameters()["total"]
    state = count_state_bytes(parameters, averages=training.ema_decay > 0)
    image = count_activation_bytes(config.model, memory=memory, precision=training.precision)
    return max(0, int((USABLE * gib * GIB - state) / image))


def calculate_memory() -> Rows:
    """Returns calculated memory, a list of dicts, for each preset in LARGE."""
    rows = []
    for name in LARGE:
        config = preset_config(name)
        parameters = Architecture(config.model).count_parameters()["total"]
        row = {"preset": name, "params": parameters, "state_gib": count_state_bytes(parameters) / GIB}
        for memory in MEMORY:
            row[f"{memory}_gib_per_image"] = count_activation_bytes(config.model, memory=memory) / GIB
            for gib in GPUS_GIB:
                row[f"{memory}_on_{gib}"] = find_largest_micro_batch(config, gib, memory)
        rows.append(row)
    return rows


def calculate_ceilings() -> Rows:
    """Returns the images/s that GPUs can reach at most, a list of dicts, for each preset in CEILINGS and each GPU."""
    rows = []
    for preset in CEILINGS:
        configs = {name: preset_config(preset).override([f"training.precision={name}"]) for name in PRECISIONS}
        for gpu in PEAKS:
            train = {f"train, {name}": compute_ceiling(config, "train", gpu) for name, config in configs.items()}
            rows.append({"preset": preset, "GPU": gpu, **train, "eval": compute_ceiling(configs["tf32"], "eval", gpu)})
    return rows


# --- Markdown tables of the measurements. ---


def render_table(name: str, measured: dict[str, Any]) -> str:
    """Returns the Markdown table `name`, one of TABLES; `measured` is {name of a table: list of dicts}."""
    if name == "ceiling":
        return make_table(list(measured[name][0]), [list(row.values()) for row in measured[name]])
    return {"batch": render_batches, "depth": render_depths, "memory": render_memory}[name](measured[name])


def render_batches(rows: Rows) -> str:
    """Returns a Markdown table of images/s: a row for each batch size, a column for each kind of work (encode, ...)."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    batches = sorted({row["batch"] for row in rows})
    by_key = {(row["kind"], row["batch"]): row for row in rows}
    lines: list[list[object]] = [[batch, *(by_key[kind, batch]["images_per_s"] for kind in kinds)] for batch in batches]
    times = [[by_key[kind, batch]["ms_per_call"] for batch in batches] for kind in kinds]
    lines.append(["exponent of the time", *(f"{fit_exponent(batches, durations):z.2f}" for durations in times)])
    return make_table(["batch size", *kinds], lines)


def render_depths(rows: Rows) -> str:
    """Returns a Markdown table of time and memory of training at each depth (number of flow steps in each stage).

    After the rows of each `training.memory` comes a row with growth exponents.
    """
    header = ["training.memory", "flow steps", "ms/update", "tracing, s", "process, MiB"]
    header += ["MiB/image, measured", "MiB/image, calculated"]
    lines: list[list[object]] = []
    for memory in dict.fromkeys(row["memory"] for row in rows):
        chosen = [row for row in rows if row["memory"] == memory]
        columns = [
            [float(row["ms_per_call"]) for row in chosen],
            # Only the first call includes tracing. The least value is 0.01, because 0 has no logarithm.
            [float(max(row["first_call_s"] - row["second_step_s"], 0.01)) for row in chosen],
            [round(row["peak_rss_mib"]) for row in chosen],
            [float(max(row["mib_per_image"], 0.01)) for row in chosen],
        ]
        depths = [row["depth"] for row in chosen]
        calculated = [float(row["calculated_mib_per_image"]) for row in chosen]
        lines += [[memory, *line] for line in zip(depths, *columns, calculated, strict=True)]
        lines.append([memory, "exponent", *(f"{fit_exponent(depths, column):z.2f}" for column in columns), ""])
    return make_table(header, lines)


def render_memory(rows: Rows) -> str:
    """Returns a Markdown table of calculated training memory and largest micro-batch for each preset in LARGE."""
    header = ["preset", "parameters", "state, GiB", *(f"GiB/image, {memory}" for memory in MEMORY)]
    header += [f"{gib} GiB, {memory}" for gib in GPUS_GIB for memory in MEMORY]
    lines = [
        [
            row["preset"],
            f"{row['params'] / 1e6:.1f} M",
            row["state_gib"],
            *(row[f"{memory}_gib_per_image"] for memory in MEMORY),
            *(row[f"{memory}_on_{gib}"] for gib in GPUS_GIB for memory in MEMORY),
        ]
        for row in rows
    ]
    return make_table(header, lines)


if __name__ == "__main__":
    sys.exit(run_program(main))
