"""How time and memory grow with the batch and with the depth, and what fits on a GPU: tables, exponents, a plot.

    python benchmarks/scaling.py --docs docs/scaling.md --plot docs/images/scaling.png --json scaling.json
    python benchmarks/scaling.py --tables memory                       # calculated, takes no time
    python benchmarks/scaling.py --from scaling.json --plot scaling.png

Each point is a process of its own (`throughput.py`).

  batch   time of a call, images/s and memory over the images in it; several kinds of phase
  depth   time of a training step, of tracing and of everything up to the end of the first step, and memory, over the
          steps in each part of each level, with and without training.remat
  memory  calculated: what a training step of the presets for large images holds, and the largest micro-batch on a GPU

An exponent is the slope of a straight line through the points of a table, both axes logarithmic, by least squares; 1 is
linear. What does not grow (reading the images, the encoder) makes it smaller than it will be for larger work, so the
last two points have a column of their own, and growth is called at most linear where neither exponent is above 1, but
for noise. Memory per image is the difference between two batches of one depth, the
second twice the first and both large enough to need more than what tracing leaves behind in the process; the
calculation beside it is that of the table of the presets.

--docs puts each table that was made between the lines `<!-- NAME -->` and `<!-- end of NAME -->` of a file.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import run_throughput, table, write_json  # noqa: E402
from tfdecouple.config import Config, load_preset, option_names, override  # noqa: E402
from tfdecouple.costs import activations, state_bytes, with_depth  # noqa: E402
from tfdecouple.doctor.machine import machine  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402
from tfdecouple.parameters import count_parameters  # noqa: E402
from tfdecouple.runtime.process import run_program  # noqa: E402

TABLES = ("batch", "depth", "memory")
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
DEPTHS = (1, 2, 4, 8, 16)
LARGE = ("imagenet64", "lsun_bedroom_128", "celeba_hq_256")
GPUS_GIB = (24, 80)
# The rest of a GPU's memory: the CUDA context, the workspaces of convolutions, gaps between buffers.
USABLE = 0.9
GIB, MIB = 2**30, 2**20
# What the smaller batch of a measurement of memory holds: tracing a deep model leaves over a GiB behind for it to use.
MEMORY_MIB = 2048
# A line through noisy points of linear growth comes out a little steeper now and then.
LINEAR = 1.05


def main() -> int:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default=",".join(TABLES), help=f"default {','.join(TABLES)}")
    parser.add_argument("--preset", default="quickstart", help="whose model is measured (default quickstart)")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="as for train.py")
    parser.add_argument("--kinds", default="train,encode,decode", help="of the batch table (default all but sample)")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--depths", type=int, nargs="+", default=list(DEPTHS))
    parser.add_argument("--depth-batch", type=int, default=16, help="of the depth table's times (default 16)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--from", dest="source", type=pathlib.Path, help="measure nothing: take this file's figures")
    parser.add_argument("--json", type=pathlib.Path, help="write all figures there")
    parser.add_argument("--docs", type=pathlib.Path, help="put the tables into this file")
    parser.add_argument("--plot", type=pathlib.Path, help="draw them")
    options = parser.parse_args()
    return run_program(lambda: scaling(options))


def scaling(options: argparse.Namespace) -> int:
    """Makes the tables that were asked for."""
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
    figures = read_figures(options.source) if options.source else {"machine": machine()}
    if not options.source:
        if "batch" in names:
            figures["batch"] = measure_batches(options)
            write_json(options.json, figures)
        if "depth" in names:
            figures["depth"] = measure_depths(options)
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
        plot(figures, options.plot)
    return 0


def read_figures(path: pathlib.Path) -> dict[str, Any]:
    """Returns what `--json` wrote.

    Raises:
        UserError: where it cannot be read.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the figures in {path}: {error}") from error


# --- measuring ---


