"""Plots of figures: curves of training, and codes in the plane."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Okabe and Ito's colours, which people of any colour vision tell apart; the dark ones first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "^", "s", "D", "v", "P", "X")
_GREY = "#999999"
_TEXT, _SMALL = 12, 11
_NAMES = {
    "bits_per_dim": "bits/dim",
    "kl": "KL of z, nats/image",
    "dequantization": "log q(u|x), nats/image",
    "learning_rate": "learning rate",
}

# A line of a curve: steps and values, both `[n]`.
Line = tuple[Sequence[float], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Curves:
    """What one run's log holds.

    Attributes:
        name: of the run, for the legend.
        train: by the name of the figure, a line.
        validation: the same.
        noise_steps: updates in which the training images had noise (`training.noise_steps`).
    """

    name: str
    train: Mapping[str, Line]
    validation: Mapping[str, Line]
    noise_steps: int = 0


def curves_figure(runs: Sequence[Curves]) -> Figure:
    """Draws bits/dim, KL, log q(u|x) and learning rate over the updates of one or several runs.

    Training is thin, validation thick with a point at each evaluation. A figure that no run has gets no panel. The axis
    of bits/dim leaves out the first steep fall, and what is of images with noise, where they would press the rest
    together.

    Args:
        runs: at least one, with a row of training or validation among them.
    """
    figure = _figure(9, 6.6)
    lower = [name for name in [*_NAMES][1:] if any(_of(run, name) for run in runs)]
    grid = figure.add_gridspec(2 if lower else 1, max(len(lower), 1), height_ratios=(1.7, 1) if lower else None)
    panels = {"bits_per_dim": figure.add_subplot(grid[0, :])}
    panels |= {name: figure.add_subplot(grid[1, number]) for number, name in enumerate(lower)}
    for name, axes in panels.items():
        for number, run in enumerate(runs):
            colour, marker = COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)]
            alone = len(runs) == 1
            if name in run.train:
                only = name == "learning_rate"
                axes.plot(
                    *run.train[name],
                    color=colour,
                    linewidth=1.6 if only else 1,
                    alpha=1 if only else 0.55,
                    label="training" if alone else f"{run.name}, training",
                )
            if name in run.validation:
                axes.plot(
                    *run.validation[name],
                    color=COLOURS[1] if alone else colour,
                    linewidth=2,
                    marker=marker,
                    markersize=6,
                    label="validation" if alone else f"{run.name}, validation",
                )
        _plain(axes)
        axes.set_ylabel(_NAMES[name], fontsize=_TEXT)
        axes.set_xlabel("update", fontsize=_TEXT)
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlim(left=0)
        if name != "bits_per_dim":
            axes.set_ylim(bottom=0)
    if "learning_rate" in panels:
        panels["learning_rate"].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    bits = panels["bits_per_dim"]
    _leave_out_the_fall(bits, [_after(run.noise_steps, line) for run in runs for line in _of(run, "bits_per_dim")])
    bits.legend(fontsize=_SMALL, frameon=False)
    bits.set_title(runs[0].name if len(runs) == 1 else f"{len(runs)} runs", fontsize=_TEXT + 2, loc="left")
    return figure


def projection_figure(
    points: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    axis_names: Sequence[str],
    title: str,
    most: int = 14,
) -> Figure:
    """Draws codes projected to the plane, coloured by label.

    Args:
        points: `[n, 2]`.
        labels: int `[n]`; -1 for none.
        names: one per label; empty where there are none.
        axis_names: what the two axes are.
        title: of the plot.
        most: labels that get a colour and shape of their own, the most frequent ones; the others are grey.
    """
    figure = _figure(9, 6.6)
    axes = figure.add_subplot()
    present, counts = np.unique(labels[labels >= 0], return_counts=True)
    own = np.sort(present[np.argsort(-counts, kind="stable")][:most])
    size = float(np.clip(24000 / max(len(points), 1), 9, 60))
    rest = ~np.isin(labels, own)
    if rest.any():
        colour, name = (COLOURS[0], "") if len(own) == 0 else (_GREY, "other")
        axes.scatter(points[rest, 0], points[rest, 1], s=size, color=colour, alpha=0.7, linewidths=0, label=name)
    for number, label in enumerate(own):
        axes.scatter(
            points[labels == label, 0],
            points[labels == label, 1],
            s=size,
            color=COLOURS[number % len(COLOURS)],
            marker=_MARKERS[(number + number // len(COLOURS)) % len(_MARKERS)],
            alpha=0.75,
            linewidths=0,
            label=names[label] if label < len(names) else str(label),
        )
    _plain(axes)
    axes.set_xlabel(axis_names[0], fontsize=_TEXT)
    axes.set_ylabel(axis_names[1], fontsize=_TEXT)
    axes.set_title(title, fontsize=_TEXT + 1, loc="left")
    if len(own):
        legend = axes.legend(
            fontsize=_SMALL,
            frameon=False,
            loc="upper left",
            bbox_to_anchor=(1.01, 1),
            borderaxespad=0,
            handletextpad=0.2,
        )
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)
    return figure


def histogram_figure(panels: Mapping[str, Mapping[str, np.ndarray]], title: str) -> Figure:
    """Draws histograms of several kinds of images side by side, a panel a figure; the first kind is filled.

    What lies beyond a panel is counted in its first or last bin.

    Args:
        panels: by the name of the figure, its values by the kind of images, `[n]` each; all have the same kinds.
        title: of the plot.
    """
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = _figure(4 * columns, 3 * rows + 0.8)
    grid = figure.add_gridspec(rows, columns)
    for number, (name, kinds) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[number // columns, number % columns])
        # Of each kind nearly all, and no farther from the first than lets its own width be seen.
        ends = np.array([np.quantile(values, (0.005, 0.995)) for values in kinds.values()])
        (first, last), (low, high) = ends[0], (ends[:, 0].min(), ends[:, 1].max())
        room = 4 * (last - first)
        low, high = (max(low, first - room), min(high, last + room)) if room > 0 else (low, high)
        bins = np.linspace(low, high if high > low else low + 1, 41)
        for place, (kind, values) in enumerate(kinds.items()):
            inside = np.clip(values, bins[0], bins[-1])
            shares, _ = np.histogram(inside, bins)
            colour = COLOURS[(place - 1) % len(COLOURS)] if place else _GREY
            style: dict[str, Any] = {"edgecolor": colour, "linewidth": 1.8}
            if place == 0:
                style = {"color": colour, "alpha": 0.6, "fill": True}
            axes.stairs(shares / len(values), bins, label=kind, **style)
        _plain(axes)
        axes.set_xlabel(name, fontsize=_TEXT)
        axes.set_ylabel("share of images", fontsize=_SMALL)
        axes.set_ylim(bottom=0)
        if number == 0:
            handles, names = axes.get_legend_handles_labels()
    figure.suptitle(title, fontsize=_TEXT + 1, x=0.01, ha="left")
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=_SMALL, frameon=False)
    return figure


def statistics_figure(statistics: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Draws which statistics of images z, v and pixels tell, and which follow z and which v in a switch.

    Args:
        statistics: by name `r2` and `switch`, as `metrics.image_statistics` has them.
        title: of the plot.
    """
    figure = _figure(11, 4.8)
    told, followed = figure.subplots(1, 2, sharey=True)
    names = list(statistics)
    panels = (
        (told, "R2 of a linear regression", {kind: kind for kind in statistics[names[0]]["r2"]}, "r2"),
        (followed, "coefficient after a switch of z", {"z": "of the image of z", "v": "of the image of v"}, "switch"),
    )
    for axes, what, kinds, group in panels:
        height = 0.8 / len(kinds)
        for number, (kind, label) in enumerate(kinds.items()):
            found = [statistics[name][group][kind] for name in names]
            axes.barh(
                [place + (number - (len(kinds) - 1) / 2) * height for place in range(len(names))],
                [each["mean"] for each in found],
                height,
                xerr=[each["standard_error"] for each in found],
                color=COLOURS[number],
                label=label,
            )
        _plain(axes)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel(what, fontsize=_TEXT)
        axes.legend(fontsize=_SMALL, frameon=False, loc="best")
    # What a regression tells less of than the mean would do is as good as nothing.
    told.set_xlim(-0.1, 1)
    told.set_yticks(range(len(names)), names, fontsize=_SMALL)
    told.invert_yaxis()
    figure.suptitle(title, fontsize=_TEXT + 1, x=0.01, ha="left")
    return figure


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _figure(width: float, height: float) -> Figure:
    # Every property that a user's matplotlibrc could change and that shows is given here or below.
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    # Inches between a panel and its neighbours, or the border.
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    return figure


def _plain(axes: Axes) -> None:
    axes.set_facecolor("white")
    axes.grid(True, color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_SMALL)


def _of(run: Curves, name: str) -> list[Line]:
    return [lines[name] for lines in (run.train, run.validation) if name in lines]


def _after(update: int, line: Line) -> Line:
    """A line from an update on; whole where it does not go so far."""
    steps, values = line
    first = next((number for number, step in enumerate(steps) if step > update), 0)
    return steps[first:], values[first:]


def _leave_out_the_fall(axes: Axes, lines: Sequence[Line]) -> None:
    values = np.concatenate([np.asarray(line[1], float) for line in lines]) if lines else np.zeros(0)
    if len(values) < 2:
        return
    low, high = float(values.min()), float(values.max())
    # Nine in ten values, and what lies as far again above them.
    most = float(np.quantile(values, 0.9))
    top = min(high, most + 0.5 * (most - low))
    if top > low:
        axes.set_ylim(low - 0.05 * (top - low), top + 0.05 * (top - low))


def _thousands(value: float, _: object) -> str:
    return f"{value / 1000:g}k" if value >= 10000 else f"{value:g}"
