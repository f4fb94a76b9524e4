"""How well scores of images tell outliers from the images of a run: AUROC and false positives of each score."""

from __future__ import annotations

import argparse
import dataclasses
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdecouple.data.sources import find_kind, kinds_listed
from tfdecouple.errors import DataError, RunError, UserError, nearest
from tfdecouple.metrics.base import Metric, Result, draws
from tfdecouple.metrics.drawn_images import drawn_indices
from tfdecouple.runtime.extras import require

if TYPE_CHECKING:
    import tensorflow as tf

    from tfdecouple.data import Source

MINUS_CODEC = "bits_per_dim_minus_codec"
CODEC = "webp"
# By name, what each is; all are such that outliers are to have more, `shell` by its size.
SCORES = {
    "bits_per_dim": "bits/dim",
    MINUS_CODEC: f"bits/dim less lossless {CODEC}'s",
    "prior_nats": "-log p(z), nats",
    "shell": "|v| off its shell, sd",
    "typicality": "latents off their typical set, sd",
}
# A batch of images, padded: "image", "index" and "weight" as of `evaluation_batches`, and perhaps "label".
Batch = Mapping[str, Any]
Scored = dict[str, np.ndarray]
# Images that are made, not read: by name, what they are.
MADE = {
    "noise": "uniform noise",
    "constant": "images of one colour each",
    "permuted": "the run's images with their pixels in another order",
}
_LABEL = "label:"


class Outliers(Metric):
    """Scores of the images of --split against those of other images."""

    name = "outliers"

    def __init__(self, options: argparse.Namespace):
        super().__init__(options)
        # The other data sets by what --outliers calls them; opened in `prepare`.
        self._opened: dict[str, Source] = {}

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds --outliers."""
        group.add_argument(
            "--outliers",
            nargs="+",
            default=[],
            metavar="SOURCE",
            help=f"also how well the model tells outliers: images of other data ({kinds_listed()}), {', '.join(MADE)}, "
            f"or {_LABEL}NAME, those of one label against the rest",
        )

    def check(self) -> None:
        """Refuses what is no source of images.

        Raises:
            UserError: with the nearest name.
        """
        for source in self.options.outliers:
            if source in MADE or source.startswith(_LABEL) or find_kind(source):
                continue
            raise UserError(
                f"--outliers has {source!r}{nearest(source, MADE)}; there are {', '.join(MADE)}, {_LABEL}NAME, and "
                f"{kinds_listed()}"
            )

    def prepare(self) -> None:
        """Opens the other data sets.

        Raises:
            UserError: without what draws the plot.
        """
        require("matplotlib", what="--outliers")
        from tfdecouple.data import open_source
        from tfdecouple.data.sources import with_source
        from tfdecouple.runs.run_folder import load_config

        options, config = self.options, load_config(self.options.run)
        for name in options.outliers:
            if name in MADE or name.startswith(_LABEL):
                continue
            data = with_source(config.data, name)
            if options.data_dir:
                data = dataclasses.replace(data, data_dir=options.data_dir)
            source = open_source(data, config.model.image_shape, download=options.download)
            source.split(options.split)
            self._opened[name] = source

    def measure(self, evaluation: Any) -> Result:
        """Scores all images once, and judges each score by each kind of outliers.

        Raises:
            DataError: for a label that all images have, or none.
        """
        from tfdecouple.runtime.progress import Counter

        options = self.options
        names = list(dict.fromkeys(options.outliers))
        label_of = {name: _label(evaluation.source, name) for name in names if name.startswith(_LABEL)}
        scorer = Scorer(evaluation.opened.model, options.samples, options.seed)
        with Counter(f"scores of {options.split}", evaluation.count) as counter:
            known = scorer.all_of(_plain(evaluation.batches()), options.split, counter)
        compared, sizes, scored = {}, {}, {}
        for name in names:
            rest = known
            if name in label_of:
                chosen = known["label"] == label_of[name]
                if chosen.all() or not chosen.any():
                    raise DataError(
                        f"--outliers {name}: {chosen.sum()} of {len(chosen)} images have the label; it needs some with "
                        "it and some without"
                    )
                rest = {score: values[~chosen] for score, values in known.items()}
                scored[name] = {score: values[chosen] for score, values in known.items()}
            else:
                with Counter(f"scores of {name}", evaluation.count) as counter:
                    scored[name] = scorer.all_of(self._batches(evaluation, name), name, counter)
            compared[name] = detections(rest, scored[name], options.seed)
            sizes[name] = len(scored[name]["index"]), len(rest["index"])
        values = {
            "images": evaluation.count,
            "samples": options.samples,
            "codec": CODEC,
            "scores": {name: meaning for name, meaning in SCORES.items() if name in known},
            "outliers": {
                name: {"what": self._title(name), "images": outliers, "known_images": rest, "detection": compared[name]}
                for name, (outliers, rest) in sizes.items()
            },
            # Those of a label are among the known ones, whose labels stand beside them.
            "per_image": {
                name: _rows(each) for name, each in {options.split: known, **scored}.items() if name not in label_of
            },
        }
        return Result(values, _lines(compared, sizes, options), _picture(known, scored, evaluation, options))

    def _title(self, name: str) -> str:
        if name in self._opened:
            return f"{self._opened[name].title}, {self.options.split}"
        return MADE.get(name, "images of that label, against the rest")

    def _batches(self, evaluation: Any, name: str) -> Iterator[Batch]:
        """Yields outliers in batches of the size of the run's images, as many as these where there are."""
        from tfdecouple.data import evaluation_batches

        options, size = self.options, min(evaluation.batch_size, evaluation.count)
        if name in self._opened:
            source = self._opened[name]
            count = min(evaluation.count, source.sizes[options.split])
            indices = drawn_indices(source, options.split, count, options.seed)
            with source.guard():
                yield from _plain(evaluation_batches(source, options.split, batch_size=size, indices=indices))
        elif name == "permuted":
            for batch in _plain(evaluation.batches()):
                yield {**batch, "image": permuted(batch["image"], batch["index"], options.seed)}
        else:
            make = noise_images if name == "noise" else constant_images
            shape = evaluation.opened.config.model.image_shape
            # Batch by batch: all at once would fill the memory.
            for start in range(0, evaluation.count, size):
                index = np.arange(start, start + size)
                image = make(shape, index, options.seed)
                yield {"image": image, "index": index, "weight": index < evaluation.count}


