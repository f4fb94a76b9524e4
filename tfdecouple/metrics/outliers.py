"""A metric of how well a model's scores separate outliers from the images of a run, by AUROC and false positives."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdecouple.data.sources import find_kind, list_source_kinds
from tfdecouple.errors import DataError, UserError, nearest
from tfdecouple.metrics.base import Metric, Result, describe_draws, require_finite
from tfdecouple.metrics.drawn_images import draw_indices

if TYPE_CHECKING:
    import tensorflow as tf

    from tfdecouple.data import Source

MINUS_CODEC = "bits_per_dim_minus_codec"
CODEC = "webp"
# The names of the scores and their descriptions. Outliers should have higher scores, or a `shell` farther from 0.
SCORES = {
    "bits_per_dim": "bits/dim",
    MINUS_CODEC: f"bits/dim less lossless {CODEC}'s",
    "prior_nats": "-log p(z), nats",
    "shell": "|v| off its shell, sd",
    "typicality": "latents off their typical set, sd",
}
# The names and descriptions of the kinds of outliers that the program makes itself.
MADE = {
    "noise": "uniform noise",
    "constant": "images of one colour each",
    "permuted": "the run's images with their pixels in another order",
}
_LABEL = "label:"
# Share of the run's images that must pass the threshold, and number of bootstrap samples.
PASSING, RESAMPLES = 0.95, 1000

# A padded batch of images: "image", "index" and "weight" as in `evaluation_batches`, and perhaps "label".
Batch = Mapping[str, Any]
Scores = dict[str, np.ndarray]


class Outliers(Metric):
    """The metric of how well scores separate the images of --split from other images."""

    name = "outliers"
    needs_plots = True

    def __init__(self, options: argparse.Namespace):
        super().__init__(options)
        # Opened data sets by their names in the option --outliers; `prepare_inputs` opens them.
        self._sources: dict[str, Source] = {}

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds the option --outliers to `group`, an argument group of the parser of `evaluate`."""
        group.add_argument(
            "--outliers",
            nargs="+",
            default=[],
            metavar="SOURCE",
            help="also how well the model's scores separate outliers from the run's images: images of other data "
            f"({list_source_kinds()}), {', '.join(MADE)}, or {_LABEL}NAME, the images of one label against the rest",
        )

    def check_options(self) -> None:
        """Raises UserError if a name in --outliers is no source of images.

        Raises:
            UserError: if a name is unknown; the message suggests the nearest one.
        """
        for name in self.options.outliers:
            if not (name in MADE or name.startswith(_LABEL) or find_kind(name)):
                raise UserError(
                    f"--outliers has {name!r}{nearest(name, MADE)}; there are {', '.join(MADE)}, {_LABEL}NAME, and "
                    f"{list_source_kinds()}"
                )

    def prepare_inputs(self) -> None:
        """Opens the data sets of outliers that --outliers names.

        Raises:
            UserError: if a data set or the package that draws the plot is missing.
        """
        super().prepare_inputs()
        from tfdecouple.data import open_source
        from tfdecouple.data.sources import replace_source
        from tfdecouple.runs.run_folder import load_config

        options, config = self.options, load_config(self.options.run)
        for name in options.outliers:
            if name in MADE or name.startswith(_LABEL):
                continue
            data = replace_source(config.data, name)
            if options.data_dir:
                data = dataclasses.replace(data, data_dir=options.data_dir)
            self._sources[name] = source = open_source(data, config.model.image_shape, download=options.download)
            source.split(options.split)

    def compute(self, evaluation: Any) -> Result:
        """Returns how well each score separates each kind of outliers, and the scores of each image.

        Raises:
            DataError: if all images or no image have a label that --outliers names.
        """
        from tfdecouple.runtime.progress import Counter
        from tfdecouple.visualization.plots import COLOURS, plot_histograms, render_figure

        options, source = self.options, evaluation.source
        names = list(dict.fromkeys(options.outliers))
        labels = {name: _find_label(source, name) for name in names if name.startswith(_LABEL)}
        scorer = Scorer(evaluation.opened.model, options.samples, options.seed)
        with Counter(f"scores of {options.split}", evaluation.count) as counter:
            split_scores = scorer.score_batches(evaluation.batches().as_numpy_iterator(), options.split, counter)
        meanings = {score: meaning for score, meaning in SCORES.items() if score in split_scores}
        reports, scores = {}, {}
        for name in names:
            inliers = split_scores
            if name in labels:
                chosen = split_scores["label"] == labels[name]
                if chosen.all() or not chosen.any():
                    raise DataError(
                        f"--outliers {name}: {chosen.sum()} of {len(chosen)} images have the label; it needs some with "
                        "it and some without"
                    )
                scores[name], inliers = (
                    {score: values[rows] for score, values in split_scores.items()} for rows in (chosen, ~chosen)
                )
            else:
                with Counter(f"scores of {name}", evaluation.count) as counter:
                    scores[name] = scorer.score_batches(self._batches(evaluation, name), name, counter)
            detection = {}
            for score in meanings:
                ours, others = inliers[score], scores[name][score]
                if score == "shell":
                    # A `shell` far below 0 is as unusual as one far above, so only its distance from 0 counts.
                    ours, others = np.abs(ours), np.abs(others)
                detection[score] = compare_scores(ours, others, options.seed)
            reports[name] = {
                "what": self._describe(name),
                "images": len(scores[name]["index"]),
                "known_images": len(inliers["index"]),
                "detection": detection,
            }
        unlabelled = {name: each for name, each in scores.items() if name not in labels}
        values = {
            "images": evaluation.count,
            "samples": options.samples,
            "codec": CODEC,
            "scores": meanings,
            "outliers": reports,
            # Images of one label are listed among the images of the split, with their labels.
            "per_image": {
                name: _plain_scores(each) for name, each in {options.split: split_scores, **unlabelled}.items()
            },
        }
        # Outliers by label are left out beside other kinds, because the histogram of the split contains them.
        shown = {options.split: split_scores, **dict(list((unlabelled or scores).items())[: len(COLOURS)])}
        panels = {meaning: {name: each[score] for name, each in shown.items()} for score, meaning in meanings.items()}
        title = f"Scores of {source.title}, {options.split}, and of other images; the last bins hold what is beyond"
        figure = plot_histograms(panels, f"{title}\n{evaluation.opened.note()}")
        return Result(values, _lines(reports, options), render_figure(figure))

    def _describe(self, name: str) -> str:
        if name in self._sources:
            return f"{self._sources[name].title}, {self.options.split}"
        return MADE.get(name, "images of that label, against the rest")

    def _batches(self, evaluation: Any, name: str) -> Iterator[Batch]:
        """Yields batches of outliers named `name`: as many images as the run's evaluated images, or all there are."""
        from tfdecouple.data import evaluation_batches

        options, size = self.options, min(evaluation.batch_size, evaluation.count)
        if name in self._sources:
            source = self._sources[name]
            count = min(evaluation.count, source.sizes[options.split])
            indices = draw_indices(source, options.split, count, options.seed)
            with source.guard():
                batches = evaluation_batches(source, options.split, batch_size=size, indices=indices)
                yield from batches.as_numpy_iterator()
        elif name == "permuted":
            for batch in evaluation.batches().as_numpy_iterator():
                yield {**batch, "image": permute_pixels(batch["image"], batch["index"], options.seed)}
        else:
            shape = evaluation.opened.config.model.image_shape
            for start in range(0, evaluation.count, size):
                index = np.arange(start, start + size)
                images = make_images(name, shape, index, options.seed)
                yield {"image": images, "index": index, "weight": index < evaluation.count}