def measure_batches(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures each kind over the batches."""
    rows = []
    for kind in options.kinds.split(","):
        for batch in options.batches:
            rows.append(run(options, f"{kind}{batch}", []) | {"kind": kind})
    return rows


def measure_depths(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures training over the depths."""
    config = override(load_preset(options.preset), options.set)
    remats = [False, True] if "training.remat" in option_names() else [False]
    if len(remats) == 1:
        print("this version has no training.remat: measured without it alone", file=sys.stderr)
    rows = []
    for remat in remats:
        for depth in options.depths:
            deep = with_depth(config, depth)
            plan = f"model.steps={json.dumps(deep.model.steps)}"
            # Few images to start from: what the start holds must not hide what a step holds.
            extra = ["--set", plan, "--set", "training.init_images=16", *(["--remat"] if remat else [])]
            row = run(options, f"train{options.depth_batch}", extra)
            precision = deep.training.precision
            expected = activations(deep.model, remat=remat, precision=precision).total / MIB
            small = memory_batch(expected)
            peaks = [run(options, f"first_step{batch}", extra)["peak_rss_mib"] for batch in (small, 2 * small)]
            rows.append(
                row
                | {
                    "depth": depth,
                    "mib_per_image": (peaks[1] - peaks[0]) / small,
                    "calculated_mib_per_image": expected,
                    "memory_batches": [small, 2 * small],
                }
            )
    return rows


def memory_batch(mib_per_image: float) -> int:
    """Returns a batch that needs about MEMORY_MIB, within what a CPU gets through."""
    return min(1024, max(8, round(MEMORY_MIB / mib_per_image)))


def run(options: argparse.Namespace, phase: str, extra: Sequence[str]) -> dict[str, Any]:
    """Runs one point and says so."""
    arguments = ["--preset", options.preset, "--threads", str(options.threads), "--reps", str(options.reps)]
    for assignment in options.set:
        arguments += ["--set", assignment]
    # The depth after what the user sets, which must not undo it.
    row = run_throughput(phase, *arguments, *extra)
    rate = f"{row['images_per_s']:.2f} images/s, " if "images_per_s" in row else ""
    print(f"{phase} {' '.join(extra)}: {rate}{row['peak_rss_mib']:.0f} MiB", file=sys.stderr)
    return row


# --- calculating ---


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Returns the slope of log y over log x by least squares."""
    u, v = [math.log(value) for value in x], [math.log(value) for value in y]
    centre = sum(u) / len(u)
    return sum((a - centre) * b for a, b in zip(u, v, strict=True)) / sum((a - centre) ** 2 for a in u)


def largest_micro_batch(config: Config, gib: float, *, remat: bool = False, precision: str = "float32") -> int:
    """Returns how many images at a time a GPU holds in training, 0 where not even one.

    Args:
        config: the run.
        gib: the GPU's memory.
        remat: whether activations are computed again.
        precision: of the coupling nets.
    """
    parameters = count_parameters(config.model)["total"]
    state = state_bytes(parameters, averages=config.training.ema_decay > 0, micro_batches=2)
    room = USABLE * gib * GIB - state
    return max(0, int(room / activations(config.model, remat=remat, precision=precision).total))


def calculate_memory() -> list[dict[str, Any]]:
    """Returns what the presets for large images need at each depth, and at their own."""
    rows = []
    for name in LARGE:
        own = load_preset(name)
        for depth in (*DEPTHS, None):
            config = own if depth is None else with_depth(own, depth)
            parameters = count_parameters(config.model)["total"]
            row: dict[str, Any] = {"preset": name, "depth": depth, "params": parameters}
            row["state_gib"] = state_bytes(parameters, averages=False, micro_batches=2) / GIB
            for remat in (False, True):
                key = "remat" if remat else "plain"
                row[f"{key}_gib_per_image"] = activations(config.model, remat=remat).total / GIB
                for gib in GPUS_GIB:
                    row[f"{key}_on_{gib}"] = largest_micro_batch(config, gib, remat=remat)
            rows.append(row)
    return rows


# --- showing ---


def render(name: str, figures: dict[str, Any]) -> str:
    """Returns a table as it goes into the docs."""
    return {"batch": render_batches, "depth": render_depths, "memory": render_memory}[name](figures[name])


def render_batches(rows: list[dict[str, Any]]) -> str:
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    batches = sorted({row["batch"] for row in rows})
    found = {(row["kind"], row["batch"]): row for row in rows}
    header = ["images", *(f"{kind}, images/s" for kind in kinds), *(f"{kind}, MiB" for kind in kinds)]
    lines = [
        [
            batch,
            *(found[kind, batch]["images_per_s"] for kind in kinds),
            *(round(found[kind, batch]["peak_rss_mib"]) for kind in kinds),
        ]
        for batch in batches
    ]
    growth = {
        f"time of {kind} over images": (batches, [found[kind, batch]["ms_per_call"] for batch in batches])
        for kind in kinds
    }
    return table(header, lines) + "\n\n" + render_growth(growth)


def render_depths(rows: list[dict[str, Any]]) -> str:
    growth = {}
    header = ["steps", "remat", "parameters", "ms a step", "traced in s", "first step after s"]
    header += ["MiB in all", "MiB an image", "calculated"]
    lines = []
    for remat in (False, True):
        chosen = [row for row in rows if row["remat"] == remat]
        for row in chosen:
            lines.append(
                [
                    row["depth"],
                    remat,
                    row["params"],
                    float(row["ms_per_call"]),
                    traced(row),
                    float(row["first_step_s"]),
                    round(row["peak_rss_mib"]),
                    float(row["mib_per_image"]),
                    float(row["calculated_mib_per_image"]),
                ]
            )
        if chosen:
            depths = [row["depth"] for row in chosen]
            suffix = " over steps, with remat" if remat else " over steps"
            growth |= {
                f"time of a step{suffix}": (depths, [row["ms_per_call"] for row in chosen]),
                f"time to trace{suffix}": (depths, [traced(row) for row in chosen]),
                f"time to the first step{suffix}": (depths, [row["first_step_s"] for row in chosen]),
                f"memory in all{suffix}": (depths, [row["peak_rss_mib"] for row in chosen]),
            }
    return table(header, lines) + "\n\n" + render_growth(growth)


def traced(row: dict[str, Any]) -> float:
    """Returns how much longer the first call took than the second."""
    return float(max(row["first_call_s"] - row["second_step_s"], 0.01))


def render_growth(growth: dict[str, tuple[list[int], list[float]]]) -> str:
    lines = []
    for name, (x, y) in growth.items():
        slope, last = exponent(x, y), exponent(x[-2:], y[-2:])
        lines.append([name, f"{slope:.2f}", f"{last:.2f}", max(slope, last) <= LINEAR])
    return table(["growth", "exponent", "of the last two", "at most linear"], lines)


def render_memory(rows: list[dict[str, Any]]) -> str:
    header = ["preset", "steps", "parameters", "state, GiB", "GiB an image", "with remat"]
    header += [text for gib in GPUS_GIB for text in (f"on {gib} GiB", "with remat")]
    lines = [
        [
            row["preset"],
            "its own" if row["depth"] is None else row["depth"],
            f"{row['params'] / 1e6:.1f} M",
            row["state_gib"],
            row["plain_gib_per_image"],
            row["remat_gib_per_image"],
            *(row[f"{key}_on_{gib}"] for gib in GPUS_GIB for key in ("plain", "remat")),
        ]
        for row in rows
    ]
    return table(header, lines)


def put(document: str, name: str, text: str) -> str:
    """Returns the document with a table in its place.

    Raises:
        UserError: where there is no place for it.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise UserError(f"the document has no lines {begin} and {end} to put the table {name} between")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def plot(figures: dict[str, Any], path: pathlib.Path) -> None:
    """Draws time and memory over the depth, and what the large presets need."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = figures.get("depth", [])
    panels = (2 if measured else 0) + len(GPUS_GIB)
    figure, axes = pyplot.subplots(1, panels, figsize=(4.5 * panels, 4), squeeze=False)
    for remat in (False, True):
        rows = [row for row in measured if row["remat"] == remat]
        if rows:
            depths, label = [row["depth"] for row in rows], "remat" if remat else "without remat"
            axes[0][0].plot(depths, [row["ms_per_call"] for row in rows], "o-", label=label)
            axes[0][1].plot(depths, [row["mib_per_image"] for row in rows], "o-", label=f"{label}, measured")
            axes[0][1].plot(
                depths, [row["calculated_mib_per_image"] for row in rows], ":", label=f"{label}, calculated"
            )
    if measured:
        axes[0][0].set_title("a training step, ms")
        axes[0][1].set_title("memory per image, MiB")
    for gib, axis in zip(GPUS_GIB, axes[0][-len(GPUS_GIB) :], strict=True):
        for number, name in enumerate(LARGE):
            rows = [row for row in figures["memory"] if row["preset"] == name and row["depth"]]
            for key, style in (("plain", "o-"), ("remat", "s--")):
                # None at all has no logarithm.
                fits = [(row["depth"], row[f"{key}_on_{gib}"]) for row in rows if row[f"{key}_on_{gib}"]]
                label = name if key == "plain" else f"{name}, remat"
                axis.plot(*zip(*fits, strict=True), style, color=f"C{number}", label=label)
        axis.set_title(f"largest micro-batch on {gib} GiB, calculated")
    for each in axes[0]:
        each.set_xscale("log", base=2)
        each.set_yscale("log")
        each.set_xticks(DEPTHS, [str(depth) for depth in DEPTHS])
        each.set_xlabel("steps in each part of each level")
        each.legend(fontsize=7)
        each.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
