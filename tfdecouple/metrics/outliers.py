"""A metric of how well a model's scores separate outliers from its data set's images: AUROC and false positives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from tfdecouple.data.drawn_images import draw_image_indices
from tfdecouple.data.sources import Source, SourceKind, find_source_kind, list_source_kinds, open_source, replace_source
from tfdecouple.errors import UserError, nearest
from tfdecouple.metrics.metric import Evaluation, Metric, Option, Result, format_table, require_finite_values
from tfdecouple.storage.files import Facts
from tfdecouple.system.progress import Counter, format_count

if TYPE_CHECKING:
    from tfdecouple.config import Config
    from tfdecouple.model.outlier_scores import OutlierScorer, Scores

# The synthetic outliers that `make_outlier_images` makes.
MADE = ("noise", "constant", "permuted")
# False positives are counted at the threshold below which this fraction of the run's images lies.
PASSING = 0.95


class Outliers(Metric):
    """The metric of how well a model's scores separate the images of --split from other data and synthetic images."""

    name = "outliers"
    needs_plots = True
    added_options = {
        "outliers": Option(
            tuple[str, ...],
            (),
            "also how well the model's scores separate outliers from the run's images: images of other data "
            f"({list_source_kinds()}), {', '.join(MADE[:-1])} or {MADE[-1]}",
        )
    }

    def prepare_inputs(self, config: Config) -> None:
        options = self.options
        self._sources: dict[str, Source] = {}
        for name in options.outliers:
            if name in MADE:
                continue
            if type(find_source_kind(name)) is SourceKind:
                listed = f"{', '.join(MADE)}, and {list_source_kinds()}"
                raise UserError(f"--outliers has {name!r}{nearest(name, MADE)}; there are {listed}")
            data = replace_source(config.data, name, data_dir=options.data_dir)
            self._sources[name] = source = open_source(data, config.model.image_shape, download=options.download)
            source.open_split(options.split)

    def compute(self, evaluation: Evaluation) -> Result:
        from tfdecouple.model.outlier_scores import CODEC, SCORES, OutlierScorer
        from tfdecouple.visualization.plots import COLOURS, plot_histograms, render_figure

        options, source, count = self.options, evaluation.source, evaluation.count
        scorer = OutlierScorer(evaluation.opened.model, options.samples, options.seed)
        inliers = _score_images(scorer, evaluation.make_image_batches().as_numpy_iterator(), options.split, count)
        meanings = {name: meaning for name, meaning in SCORES.items() if name in inliers}
        per_image, reports = {options.split: inliers}, {}
        for name in dict.fromkeys(options.outliers):
            outliers = _score_images(scorer, self._read_outlier_batches(evaluation, name), name, count)
            detection = {}
            for key in meanings:
                # A `shell` far below 0 is as unusual as one far above, so only its distance from 0 counts.
                inner, outer = (np.abs(s[key]) if key == "shell" else s[key] for s in (inliers, outliers))
                detection[key] = compare_outlier_scores(inner, outer, options.seed)
            reports[name] = {"images": len(outliers["index"]), "known_images": count, "detection": detection}
            per_image[name] = outliers
        values = {"images": count, "samples": options.samples, "codec": CODEC, "scores": meanings, "outliers": reports}
        values["per_image"] = {
            name: {key: array.tolist() for key, array in scores.items()} for name, scores in per_image.items()
        }
        shown = list(per_image.items())[: 1 + len(COLOURS)]
        panels = {f"{key}: {text}": {name: scores[key] for name, scores in shown} for key, text in meanings.items()}
        title = f"Scores of {source.title}, {options.split}, and of outliers; the last bins include larger values"
        figure = plot_histograms(panels, f"{title}\n{evaluation.opened.note()}")
        return Result(values, _format_separation(reports, options), render_figure(figure))

    def _read_outlier_batches(self, evaluation: Evaluation, name: str) -> Iterator[Mapping[str, np.ndarray]]:
        """Yields at most `evaluation.count` outliers `name`, as dicts of "image", "index" and "weight"."""
        from tfdecouple.data.batches import make_evaluation_batches

        options = self.options
        if name in MADE:
            for batch in evaluation.make_image_batches().as_numpy_iterator():
                yield {**batch, "image": make_outlier_images(name, batch["image"], batch["index"], options.seed)}
            return
        source = self._sources[name]
        size, count = (min(limit, evaluation.count) for limit in (evaluation.batch_size, source.sizes[options.split]))
        indices = draw_image_indices(source, options.split, count, options.seed)
        with source.guard():
            batches = make_evaluation_batches(source, options.split, batch_size=size, indices=indices)
            yield from batches.as_numpy_iterator()