def _find_label(source: Source, name: str) -> int:
    """Returns the number of the label that `name`, of the form "label:NAME", stands for.

    Raises:
        UserError: if the source has no label NAME.
    """
    label = name.removeprefix(_LABEL)
    if label not in source.label_names:
        listed = ", ".join(source.label_names[:20]) or "none"
        raise UserError(
            f"--outliers has {name!r}, but {source.title} has no such label{nearest(label, source.label_names)}; it "
            f"has {listed}"
        )
    return source.label_names.index(label)


def _plain_scores(scores: Scores) -> dict[str, list[Any]]:
    """Returns the scores as lists of plain numbers, rounded to seven digits, the precision of float32."""
    return {
        name: [float(f"{value:.7g}") for value in values] if values.dtype.kind == "f" else values.tolist()
        for name, values in scores.items()
    }


def _lines(reports: dict[str, Any], options: Any) -> list[str]:
    draws = describe_draws(options.samples)
    lines = [f"outliers: how well each score separates them, {draws} an image, intervals of 95 %"]
    for name, report in reports.items():
        lines.append(f"    {name} ({report['images']:,} images), against {report['known_images']:,} of {options.split}")
        lines.append(f"        {'score':34}{'AUROC':>24}{'false positives at 95 %':>30}")
        for score, each in report["detection"].items():
            low, high = each["auroc_interval"]
            area = f"{each['auroc']:.3f} [{low:.3f}, {high:.3f}]"
            low, high = (100 * end for end in each["false_positives_interval"])
            share = f"{100 * each['false_positives']:.1f} % [{low:.1f}, {high:.1f}]"
            lines.append(f"        {SCORES[score]:34}{area:>24}{share:>30}")
    if any(each["auroc"] < 0.5 for report in reports.values() for each in report["detection"].values()):
        lines.append("    an AUROC below 0.5: by that score outliers are the more usual images")
    return lines


