"""Functions that plot training curves, codes projected to two dimensions, histograms and confusion matrices."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from tfdecouple.storage.files import Facts

# The colours of Okabe and Ito, which people with any colour vision can distinguish; the dark colours come first.
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

# The type of the curves of a run: {"train" or "validation" images: {metric: (training steps, values), both `[n]`}}.
Curves = Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]


def render_figure(figure: Figure) -> Image.Image:
    """Draws a matplotlib figure; returns it as an RGB Pillow image."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def plot_curves(runs: Mapping[str, Curves]) -> Figure:
    """Plots bits/dim, KL, log q(u|x) and learning rate of runs, by name, over their updates; all must have bits/dim.

    Curves on training images are thin. Curves on validation images are thick, with a point at each evaluation. The axis
    of bits/dim leaves out the steep fall in the first tenth of each curve, and the highest hundredth of the values
    after it, such as short peaks: these would flatten the rest.
    """
    figure = _make_figure(9, 6.6)
    lower = [name for name in _NAMES if name != "bits_per_dim" and _collect_curves(runs, name)]
    rows: list[list] = [["bits_per_dim"] * len(lower), lower] if lower else [["bits_per_dim"]]
    panels = figure.subplot_mosaic(rows, height_ratios=(1.7, 1) if lower else None)
    is_alone = len(runs) == 1
    for name, axes in panels.items():
        for number, (run, curves) in enumerate(runs.items()):
            colour, begin = COLOURS[number % len(COLOURS)], "" if is_alone else f"{run}, "
            if name in curves["train"]:
                axes.plot(*curves["train"][name], color=colour, linewidth=1, alpha=0.6, label=f"{begin}training")
            if name in curves["validation"]:
                style: dict[str, Any] = {"linewidth": 2, "marker": _MARKERS[number % len(_MARKERS)], "markersize": 6}
                style["color"] = COLOURS[1] if is_alone else colour
                axes.plot(*curves["validation"][name], label=f"{begin}validation", **style)
        _style_axes(axes, "update", _NAMES[name])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 10000 else f"{value:g}")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlim(left=0)
        if name != "bits_per_dim":
            axes.set_ylim(bottom=0)
    if "learning_rate" in panels:
        panels["learning_rate"].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    bits = panels["bits_per_dim"]
    later = [values[steps >= steps[-1] / 10] for steps, values in _collect_curves(runs, "bits_per_dim")]
    low, high = min(map(np.min, later)), max(np.quantile(values, 0.99) for values in later)
    if room := (high - low) / 20:
        bits.set_ylim(low - room, high + room)
    bits.legend(fontsize=_SMALL, frameon=False)
    bits.set_title(next(iter(runs)) if is_alone else f"{len(runs)} runs", fontsize=_TEXT + 2, loc="left")
    return figure


def _collect_curves(runs: Mapping[str, Curves], name: str) -> list[np.ndarray]:
    return [np.asarray(lines[name]) for curves in runs.values() for lines in curves.values() if name in lines]


def project_to_components(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects codes `[n, d]` to two principal components; returns points and the share of variance of each component.

    The points, `[n, 2]`, and the shares, `[2]`, are float64. n must be at least 2; for d = 1 the second component is 0.
    """
    from sklearn.decomposition import PCA

    pca = PCA(min(2, codes.shape[1]), svd_solver="full")
    points = pca.fit_transform(np.asarray(codes, np.float64))
    missing = 2 - points.shape[1]
    return np.pad(points, ((0, 0), (0, missing))), np.pad(pca.explained_variance_ratio_, (0, missing))


def plot_projection(
    points: np.ndarray, labels: np.ndarray, names: Sequence[str], axis_names: Sequence[str], title: str
) -> Figure:
    """Plots points in two dimensions, `[n, 2]`, coloured by label; returns the matplotlib figure.

    `labels` are the labels of the points, int `[n]`, -1 for no label. `names` are the names of the labels. The 14 most
    frequent labels get a colour and a shape; other points are grey.
    """
    figure = _make_figure(9, 6.6)
    axes = figure.add_subplot()
    present, counts = np.unique(labels[labels >= 0], return_counts=True)
    coloured = np.sort(present[np.argsort(-counts, kind="stable")][:14])
    size = float(np.clip(24000 / max(len(points), 1), 9, 60))
    rest = ~np.isin(labels, coloured)
    if rest.any():
        style: dict[str, Any] = {"color": _GREY, "label": "other"} if len(coloured) else {"color": COLOURS[0]}
        axes.scatter(points[rest, 0], points[rest, 1], s=size, alpha=0.7, linewidths=0, **style)
    for number, label in enumerate(coloured):
        style = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": _MARKERS[(number + number // len(COLOURS)) % len(_MARKERS)],
            "label": names[label],
        }
        chosen = labels == label
        axes.scatter(points[chosen, 0], points[chosen, 1], s=size, alpha=0.75, linewidths=0, **style)
    _style_axes(axes, *axis_names)
    axes.set_title(title, fontsize=_TEXT + 1, loc="left")
    if len(coloured):
        axes.legend(fontsize=_SMALL, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1), handletextpad=0.2)
    return figure


def plot_histograms(panels: Mapping[str, Mapping[str, np.ndarray]], title: str) -> Figure:
    """Plots histograms of metrics of images, a panel for each metric; returns the matplotlib figure.

    `panels` is {name of a metric: {name of a set of images: values of the metric, `[n]`}}, with the same sets in all
    panels; the first is filled. Values beyond the range of a panel count in its first or last bin.
    """
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = _make_figure(4 * columns, 3 * rows + 0.8)
    for number, (name, kinds) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        # The axis covers 99 % of each set's values, but at most nine times the range of the first set's values, because
        # a far set would otherwise squeeze the first histogram.
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


def plot_confusion(confusion: Facts, label_names: Sequence[str]) -> Figure:
    """Plots a confusion matrix, `confusion` in the result of `classify_images`; returns the matplotlib figure.

    Rows are true classes, columns are predicted classes. The number in a cell is its count of images; the darkness is
    the share of this count in the images of the true class.
    """
    counts = np.asarray(confusion["counts"])
    names = [label_names[label] for label in confusion["labels"]]
    side = min(3 + 0.45 * len(names), 12)
    figure = _make_figure(max(side, 6), side)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    # The cells of more classes have no room for numbers.
    if len(names) <= 40:
        for row, column in np.argwhere(counts):
            text, colour = str(counts[row, column]), "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, text, fontsize=_SMALL - 2, ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=_SMALL - 2)
    axes.set_yticks(range(len(names)), names, fontsize=_SMALL - 2)
    axes.set_xlabel("predicted class", fontsize=_TEXT)
    axes.set_ylabel("true class", fontsize=_TEXT)
    right = f"{100 * confusion['accuracy']:.1f} % of {counts.sum():,} images right"
    figure.suptitle(f"Bayes' rule, p(y|x): {right}", fontsize=_TEXT)
    return figure


def _make_figure(width: float, height: float) -> Figure:
    """Returns an empty matplotlib figure, `width` x `height` inches, in a style that ignores the user's settings."""
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    # The two paddings, in inches, keep panels and their labels from touching each other or the border.
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
