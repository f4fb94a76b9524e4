"""Functions that draw plots: curves of training, codes in the plane, histograms, statistics, confusion matrices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

# The colours of Okabe and Ito, distinct for people of any colour vision; the dark colours come first.
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
# Largest number of classes for which the cells of a confusion matrix have room for numbers.
_NUMBERED_CLASSES = 40

# A curve: the steps and the values, both `[n]`.
Line = tuple[Sequence[float], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Curves:
    """The curves of one run, on training and on validation images.

    Attributes:
        name: the name of the run in the legend.
        train: the curves on training images, by the name of the quantity in the log.
        validation: the curves on validation images, by the name of the quantity in the log.
        noise_steps: the number of first updates whose training images have noise (`training.noise_steps`).
    """

    name: str
    train: Mapping[str, Line]
    validation: Mapping[str, Line]
    noise_steps: int = 0


def render_figure(figure: Figure) -> Image.Image:
    """Returns a matplotlib figure as an RGB picture."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def plot_curves(runs: Sequence[Curves]) -> Figure:
    """Returns a plot of bits/dim, KL, log q(u|x) and learning rate over the updates of one or several runs.

    Curves on training images are thin; curves on validation images are thick, with a point at each evaluation. A
    quantity that no run has gets no panel. The axis of bits/dim leaves out the steep fall at the beginning and the
    updates with noise, which would flatten the rest of the curve.

    Args:
        runs: at least one run with a curve of bits/dim.
    """
    figure = _make_figure(9, 6.6)
    lower = [name for name in _NAMES if name != "bits_per_dim" and any(_lines(run, name) for run in runs)]
    grid = figure.add_gridspec(2 if lower else 1, max(len(lower), 1), height_ratios=(1.7, 1) if lower else None)
    panels = {"bits_per_dim": figure.add_subplot(grid[0, :])}
    panels |= {name: figure.add_subplot(grid[1, number]) for number, name in enumerate(lower)}
    is_alone = len(runs) == 1
    for name, axes in panels.items():
        for number, run in enumerate(runs):
            colour, begin = COLOURS[number % len(COLOURS)], "" if is_alone else f"{run.name}, "
            if name in run.train:
                axes.plot(*run.train[name], color=colour, linewidth=1, alpha=0.6, label=f"{begin}training")
            if name in run.validation:
                style: dict[str, Any] = {"linewidth": 2, "marker": _MARKERS[number % len(_MARKERS)], "markersize": 6}
                style["color"] = COLOURS[1] if is_alone else colour
                axes.plot(*run.validation[name], label=f"{begin}validation", **style)
        _style_axes(axes, "update", _NAMES[name])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 10000 else f"{value:g}")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlim(left=0)
        if name != "bits_per_dim":
            axes.set_ylim(bottom=0)
    if "learning_rate" in panels:
        panels["learning_rate"].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    bits = panels["bits_per_dim"]
    values = [_values_after(run.noise_steps, *line) for run in runs for line in _lines(run, "bits_per_dim")]
    _leave_out_fall(bits, np.concatenate(values))
    bits.legend(fontsize=_SMALL, frameon=False)
    bits.set_title(runs[0].name if is_alone else f"{len(runs)} runs", fontsize=_TEXT + 2, loc="left")
    return figure


def _lines(run: Curves, name: str) -> list[Line]:
    return [lines[name] for lines in (run.train, run.validation) if name in lines]


def _values_after(update: int, steps: Sequence[float], values: Sequence[float]) -> np.ndarray:
    """Returns the values of a curve after an update, or all values of a curve that ends before it."""
    later = np.asarray(steps) > update
    return np.asarray(values, float)[later if later.any() else ...]


def _leave_out_fall(axes: Axes, values: np.ndarray) -> None:
    """Sets the y-axis to the range of the lowest 90 % of the values, and half of that range above."""
    low, high = values.min(), values.max()
    most = np.quantile(values, 0.9)
    top = min(high, most + 0.5 * (most - low))
    if top > low:
        axes.set_ylim(low - 0.05 * (top - low), top + 0.05 * (top - low))