class Scorer:
    """A function that computes scores of images on one device; a score does not depend on the image's batch.

    Args:
        model: a model with weights.
        samples: the number of draws of (z, u) per image, over which the scores are averaged.
        seed: the seed of the draws, which depend on it and the image's index alone.
    """

    def __init__(self, model: Any, samples: int = 1, seed: int = 0):
        import tensorflow as tf

        model.require_initialized()
        self._model, self._samples, self._seed = model, samples, seed
        self._score_draw_traced = tf.function(self._score_draw, autograph=False)

    def __call__(self, images: np.ndarray, index: np.ndarray) -> Scores:
        """Returns the scores of images by name, float64 `[n]`: all of `SCORES` that the model has, without the codec.

        Args:
            images: the images, uint8 `[n, height, width, channels]`; TensorFlow traces the model once for each n.
            index: the numbers of the images in their split, `[n]`.
        """
        import tensorflow as tf

        from tfdecouple.runtime.precision import full_float32

        sums: dict[str, np.ndarray] = {}
        for number in range(self._samples):
            with full_float32():
                inputs = tf.constant(images), tf.constant(np.asarray(index, np.int64)), tf.constant(number)
                scores = self._score_draw_traced(*inputs)
            for name, values in scores.items():
                sums[name] = sums.get(name, 0.0) + values.numpy().astype(np.float64)
        return {name: total / self._samples for name, total in sums.items()}

    def score_with_codec(self, images: np.ndarray, index: np.ndarray, count: int) -> Scores:
        """Returns the scores of the first `count` images by name, with bits/dim minus a lossless codec's bits/dim."""
        from tfdecouple.data.codecs import codec_bits_per_dim

        scores = {name: values[:count] for name, values in self(images, index).items()}
        seen = np.asarray(self._model.quantize_images(images[:count]))
        return {**scores, MINUS_CODEC: scores["bits_per_dim"] - codec_bits_per_dim(seen, CODEC)}

    def score_batches(
        self, batches: Iterable[Batch], what: str, on_batch: Callable[[int], None] = lambda done: None
    ) -> Scores:
        """Returns the scores of all images of batches, `[n]`, by name, with "index" and "label" (-1 for none).

        Args:
            batches: batches of one size.
            what: the name of the images in messages.
            on_batch: a callback that receives the number of finished images.

        Raises:
            RunError: if a score is not finite.
        """
        rows: list[Scores] = []
        for batch in batches:
            image, index, weight = (np.asarray(batch[name]) for name in ("image", "index", "weight"))
            # The padding of the last batch is at its end.
            count = int((weight > 0).sum())
            label = np.asarray(batch.get("label", np.full(len(index), -1)))
            rows.append({**self.score_with_codec(image, index, count), "index": index[:count], "label": label[:count]})
            on_batch(sum(len(row["index"]) for row in rows))
        scores = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        for name in scores.keys() & SCORES.keys():
            require_finite(f"{name} of {what}", scores[name], scores["index"])
        return scores

    def _score_draw(self, images: tf.Tensor, index: tf.Tensor, number: tf.Tensor) -> dict[str, tf.Tensor]:
        import tensorflow as tf

        from tfdecouple.model.noise import normal_u_noise, u_noise, z_noise
        from tfdecouple.model.outlier_scores import outlier_scores

        config, batch = self._model.config, images.shape[0]
        draw = self._seed, tf.fill([batch], number), index
        noise = z_noise(config.latent_dim, *draw), u_noise(config.image_shape, *draw, normal_u_noise(config))
        # TensorFlow does not infer the number of images from the loop that draws the noise.
        z, u = (tf.ensure_shape(each, [batch, *each.shape[1:]]) for each in noise)
        return outlier_scores(self._model, images, z, u).named()