def _plain(batches: Any) -> Iterator[Batch]:
    yield from batches.as_numpy_iterator()


def _label(source: Source, name: str) -> int:
    """Returns the number of a label.

    Raises:
        UserError: where the source has no such label.
    """
    wanted = name.removeprefix(_LABEL)
    if wanted not in source.label_names:
        listed = ", ".join(source.label_names[:20]) or "none"
        raise UserError(
            f"--outliers has {name!r}, but {source.title} has no such label{nearest(wanted, source.label_names)}; it "
            f"has {listed}"
        )
    return source.label_names.index(wanted)


def _rows(scored: Scored) -> dict[str, list[Any]]:
    """Returns the scores of each image as plain numbers, of as many digits as float32 has."""
    return {
        name: [float(f"{value:.7g}") for value in values] if values.dtype.kind == "f" else values.tolist()
        for name, values in scored.items()
    }


def _lines(compared: dict[str, Any], sizes: dict[str, tuple[int, int]], options: Any) -> list[str]:
    lines = [f"outliers: how well each score tells them, {draws(options.samples)} an image, intervals of 95 %"]
    for name, found in compared.items():
        outliers, known = sizes[name]
        lines.append(f"    {name} ({outliers:,} images), against {known:,} of {options.split}")
        lines.append(f"        {'score':34}{'AUROC':>24}{'false positives at 95 %':>30}")
        for score, each in found.items():
            low, high = each["auroc_interval"]
            area = f"{each['auroc']:.3f} [{low:.3f}, {high:.3f}]"
            low, high = (100 * end for end in each["false_positives_interval"])
            share = f"{100 * each['false_positives']:.1f} % [{low:.1f}, {high:.1f}]"
            lines.append(f"        {SCORES[score]:34}{area:>24}{share:>30}")
    if any(each["auroc"] < 0.5 for found in compared.values() for each in found.values()):
        lines.append("    an AUROC below 0.5: by that score outliers are the more usual images")
    return lines


def _picture(known: Scored, scored: dict[str, Scored], evaluation: Any, options: Any) -> Any:
    from PIL import Image

    from tfdecouple.visualization.plots import COLOURS, histogram_figure, png

    # Images of a label are some of the filled histogram's; more lines than colours cannot be told apart.
    others = {who: each for who, each in scored.items() if not who.startswith(_LABEL)} or scored
    shown = {options.split: known, **dict(list(others.items())[: len(COLOURS)])}
    panels: dict[str, dict[str, np.ndarray]] = {
        meaning: {who: each[score] for who, each in shown.items()}
        for score, meaning in SCORES.items()
        if score in known
    }
    what = f"Scores of {evaluation.source.title}, {options.split}, and of other images"
    title = f"{what}; the last bins hold what is beyond\n{evaluation.opened.note()}"
    return Image.open(io.BytesIO(png(histogram_figure(panels, title))))


