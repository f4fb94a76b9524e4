"""Measures how time and memory grow with the batch and the depth, and calculates the largest batch on a GPU.

    python benchmarks/scaling.py --json scaling.json --plot docs/images/scaling.png
    python benchmarks/scaling.py --tables batch,depth,memory --docs docs/scaling.md
    python benchmarks/scaling.py --tables memory                       # only calculates, which takes no time

Each measurement runs in a process of its own (`throughput.py`). The tables are:

  batch   images/s for each batch size and kind of phase; training with each training.memory
  depth   seconds of a training step and of tracing, and memory, for each number of flow steps in a stage and each
          training.memory
  large   the same for presets of 64 and 256 pixels, with 2 images in a batch
  memory  calculated, for the presets for large images: memory of a training step, and largest micro-batch on a GPU

An exponent is the slope of a straight line through the points of a column on logarithmic axes, by least squares; 1 is
linear growth. Constant costs (reading the images, the encoder) make the exponent smaller than it is for larger work.

"MiB in all" is the largest resident memory of the process. "MiB an image" is the difference between two batches, one
twice as large as the other, divided by their difference in images. It counts only TensorFlow's tensors, by its
allocator (`throughput.py --live`), with the batch in one piece, as on a GPU. "calculated" is the prediction of
`tfdecouple/networks/architecture.py` for the same memory.

--docs puts each table between the lines `<!-- NAME -->` and `<!-- end NAME -->` of a file. --json is written after
each table, so that an interrupted run keeps the finished tables.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import run_throughput, table, write_json  # noqa: E402
from benchmarks.plots import plot  # noqa: E402
from tfdecouple.config import MEMORY, Config, load_preset, override  # noqa: E402
from tfdecouple.doctor.installation import describe_machine  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402
from tfdecouple.networks.architecture import FLOAT32, count_activation_bytes, count_parameters  # noqa: E402
from tfdecouple.runtime.process import run_program  # noqa: E402

TABLES = ("batch", "depth", "large", "memory")
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
DEPTHS = (1, 2, 4, 8, 16)
LARGE = ("imagenet64", "lsun_bedroom_128", "celeba_hq_256")
# Presets of the table "large", each with the depths that a machine of 24 GB can train, and their batch size.
MEASURED = {"imagenet64": (1, 4, 16), "celeba_hq_256": (1, 2, 4)}
LARGE_BATCH = 2
GPUS_GIB = (24, 80)
# Fraction of a GPU's memory for tensors; the CUDA context, workspaces of convolutions and gaps take the rest.
USABLE = 0.9
GIB, MIB = 2**30, 2**20
# MiB of activations in the smaller batch of a memory measurement, and bounds of its number of images. The activations
# must be large compared with workspaces and weights, and the batch small enough for a CPU.
MEMORY_MIB, MEMORY_IMAGES = 256, (4, 128)
LARGE_MEMORY_MIB, LARGE_MEMORY_IMAGES = 1536, (LARGE_BATCH, 12)
# Images of the data-dependent initialisation in a memory measurement: so few that the training step needs more memory.
START_IMAGES = 2


def with_depth(config: Config, steps: int) -> Config:
    """Returns a copy of the config with `steps` steps in every stage of the flow."""
    every = [[steps] * len(entry) if isinstance(entry, tuple) else steps for entry in config.model.steps]
    return override(config, [f"model.steps={every}"])


def state_bytes(parameters: int, *, averages: bool, micro_batches: int = 1) -> int:
    """Returns the bytes that training needs whatever the batch size, all numbers in float32.

    Weights, gradients and Adam's two moments count, averaged weights if there are any, and with micro-batches the sum
    of their gradients and the vector that is added to the sum.
    """
    return FLOAT32 * parameters * (4 + averages + (2 if micro_batches > 1 else 0))


def step_bytes(config: Config, images: int, micro_batches: int = 1) -> int:
    """Returns the bytes that a training step holds on a device: training state, and activations of `images` images."""
    training = config.training
    parameters = count_parameters(config.model)["total"]
    state = state_bytes(parameters, averages=training.ema_decay > 0, micro_batches=micro_batches)
    return state + images * count_activation_bytes(config.model, memory=training.memory, precision=training.precision)


def main() -> int:
    """Reads the command line and makes the tables; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default=",".join(TABLES), help=f"default {','.join(TABLES)}")
    parser.add_argument("--preset", default="quickstart", help="whose model is measured (default quickstart)")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="as for train.py")
    parser.add_argument("--kinds", default="train,encode,decode", help="of the batch table (default all but sample)")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--depths", type=int, nargs="+", default=list(DEPTHS))
    parser.add_argument("--memory", nargs="+", choices=MEMORY, default=list(MEMORY), help="default all of them")
    parser.add_argument("--depth-batch", type=int, default=16, help="of the depth table's times (default 16)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, help="write all figures there")
    parser.add_argument("--docs", type=pathlib.Path, help="put the tables into this file")
    parser.add_argument("--plot", type=pathlib.Path, help="draw them")
    options = parser.parse_args()
    return run_program(lambda: scaling(options))


def scaling(options: argparse.Namespace) -> int:
    """Measures and prints the requested tables; returns the exit status."""
    names = [name for name in options.tables.split(",") if name]
    for name in names:
        if name not in TABLES:
            raise UserError(f"there is no table {name!r}; there are {', '.join(TABLES)}")
    for name in ("batches", "depths"):
        values = getattr(options, name)
        if min(values) < 1 or len(set(values)) < 2:
            raise UserError(f"--{name} is {values}; it needs two numbers or more, each at least 1")
    if options.docs and not options.docs.is_file():
        raise UserError(f"--docs: there is no file {options.docs}")
    figures: dict[str, Any] = {"machine": describe_machine()}
    for name, measure in {"batch": measure_batches, "depth": measure_depths, "large": measure_large}.items():
        if name in names:
            figures[name] = measure(options)
            write_json(options.json, figures)
    figures["memory"] = calculate_memory()
    write_json(options.json, figures)
    texts = {name: render(name, figures) for name in names if name in figures}
    print("\n\n".join(texts.values()))
    if options.docs:
        document = options.docs.read_text(encoding="utf-8")
        for name, text in texts.items():
            document = put(document, name, text)
        options.docs.write_text(document, encoding="utf-8")
    if options.plot:
        plot(figures, options.plot, GPUS_GIB)
    return 0


# --- measurements ---


def measure_batches(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row of figures for each kind of phase and batch size; training with each training.memory."""
    ways = [
        (kind, f"{kind}, {memory}" if memory else kind, ["--memory", memory] if memory else [])
        for kind in options.kinds.split(",")
        for memory in (options.memory if kind == "train" else [""])
    ]
    return [
        run(options, f"{kind}{batch}", extra) | {"kind": name}
        for kind, name, extra in ways
        for batch in options.batches
    ]


def measure_depths(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row of figures of training for each depth and training.memory."""
    return [
        measure_depth(options, options.preset, memory, depth, options.depth_batch, MEMORY_MIB, MEMORY_IMAGES)
        for memory in options.memory
        for depth in options.depths
    ]


def measure_large(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row of figures of training for each preset for large images, depth and training.memory."""
    return [
        measure_depth(options, preset, memory, depth, LARGE_BATCH, LARGE_MEMORY_MIB, LARGE_MEMORY_IMAGES)
        for preset, depths in MEASURED.items()
        for memory in options.memory
        for depth in depths
    ]


def measure_depth(
    options: argparse.Namespace, preset: str, memory: str, depth: int, batch: int, mib: int, images: tuple[int, int]
) -> dict[str, Any]:
    """Returns the figures of training at a depth: times with `batch` images, and memory per image.

    Memory is measured with two batches. The smaller one has activations of about `mib` MiB, within the bounds `images`
    of its number of images; the other is twice as large.
    """
    deep = with_depth(override(load_preset(preset), options.set), depth)
    training = override(deep, [f"training.memory={memory}"]).training
    expected = count_activation_bytes(deep.model, memory=memory, precision=training.precision) / MIB
    small = memory_batch(expected, mib, images)
    if memory == "recompute":
        # The backward pass frees activations while it makes gradients, so the activations must outweigh the gradients.
        gradients = 4 * count_parameters(deep.model)["total"] / MIB
        small = max(small, math.ceil(3 * gradients / expected))
    extra = ["--set", f"model.steps={json.dumps(deep.model.steps)}", "--set", f"training.init_images={START_IMAGES}"]
    extra += ["--memory", memory]
    row = run(options, f"train{batch}", extra, preset)
    # Both batches are measured at once, because memory does not depend on speed. One thread means one shard, as on a
    # GPU: with two shards one might free its activations before the other has all of its own.
    extra += ["--live", "--threads", "1"]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        steps = [pool.submit(run, options, f"first_step{b}", extra, preset) for b in (small, 2 * small)]
        live = [step.result()["peak_live_mib"] for step in steps]
    return row | {
        "depth": depth,
        "live_mib": live,
        "memory_batches": [small, 2 * small],
        "mib_per_image": (live[1] - live[0]) / small,
        "calculated_mib_per_image": expected,
    }


def memory_batch(mib_per_image: float, mib: int, images: tuple[int, int]) -> int:
    """Returns the number of images whose activations take about `mib` MiB, within the bounds `images`."""
    least, most = images
    return min(most, max(least, round(mib / mib_per_image)))


def run(options: argparse.Namespace, phase: str, extra: Sequence[str], preset: str = "") -> dict[str, Any]:
    """Returns the figures of a phase of `throughput.py`, and prints a line about them."""
    preset = preset or options.preset
    arguments = ["--preset", preset, "--threads", str(options.threads), "--reps", str(options.reps)]
    for assignment in options.set:
        arguments += ["--set", assignment]
    # The depth in `extra` comes last, so that the user's --set cannot undo it.
    row = run_throughput(phase, *arguments, *extra)
    rate = f"{row['images_per_s']:.2f} images/s, " if "images_per_s" in row else ""
    print(f"{preset} {phase} {' '.join(extra)}: {rate}{row['peak_rss_mib']:.0f} MiB", file=sys.stderr, flush=True)
    return row


# --- calculations ---


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Returns the slope of log y over log x by least squares."""
    u, v = [math.log(value) for value in x], [math.log(value) for value in y]
    centre = sum(u) / len(u)
    return sum((a - centre) * b for a, b in zip(u, v, strict=True)) / sum((a - centre) ** 2 for a in u)


def largest_micro_batch(config: Config, gib: float, memory: str = "keep") -> int:
    """Returns the largest micro-batch in training on a GPU with `gib` GiB of memory, or 0 if no image fits."""
    config = override(config, [f"training.memory={memory}"])
    room = USABLE * gib * GIB - step_bytes(config, images=0, micro_batches=2)
    return max(0, int(room / (step_bytes(config, images=1) - step_bytes(config, images=0))))


def calculate_memory() -> list[dict[str, Any]]:
    """Returns rows of calculated memory for the presets for large images, at each of `DEPTHS` and their own depth."""
    rows = []
    for name in LARGE:
        own = load_preset(name)
        for depth in (*DEPTHS, None):
            config = own if depth is None else with_depth(own, depth)
            parameters = count_parameters(config.model)["total"]
            row: dict[str, Any] = {"preset": name, "depth": depth, "params": parameters}
            row["state_gib"] = state_bytes(parameters, averages=False, micro_batches=2) / GIB
            for memory in MEMORY:
                row[f"{memory}_gib_per_image"] = count_activation_bytes(config.model, memory=memory) / GIB
                for gib in GPUS_GIB:
                    row[f"{memory}_on_{gib}"] = largest_micro_batch(config, gib, memory)
            rows.append(row)
    return rows


# --- tables ---


def render(name: str, figures: dict[str, Any]) -> str:
    """Returns the markdown table of this name for the docs."""
    if name in ("depth", "large"):
        return render_trained(figures[name], ["preset", "memory"] if name == "large" else ["memory"])
    return {"batch": render_batches, "memory": render_memory}[name](figures[name])


def render_batches(rows: list[dict[str, Any]]) -> str:
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    batches = sorted({row["batch"] for row in rows})
    found = {(row["kind"], row["batch"]): row for row in rows}
    lines: list[list[object]] = [[batch, *(found[kind, batch]["images_per_s"] for kind in kinds)] for batch in batches]
    times = [[found[kind, batch]["ms_per_call"] for batch in batches] for kind in kinds]
    lines.append(["exponent of the time", *(f"{exponent(batches, each):.2f}" for each in times)])
    return table(["batch size", *kinds], lines)


def render_trained(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Returns the table of training over the depths, with the exponents below the rows that agree in these columns."""
    header = [{"memory": "training.memory"}.get(name, name) for name in names]
    header += ["flow steps", "ms an update", "traced in s", "MiB in all", "MiB an image", "calculated"]

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(row[name] for name in names)

    lines: list[list[object]] = []
    for group in dict.fromkeys(key(row) for row in rows):
        chosen = [row for row in rows if key(row) == group]
        columns = [
            [float(row["ms_per_call"]) for row in chosen],
            [traced(row) for row in chosen],
            [round(row["peak_rss_mib"]) for row in chosen],
            [float(max(row["mib_per_image"], 0.01)) for row in chosen],
        ]
        depths = [row["depth"] for row in chosen]
        calculated = [float(row["calculated_mib_per_image"]) for row in chosen]
        lines += [[*group, *line] for line in zip(depths, *columns, calculated, strict=True)]
        if len(depths) > 1:
            lines.append([*group, "exponent", *(f"{exponent(depths, column):.2f}" for column in columns), ""])
    return table(header, lines)


def traced(row: dict[str, Any]) -> float:
    """Returns the seconds of tracing: the first call less the second, at least 0.01."""
    return float(max(row["first_call_s"] - row["second_step_s"], 0.01))


def render_memory(rows: list[dict[str, Any]]) -> str:
    """Returns the table of memory for the presets at their own depth."""
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
        if row["depth"] is None
    ]
    return table(header, lines)


def put(document: str, name: str, text: str) -> str:
    """Returns the document with a table put between its lines `<!-- NAME -->` and `<!-- end NAME -->`.

    Raises:
        UserError: if one of the two lines is missing.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    before, found, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise UserError(f"the document has no lines {begin} and {end} to put the table {name} between")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


if __name__ == "__main__":
    sys.exit(main())