def compute_auroc(inliers: np.ndarray, outliers: np.ndarray, axis: int = -1) -> Any:
    """Returns the area under the ROC curve: the probability that an outlier scores higher than an inlier.

    A tie counts as half. 0.5 is chance; below 0.5 the score ranks outliers as the more usual images.

    >>> float(compute_auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0])))
    0.875

    Args:
        inliers: scores of inliers, `[..., n]`.
        outliers: scores of outliers, `[..., m]`.
        axis: the axis of the images, which must be the last axis.
    """
    import scipy.stats

    n, m = inliers.shape[axis], outliers.shape[axis]
    ranks = scipy.stats.rankdata(np.concatenate([inliers, outliers], axis), axis=axis)
    return (ranks[..., n:].sum(axis) - m * (m + 1) / 2) / (n * m)


def _false_positives(inliers: np.ndarray, outliers: np.ndarray, axis: int = -1) -> Any:
    # The quantile is a little below `PASSING`, so that rounding of 0.95 * 100 never asks for 96 of 100 images.
    threshold = np.quantile(inliers, PASSING - 1e-9, axis=axis, method="inverted_cdf", keepdims=True)
    return (outliers <= threshold).mean(axis)


def compare_scores(
    inliers: np.ndarray, outliers: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Returns how well a score separates outliers from inliers, by AUROC and false positives, with intervals.

    Args:
        inliers: scores of inliers, `[n]`.
        outliers: scores of outliers, `[m]`, which are higher if the score is good.
        seed: the seed of the bootstrap.
        resamples: the number of bootstrap samples, each of n and m images drawn with replacement.

    Returns:
        `auroc` of `compute_auroc`; `false_positives`, the share of outliers that pass as inliers at the threshold that
        95 % of the inliers pass; and bootstrap intervals of 95 %, `auroc_interval` and `false_positives_interval`.
    """
    import scipy.stats

    figures: dict[str, Any] = {}
    for name, statistic in (("auroc", compute_auroc), ("false_positives", _false_positives)):
        low, high = scipy.stats.bootstrap(
            (inliers, outliers), statistic, n_resamples=resamples, batch=100, method="percentile", rng=seed
        ).confidence_interval
        figures |= {name: float(statistic(inliers, outliers)), f"{name}_interval": (float(low), float(high))}
    return figures


def make_images(kind: str, shape: tuple[int, int, int], index: np.ndarray, seed: int) -> np.ndarray:
    """Returns artificial images: uniform noise, or images of one constant colour each.

    Args:
        kind: the kind of the images, "noise" or "constant".
        shape: height, width and channels of an image.
        index: the numbers of the images, `[n]`.
        seed: the seed of all images; an image depends on it and on its number alone.

    Returns:
        The images, uint8 `[n, height, width, channels]`.
    """
    drawn = shape if kind == "noise" else (1, 1, shape[-1])
    images = [np.random.default_rng([seed, int(number)]).integers(0, 256, drawn, np.uint8) for number in index]
    return np.broadcast_to(np.stack(images), (len(index), *shape)).copy()


def permute_pixels(images: np.ndarray, index: np.ndarray, seed: int) -> np.ndarray:
    """Returns images with the pixels of each image in a random order, uint8 `[n, height, width, channels]`.

    An image's order depends on the seed and on the image's number in `index`.
    """
    pixels = images.reshape(len(images), -1, images.shape[-1])
    orders = [np.random.default_rng([seed, int(number)]).permutation(pixels.shape[1]) for number in index]
    return np.stack([one[order] for one, order in zip(pixels, orders, strict=True)]).reshape(images.shape)