def _format_separation(reports: Facts, options: SimpleNamespace) -> list[str]:
    from tfdecouple.model.outlier_scores import SCORES

    draws = format_count(options.samples, "draw")
    lines = [f"outliers: how well each score separates them, {draws} per image, intervals of 95 %"]
    for name, report in reports.items():
        lines.append(f"    {name} ({report['images']:,} images), against {report['known_images']:,} of {options.split}")
        rows = [["score", "AUROC", "false positives at 95 %"]]
        for score, separation in report["detection"].items():
            low, high = separation["auroc_interval"]
            area = f"{separation['auroc']:.3f} [{low:.3f}, {high:.3f}]"
            low, high = (100 * end for end in separation["false_positives_interval"])
            share = f"{100 * separation['false_positives']:.1f} % [{low:.1f}, {high:.1f}]"
            rows.append([f"{score}: {SCORES[score]}", area, share])
        lines += format_table(rows, indent=8)
    if any(separation["auroc"] < 0.5 for report in reports.values() for separation in report["detection"].values()):
        lines.append("    an AUROC below 0.5: by this score, outliers are more typical than the images")
    return lines


def _score_images(scorer: OutlierScorer, batches: Iterable[Mapping[str, np.ndarray]], name: str, total: int) -> Scores:
    """Returns {name of a score: array `[n]`} with "index"; RunError if a score is not finite."""
    rows: list[Scores] = []
    with Counter(f"scores of {name}", total) as counter:
        for batch in batches:
            # Padding is at the end of the last batch, so the first `count` images of each batch are the real ones.
            index, count = batch["index"], int((batch["weight"] > 0).sum())
            rows.append({**scorer(batch["image"], index, count), "index": index[:count]})
            counter(sum(len(row["index"]) for row in rows))
    scores = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    for key in scores.keys() - {"index"}:
        require_finite_values(f"{key} of {name}", scores[key], scores["index"])
    return scores


def compute_auroc(inliers: np.ndarray, outliers: np.ndarray, axis: int = -1) -> np.ndarray:
    """Returns the area under the ROC curve: the probability that an outlier scores higher than an inlier.

    A tie counts as half. `inliers` and `outliers` are scores, `[..., n]` and `[..., m]`; `axis` is the last axis.

    >>> float(compute_auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0])))
    0.875
    """
    import scipy.stats

    n, m = inliers.shape[axis], outliers.shape[axis]
    return scipy.stats.mannwhitneyu(outliers, inliers, axis=axis, method="asymptotic").statistic / (n * m)


def _compute_separation(inliers: np.ndarray, outliers: np.ndarray, axis: int = -1) -> np.ndarray:
    # The quantile is a little below `PASSING`, because rounding errors could otherwise let 96 instead of 95 % pass.
    threshold = np.quantile(inliers, PASSING - 1e-9, axis=axis, method="inverted_cdf", keepdims=True)
    return np.stack([compute_auroc(inliers, outliers, axis), (outliers <= threshold).mean(axis)])


def compare_outlier_scores(inliers: np.ndarray, outliers: np.ndarray, seed: int = 0, resamples: int = 1000) -> Facts:
    """Returns a dict of how well a score separates inliers, with scores `[n]`, from outliers, with scores `[m]`.

    `false_positives` is the share of outliers below the threshold that lets 95 % of the inliers pass. `auroc_interval`
    and `false_positives_interval` are 95 % bootstrap intervals from `resamples` samples.
    """
    import scipy.stats

    interval = scipy.stats.bootstrap(
        (inliers, outliers), _compute_separation, n_resamples=resamples, batch=100, method="percentile", rng=seed
    ).confidence_interval
    values, ends = _compute_separation(inliers, outliers).tolist(), np.transpose(interval).tolist()
    figures = dict(zip(("auroc", "false_positives"), values, strict=True))
    return figures | {f"{name}_interval": tuple(pair) for name, pair in zip(figures, ends, strict=True)}


def make_outlier_images(kind: str, images: np.ndarray, index: np.ndarray, seed: int) -> np.ndarray:
    """Returns synthetic outliers in the shape of `images`, uint8 `[n, height, width, channels]`.

    `kind` is "noise" (uniform noise), "constant" (one colour each) or "permuted" (the pixels of `images` in random
    order). The random part of an outlier depends only on the seed and on the outlier's entry in `index`.
    """
    made = np.empty_like(images)
    for row, number in enumerate(index):
        rng = np.random.default_rng([seed, int(number)])
        if kind == "permuted":
            pixels = images[row].reshape(-1, images.shape[-1])
            made[row] = pixels[rng.permutation(len(pixels))].reshape(images.shape[1:])
        else:
            made[row] = rng.integers(0, 256, images.shape[1:] if kind == "noise" else images.shape[-1], np.uint8)
    return made