class Scorer:
    """Scores images, on one device. What an image gets depends on the seed and its index, not on its batch.

    Args:
        model: with weights.
        samples: draws of (z, u) per image, over which scores are averaged.
        seed: of these draws.
    """

    def __init__(self, model: Any, samples: int = 1, seed: int = 0):
        import tensorflow as tf

        model.require_initialized()
        self._model, self._samples, self._seed = model, samples, seed
        self._draw = tf.function(self._of_a_draw, autograph=False)

    def __call__(self, images: np.ndarray, index: np.ndarray) -> Scored:
        """Scores images.

        Args:
            images: uint8 `[n, height, width, channels]`; the same number each time, or each number is traced anew.
            index: of each in its split.

        Returns:
            By name of `SCORES` but the codec's, float64 `[n]`; without z there is no `prior_nats`.
        """
        import tensorflow as tf

        from tfdecouple.runtime.precision import full_float32

        sums: dict[str, np.ndarray] = {}
        for number in range(self._samples):
            given = tf.constant(images), tf.constant(np.asarray(index, np.int64)), tf.constant(number)
            with full_float32():
                scores = self._draw(*given)
            for name, values in scores.items():
                sums[name] = sums.get(name, 0.0) + values.numpy().astype(np.float64)
        return {name: total / self._samples for name, total in sums.items()}

    def with_codec(self, images: np.ndarray, index: np.ndarray, count: int) -> Scored:
        """As a call, of the first `count` images alone, with bits/dim less those of the lossless codec beside them."""
        from tfdecouple.data.codecs import codec_bits_per_dim

        found = {name: values[:count] for name, values in self(images, index).items()}
        seen = np.asarray(self._model.quantize_images(images[:count]))
        return {**found, MINUS_CODEC: found["bits_per_dim"] - codec_bits_per_dim(seen, CODEC)}

    def _of_a_draw(self, images: tf.Tensor, index: tf.Tensor, number: tf.Tensor) -> dict[str, tf.Tensor]:
        import tensorflow as tf

        from tfdecouple.model.noise import normal_u_noise, u_noise, z_noise
        from tfdecouple.model.outlier_scores import outlier_scores

        config, batch = self._model.config, images.shape[0]
        which = self._seed, tf.fill([batch], number), index
        noise = z_noise(config.latent_dim, *which), u_noise(config.image_shape, *which, normal_u_noise(config))
        # The loop over images hides how many there are.
        z, u = (tf.ensure_shape(one, [batch, *one.shape[1:]]) for one in noise)
        return outlier_scores(self._model, images, z, u).named()

    def all_of(
        self, batches: Iterable[Batch], what: str, on_batch: Callable[[int], None] = lambda done: None
    ) -> Scored:
        """Scores the images of batches, with the lossless codec's bits beside the model's.

        Args:
            batches: of one size.
            what: they are, for messages.
            on_batch: called with the number of images done.

        Returns:
            By name of `SCORES`, and "index" and "label" (-1 for none), `[n]`, in their order.

        Raises:
            RunError: where a score is not finite.
        """
        rows: list[Scored] = []
        for batch in batches:
            image, index, weight = (np.asarray(batch[name]) for name in ("image", "index", "weight"))
            # What fills up the last batch is at its end.
            count = int((weight > 0).sum())
            label = np.asarray(batch.get("label", np.full(len(index), -1)))
            rows.append({**self.with_codec(image, index, count), "index": index[:count], "label": label[:count]})
            on_batch(sum(len(row["index"]) for row in rows))
        scored = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        for name in scored.keys() & SCORES.keys():
            bad = np.flatnonzero(~np.isfinite(scored[name]))
            if len(bad):
                from tfdecouple.model.round_trip import listed

                raise RunError(
                    f"{name} of {what} is not finite for {len(bad)} of {len(scored['index'])} images "
                    f"(number {listed(scored['index'][bad].tolist())}); the weights are damaged or training diverged"
                )
        return scored


# Of the known images, the share that must pass; resamples of the bootstrap.
PASSING, RESAMPLES = 0.95, 1000