def project_to_components(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns codes projected to their first two principal components, and the explained shares of the variance.

    >>> points, shares = project_to_components(np.array([[0.0, 0.0, 5.0], [3.0, 0.0, 5.0], [0.0, 1.0, 5.0]]))
    >>> points.shape, bool(np.isclose(shares.sum(), 1))
    ((3, 2), True)

    Args:
        codes: the codes, `[n, d]`, n at least 2.

    Returns:
        The points, `[n, 2]`, and the shares, `[2]`, both float64; the second component is 0 where d is 1. The largest
        weight of a component is positive, so that its sign does not depend on chance.
    """
    from sklearn.decomposition import PCA

    pca = PCA(min(2, codes.shape[1]), svd_solver="full")
    # NumPy would warn about 0 / 0 for codes that do not vary; their shares become 0 below.
    with np.errstate(invalid="ignore"):
        points = pca.fit_transform(np.asarray(codes, np.float64))
    missing = 2 - points.shape[1]
    return np.pad(points, ((0, 0), (0, missing))), np.nan_to_num(np.pad(pca.explained_variance_ratio_, (0, missing)))


def project_by_t_sne(codes: np.ndarray, seed: int) -> np.ndarray:
    """Returns codes projected to the plane by t-SNE, `[n, 2]`: neighbours stay together, large distances are distorted.

    Args:
        codes: the codes, `[n, d]`, n at least 4.
        seed: the seed of the random part of t-SNE.
    """
    import threadpoolctl
    from sklearn.manifold import TSNE

    # The usual perplexity of 30 (a number of neighbours) is too large for few points.
    perplexity = min(30.0, (len(codes) - 1) / 3)
    start = project_to_components(codes)[0]
    spread = np.std(start[:, 0])
    start = (start / spread * 1e-4 if spread > 0 else start).astype(np.float32)
    # On cores with other work one thread is several times as fast, because several would wait in a busy loop.
    with threadpoolctl.threadpool_limits(1):
        t_sne = TSNE(2, perplexity=perplexity, init=start, random_state=seed)
        return t_sne.fit_transform(np.asarray(codes, np.float32))


def plot_projection(
    points: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    axis_names: Sequence[str],
    title: str,
    coloured_labels: int = 14,
) -> Figure:
    """Returns a plot of points in the plane, coloured by label.

    Args:
        points: the points, `[n, 2]`.
        labels: the labels of the points, int `[n]`; -1 for no label.
        names: the names of the labels; empty if they have no names.
        axis_names: the names of the two axes.
        title: the title of the plot.
        coloured_labels: the number of most frequent labels that get a colour and a shape; all other points are grey.
    """
    figure = _make_figure(9, 6.6)
    axes = figure.add_subplot()
    present, counts = np.unique(labels[labels >= 0], return_counts=True)
    coloured = np.sort(present[np.argsort(-counts, kind="stable")][:coloured_labels])
    size = float(np.clip(24000 / max(len(points), 1), 9, 60))
    rest = ~np.isin(labels, coloured)
    if rest.any():
        style: dict[str, Any] = {"color": _GREY, "label": "other"} if len(coloured) else {"color": COLOURS[0]}
        axes.scatter(points[rest, 0], points[rest, 1], s=size, alpha=0.7, linewidths=0, **style)
    for number, label in enumerate(coloured):
        style = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": _MARKERS[(number + number // len(COLOURS)) % len(_MARKERS)],
            "label": names[label] if label < len(names) else str(label),
        }
        chosen = labels == label
        axes.scatter(points[chosen, 0], points[chosen, 1], s=size, alpha=0.75, linewidths=0, **style)
    _style_axes(axes, *axis_names)
    axes.set_title(title, fontsize=_TEXT + 1, loc="left")
    if len(coloured):
        axes.legend(fontsize=_SMALL, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1), handletextpad=0.2)
    return figure


def plot_histograms(panels: Mapping[str, Mapping[str, np.ndarray]], title: str) -> Figure:
    """Returns a plot of histograms of several kinds of images, with one panel per quantity; the first kind is filled.

    Values beyond the range of a panel count in its first or last bin.

    Args:
        panels: the values `[n]` by the name of the quantity and then by the kind of images; all have the same kinds.
        title: the title of the plot.
    """
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = _make_figure(4 * columns, 3 * rows + 0.8)
    for number, (name, kinds) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        # A panel shows nearly all values of each kind, but is at most nine times as wide as the first kind.
        ends = np.array([np.quantile(values, (0.005, 0.995)) for values in kinds.values()])
        (first, last), (low, high) = ends[0], (ends[:, 0].min(), ends[:, 1].max())
        room = 4 * (last - first)
        low, high = (max(low, first - room), min(high, last + room)) if room > 0 else (low, high)
        bins = np.linspace(low, high if high > low else low + 1, 41)
        for place, (kind, values) in enumerate(kinds.items()):
            shares = np.histogram(np.clip(values, bins[0], bins[-1]), bins)[0] / len(values)
            style: dict[str, Any] = {"color": _GREY, "alpha": 0.6, "fill": True}
            if place:
                style = {"edgecolor": COLOURS[(place - 1) % len(COLOURS)], "linewidth": 1.8}
            axes.stairs(shares, bins, label=kind, **style)
        _style_axes(axes, name, "share of images")
        axes.set_ylim(bottom=0)
    figure.suptitle(title, fontsize=_TEXT + 1, x=0.01, ha="left")
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=_SMALL, frameon=False)
    return figure


def plot_statistics(statistics: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Returns a plot of how well z, v and pixels predict statistics of images, and which code they follow in a switch.

    Args:
        statistics: `r2` and `switch` by the name of the statistic, as `metrics.image_statistics` returns them.
        title: the title of the plot.
    """
    figure = _make_figure(11, 4.8)
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(statistics)
    panels = (
        (left, "R2 of a linear regression", {kind: kind for kind in statistics[names[0]]["r2"]}, "r2"),
        (right, "coefficient after a switch of z", {"z": "of the image of z", "v": "of the image of v"}, "switch"),
    )
    for axes, what, kinds, group in panels:
        height = 0.8 / len(kinds)
        for number, (kind, label) in enumerate(kinds.items()):
            estimates = [statistics[name][group][kind] for name in names]
            axes.barh(
                np.arange(len(names)) + (number - (len(kinds) - 1) / 2) * height,
                [each["mean"] for each in estimates],
                height,
                xerr=[each["standard_error"] for each in estimates],
                color=COLOURS[number],
                label=label,
            )
        _style_axes(axes, what)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.legend(fontsize=_SMALL, frameon=False, loc="best")
    # Bars below 0 are cut off, because a regression that is worse than the mean predicts nothing.
    left.set_xlim(-0.1, 1)
    left.set_yticks(range(len(names)), names, fontsize=_SMALL)
    left.invert_yaxis()
    figure.suptitle(title, fontsize=_TEXT + 1, x=0.01, ha="left")
    return figure


def plot_confusion(confusion: Mapping[str, Any], label_names: Sequence[str]) -> Figure:
    """Returns a plot of a confusion matrix: rows are the true classes, columns the predicted ones.

    The darkness of a cell is its share of the images of its true class; the number in it is the number of images.

    Args:
        confusion: a result of `metrics.probe.count_confusion`.
        label_names: the names of the labels; a label without a name is shown as its number.
    """
    counts = np.asarray(confusion["counts"])
    names = [label_names[label] if label < len(label_names) else str(label) for label in confusion["labels"]]
    side = min(3 + 0.45 * len(names), 12)
    figure = _make_figure(max(side, 6), side)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= _NUMBERED_CLASSES:
        for row, column in np.argwhere(counts):
            style: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "color": "white" if shares[row, column] > 0.5 else "black",
            }
            axes.text(column, row, str(counts[row, column]), fontsize=_SMALL - 2, **style)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=_SMALL - 2)
    axes.set_yticks(range(len(names)), names, fontsize=_SMALL - 2)
    axes.set_xlabel("predicted class", fontsize=_TEXT)
    axes.set_ylabel("true class", fontsize=_TEXT)
    figure.suptitle(
        f"{confusion['features']}, {confusion['classifier']}: {100 * confusion['accuracy']:.1f} % of "
        f"{counts.sum():,} images right",
        fontsize=_TEXT,
    )
    return figure


def _make_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of a size in inches, whose look does not depend on a user's matplotlibrc."""
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    # The paddings are the distances between panels, and to the border, in inches.
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    return figure


def _style_axes(axes: Axes, x_label: str, y_label: str = "") -> None:
    axes.set_facecolor("white")
    axes.grid(True, color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_SMALL)
    axes.set_xlabel(x_label, fontsize=_TEXT)
    axes.set_ylabel(y_label, fontsize=_TEXT)
