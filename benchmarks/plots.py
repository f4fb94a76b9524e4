"""The plot of `scaling.py`, with panels of time, memory and micro-batches over the depth."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from tfdecouple.config import MEMORY

Rows = list[dict[str, Any]]
# A panel of the plot: its title, and a function that draws on given axes.
Panel = tuple[str, Callable[[Any], None]]


def plot(figures: dict[str, Any], path: pathlib.Path, gpus: Sequence[int]) -> None:
    """Writes a plot of time, memory per image and largest micro-batch over the depth.

    Args:
        figures: rows of the tables of `scaling.py` by the table's name; "memory" must be there.
        path: path of the image file.
        gpus: memory of each GPU in the table "memory", in GiB.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    panels = [*_measured(figures), *(_calculated(figures["memory"], gib) for gib in gpus)]
    columns = min(len(panels), 2)
    height = -(-len(panels) // columns)
    figure, grid = pyplot.subplots(height, columns, figsize=(6.5 * columns, 4.5 * height), squeeze=False)
    axes = list(grid.flat)
    for unused in axes[len(panels) :]:
        unused.remove()
    depths = sorted({row["depth"] for row in figures["memory"] if row["depth"]})
    for axis, (title, draw) in zip(axes, panels, strict=False):
        draw(axis)
        axis.set_title(title)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(depths, [str(depth) for depth in depths])
        axis.set_xlabel("steps in each stage of each level")
        axis.yaxis.set_major_formatter(ticker.LogFormatter())
        axis.yaxis.set_minor_formatter(ticker.LogFormatter())
        # Below the axes the legend hides no line.
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _measured(figures: dict[str, Any]) -> list[Panel]:
    depth, large = figures.get("depth", []), figures.get("large", [])
    panels: list[Panel] = []
    if depth:
        panels.append(("a training step, ms", lambda axis: _lines(axis, depth, {"ms_per_call": ("o-", "")})))
    groups = {"": depth, **{name: [row for row in large if row["preset"] == name] for name in _presets(large)}}
    kinds = {"mib_per_image": ("o-", ", measured"), "calculated_mib_per_image": (":", ", calculated")}
    for name, rows in groups.items():
        if rows:
            title = f"{name}: memory an image, MiB" if name else "memory an image, MiB"
            panels.append((title, lambda axis, rows=rows: _lines(axis, rows, kinds)))
    return panels


def _lines(axis: Any, rows: Rows, kinds: dict[str, tuple[str, str]]) -> None:
    """Draws columns of the rows over the depth, with a colour for each value of training.memory."""
    for number, memory in enumerate(MEMORY):
        chosen = [row for row in rows if row["memory"] == memory]
        for name, (style, ending) in kinds.items():
            x, y = [row["depth"] for row in chosen], [row[name] for row in chosen]
            axis.plot(x, y, style, color=f"C{number}", label=memory + ending)


def _calculated(rows: Rows, gib: int) -> Panel:
    def draw(axis: Any) -> None:
        for number, name in enumerate(_presets(rows)):
            chosen = [row for row in rows if row["preset"] == name and row["depth"]]
            for memory, style in zip(MEMORY, ("o-", "s--", "^:"), strict=True):
                # A depth at which no image fits is left out, because 0 has no logarithm.
                fits = [(row["depth"], row[f"{memory}_on_{gib}"]) for row in chosen if row[f"{memory}_on_{gib}"]]
                axis.plot(*zip(*fits, strict=True), style, color=f"C{number}", label=f"{name}, {memory}")

    return f"largest micro-batch on {gib} GiB, calculated", draw


def _presets(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["preset"] for row in rows))