@dataclasses.dataclass(frozen=True)
class Detection:
    """How well a score tells outliers.

    Attributes:
        auroc: see `auroc`.
        auroc_interval: of 95 %, from the bootstrap over both kinds of images.
        false_positives: share of outliers that pass as known, at the threshold which 95 % of the known images pass.
        false_positives_interval: of 95 %, likewise.
    """

    auroc: float
    auroc_interval: tuple[float, float]
    false_positives: float
    false_positives_interval: tuple[float, float]


def auroc(known: np.ndarray, outliers: np.ndarray) -> Any:
    """Returns the probability that an outlier has a higher score than a known image, ties counted by half.

    It is the area under the ROC curve: 0.5 is chance, below it the score ranks outliers as the more usual images.

    >>> float(auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0])))
    0.875

    Args:
        known: scores of known images, `[..., n]`.
        outliers: of outliers, `[..., m]`.
    """
    import scipy.stats

    n, m = known.shape[-1], outliers.shape[-1]
    ranks = scipy.stats.rankdata(np.concatenate([known, outliers], -1), axis=-1)
    return (ranks[..., n:].sum(-1) - m * (m + 1) / 2) / (n * m)


def false_positives(known: np.ndarray, outliers: np.ndarray) -> Any:
    """Returns the share of outliers that pass at the threshold which `PASSING` of the known images pass."""
    # A little less: 95 of 100 images are enough, whatever 0.95 * 100 rounds to.
    threshold = np.quantile(known, PASSING - 1e-9, axis=-1, method="inverted_cdf", keepdims=True)
    return (outliers <= threshold).mean(-1)


def detection(known: np.ndarray, outliers: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Detection:
    """Measures how well scores tell outliers from known images.

    Args:
        known: scores of known images, `[n]`.
        outliers: of outliers, `[m]`; higher scores are to mean outliers.
        seed: of the bootstrap.
        resamples: of the bootstrap, each of n and m images drawn with replacement.
    """
    import scipy.stats

    figures: list[Any] = []
    for statistic in (auroc, false_positives):
        interval = scipy.stats.bootstrap(
            (known, outliers),
            lambda known, outliers, axis, statistic=statistic: statistic(known, outliers),
            n_resamples=resamples,
            batch=100,
            method="percentile",
            rng=seed,
        ).confidence_interval
        figures += [float(statistic(known, outliers)), (float(interval.low), float(interval.high))]
    return Detection(*figures)


def detections(known: Scored, outliers: Scored, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Returns by the name of each score how well it tells outliers, as plain JSON (`Detection`)."""
    return {
        name: dataclasses.asdict(detection(unusual(name, known[name]), unusual(name, outliers[name]), seed))
        for name in SCORES
        if name in known
    }


def unusual(name: str, values: np.ndarray) -> np.ndarray:
    """Returns values of a score such that more means more unusual."""
    return np.abs(values) if name == "shell" else values


# --- images that nobody took; each is drawn by the seed and its index, whatever batch it is in ---


def noise_images(shape: tuple[int, int, int], index: np.ndarray, seed: int) -> np.ndarray:
    """Returns images of uniform noise, one for each index, uint8 `[n, height, width, channels]`."""
    return np.stack([_drawn(shape, seed, number) for number in index])


def constant_images(shape: tuple[int, int, int], index: np.ndarray, seed: int) -> np.ndarray:
    """Returns images of one colour each, drawn uniformly, one for each index."""
    colours = np.stack([_drawn((1, 1, shape[-1]), seed, number) for number in index])
    return np.broadcast_to(colours, (len(index), *shape)).copy()


def _drawn(shape: tuple[int, int, int], seed: int, number: int) -> np.ndarray:
    return np.random.default_rng([seed, int(number)]).integers(0, 256, shape, np.uint8)


def permuted(images: np.ndarray, index: np.ndarray, seed: int) -> np.ndarray:
    """Returns images with their pixels in another order, of each image its own: the colours stay, nothing else does.

    Args:
        images: uint8 `[n, height, width, channels]`.
        index: of each, by which it is permuted.
        seed: likewise.
    """
    pixels = images.reshape(len(images), -1, images.shape[-1])
    orders = [np.random.default_rng([seed, int(number)]).permutation(pixels.shape[1]) for number in index]
    return np.stack([one[order] for one, order in zip(pixels, orders, strict=True)]).reshape(images.shape)
