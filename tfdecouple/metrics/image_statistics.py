"""Which statistics of an image z knows and which v, and which of them follow either when z is switched.

The paper says that z is global and v local (section 3.2, Figure 1); these are numbers for it that need no labels.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tfdecouple.config.shapes import describe_images, is_square_of_rgb
from tfdecouple.errors import DataError, UserError
from tfdecouple.metrics.base import Estimate, Metric, Result, say
from tfdecouple.metrics.drawn_images import drawn_indices, encode_images, full_batches, subset_batches
from tfdecouple.metrics.latent_use import derangement, require_latent
from tfdecouple.metrics.linear_classifier import fit_pca, standardize
from tfdecouple.runtime.extras import require
from tfdecouple.runtime.progress import Lines

# Fewer images are too few to regress from as many numbers as z has.
LEAST = 4
# Of the ridge regression; the best is chosen by leaving out each training image in turn.
_PENALTIES = np.logspace(-1, 5, 13)
_RESAMPLES = 200
# Training images that the regressions are fitted on, and colour values of them, at most.
_FITTED, _VALUES = 2_000, 2**25


class ImageStatistics(Metric):
    """What z and v know of statistics of images."""

    name = "image_statistics"
    needs_z = True

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds --image-statistics."""
        group.add_argument(
            "--image-statistics",
            action="store_true",
            help="also which of colour, brightness, contrast, spectrum, orientation and light z and v know, and which "
            "follow z in a switch",
        )

    def check(self) -> None:
        """Refuses to judge the regressions by the images that they are fitted on.

        Raises:
            UserError: for the training images.
        """
        if self.is_wanted() and self.options.split == "train":
            raise UserError("--split is 'train', which --image-statistics is fitted on; take validation or test")

    def prepare(self) -> None:
        """Refuses images whose colours and spectrum are not those of squares of RGB.

        Raises:
            UserError: for other images, or without what draws the plot.
        """
        from tfdecouple.runs.run_folder import load_config

        require("matplotlib", what="--image-statistics")

        shape = load_config(self.options.run).model.image_shape
        if not is_square_of_rgb(shape):
            raise UserError(
                f"--image-statistics takes squares of RGB, and those of this model are {describe_images(shape)}; "
                "leave it out"
            )

    def measure(self, evaluation: Any) -> Result:
        """Regresses on training images, and judges by those of --split."""
        from PIL import Image

        from tfdecouple.visualization.plots import png, statistics_figure

        options, source, opened = self.options, evaluation.source, evaluation.opened
        most = max(_VALUES // math.prod(opened.config.model.image_shape), LEAST)
        read, left_out = [], []
        for split, count in (("train", min(_FITTED, source.sizes["train"])), (options.split, evaluation.count)):
            indices = drawn_indices(source, split, min(count, most), options.seed)
            read.append(read_images(opened.model, source, split, indices, evaluation.batch_size, say))
            if count > most:
                left_out.append(f"{most:,} of {count:,} images of {split}")
        report = measure_image_statistics(
            opened.model, *read, batch_size=evaluation.batch_size, seed=options.seed, say=say
        )
        title = f"Statistics of {source.title}, {options.split}\n{opened.note()}"
        picture = Image.open(io.BytesIO(png(statistics_figure(report["statistics"], title))))
        lines = table(report)
        if left_out:
            lines.append(f"    over {' and '.join(left_out)}: of images of this size no more are taken")
        return Result(report, lines, picture)


def brightness(images: np.ndarray) -> np.ndarray:
    """The mean of the luminance, `[n, 1]`, for images of colour values in [0, 1], float64 `[n, S, S, 3]`."""
    return _luminance(images).mean((1, 2))[:, None]


def colour(images: np.ndarray) -> np.ndarray:
    """The means of red less green and of yellow less blue, `[n, 2]`."""
    red, green, blue = images.mean((1, 2)).T
    return np.stack([red - green, (red + green) / 2 - blue], 1)


def contrast(images: np.ndarray) -> np.ndarray:
    """The standard deviation of the luminance over the image, `[n, 1]`."""
    return _luminance(images).std((1, 2))[:, None]


def orientation(images: np.ndarray) -> np.ndarray:
    """The dominant orientation: cosine and sine of twice the angle of the gradient, `[n, 2]`.

    They are those of the structure tensor, summed over the image, so that their length is the coherence: 1 where all
    edges run the same way, 0 where none prevails.
    """
    down, right = np.gradient(_luminance(images), axis=(1, 2))
    energy = (right**2 + down**2).sum((1, 2))
    along, across = (right**2 - down**2).sum((1, 2)), 2 * (right * down).sum((1, 2))
    return np.stack([along, across], 1) / np.maximum(energy, 1e-12)[:, None]


def spectral_slope(images: np.ndarray) -> np.ndarray:
    """The slope of the power of the luminance over the frequency, both logarithmic, `[n, 1]`; about -2 in photographs.

    The lower it is, the smoother the image. The frequencies are rings of whole cycles an image, up to Nyquist's.
    """
    luminance = _luminance(images)
    side = luminance.shape[1]
    window = np.hanning(side + 2)[1:-1]
    windowed = (luminance - luminance.mean((1, 2), keepdims=True)) * window[:, None] * window
    power = np.abs(np.fft.fft2(windowed)) ** 2
    cycles = np.fft.fftfreq(side, 1 / side)
    rings = np.rint(np.hypot(cycles[:, None], cycles)).astype(int)
    frequencies = np.arange(1, side // 2 + 1)
    mean = np.stack([power[:, rings == ring].mean(1) for ring in frequencies], 1)
    x = np.log(frequencies) - np.log(frequencies).mean()
    return (np.log(mean + 1e-12) @ x / (x @ x))[:, None]


def brightest_quadrant(images: np.ndarray) -> np.ndarray:
    """Where the brightest quarter of the image is: -1 or 1 for left or right, and for top or bottom, `[n, 2]`."""
    luminance = _luminance(images)
    half = luminance.shape[1] // 2
    rows, columns = (slice(0, half), slice(-half, None)), (slice(0, half), slice(-half, None))
    means = np.stack([luminance[:, row, column].mean((1, 2)) for row in rows for column in columns], 1)
    best = means.argmax(1)
    return np.stack([best % 2, best // 2], 1) * 2.0 - 1


# By name, in the order of tables: functions of images in [0, 1].
STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean colour": colour,
    "brightness": brightness,
    "contrast": contrast,
    "spectral slope": spectral_slope,
    "dominant orientation": orientation,
    "brightest quadrant": brightest_quadrant,
}


def measure_image_statistics(
    model: Any,
    train: np.ndarray,
    images: np.ndarray,
    *,
    batch_size: int,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measures what z and v know of an image's statistics, and what follows either when z is switched.

    Regression: ridge regression from z (the posterior mean), from v and from the pixels, the latter two reduced by PCA
    to d_z dimensions, or to as many as there are, fitted on training images. R2 is of `images`, over all numbers of a
    statistic; 0 is what the mean of the training images gets.

    Switch: image n gets the z of another image p, so that it is decode(z of p, v of n). Its statistic is regressed on
    those of p and of n by least squares, each in units of its standard deviation: the two coefficients say how far it
    follows z and how far v. `nearer_to_z` is the share of images whose statistic is nearer to that of p than to that of
    n, without those that are as near to either: 0.5 is chance.

    Args:
        model: the model, with weights and z.
        train: uint8 `[m, S, S, 3]`, at least `LEAST`.
        images: the same, of a split that was not trained on.
        batch_size: images that are encoded at once.
        seed: of the partners and of the bootstrap.
        say: called with lines of progress.

    Returns:
        Plain values for JSON: `train_images`, `images`, `dimensions` (d_z), and `statistics`: for each by name `r2` of
        each kind of features, and `switch` with `z`, `v` and `nearer_to_z`; figures with their standard errors, from
        `_RESAMPLES` bootstrap samples of the images, of `nearer_to_z` binomial.

    Raises:
        UserError: for a model without z, or whose z is a function of the label.
        DataError: for too few images.
    """
    from tfdecouple import randomness

    require_latent(model)
    model.require_initialized()
    for what, count in (("training images", len(train)), ("images", len(images))):
        if count < LEAST:
            raise DataError(f"{count} {what} are too few for a regression of their statistics; at least {LEAST}")
    (z_train, v_train), (z, v) = (encode_images(model, each, batch_size, say) for each in (train, images))
    assert z_train is not None and z is not None
    partner = derangement(len(images), randomness.fold(seed, "switch"))
    switched = _decode(model, z[partner], v, batch_size, say)
    known, own, moved = (
        {name: function(each / 255.0) for name, function in STATISTICS.items()} for each in (train, images, switched)
    )
    features = {"z": standardize(z_train.copy(), z.copy())}
    for name, (of_train, of_images) in {"v, PCA": (v_train, v), "pixels, PCA": (train, images)}.items():
        flat = [each.reshape(len(each), -1).astype(np.float32) for each in (of_train, of_images)]
        of_train, of_images = standardize(*flat)
        pca = fit_pca(of_train, z.shape[1], seed)
        features[name] = standardize(*(pca.transform(each).astype(np.float32) for each in (of_train, of_images)))
    rows = np.random.default_rng(seed).integers(0, len(images), (_RESAMPLES, len(images)))
    found = {}
    for name in STATISTICS:
        r2 = {kind: _r2(x_train, x, known[name], own[name], rows) for kind, (x_train, x) in features.items()}
        found[name] = {
            "r2": {kind: dataclasses.asdict(estimate) for kind, estimate in r2.items()},
            "switch": _followed(moved[name], own[name][partner], own[name], rows),
        }
    return {
        "train_images": len(train),
        "images": len(images),
        "dimensions": z.shape[1],
        "statistics": found,
    }


def read_images(
    model: Any, source: Any, split: str, indices: np.ndarray, batch_size: int, say: Callable[[str], None]
) -> np.ndarray:
    """Returns images of a split as the model sees them, uint8 `[n, S, S, 3]`, in the order of their indices."""
    batches = subset_batches(source, split, indices, batch_size=batch_size, say=say)
    return np.concatenate([np.asarray(model.quantize_images(batch["image"])) for batch in batches])


def table(report: dict[str, Any]) -> list[str]:
    """Returns lines for people of what `measure_image_statistics` returned."""
    dimensions = report["dimensions"]
    lines = [
        f"statistics of images: R2 of a linear regression from {dimensions} numbers at most, fitted on "
        f"{report['train_images']:,} training images, on {report['images']:,} images; and after a switch of z",
        f"    {'':22}{'from z':>15}{'from v, PCA':>15}{'pixels, PCA':>15}"
        f"{'follows z':>15}{'follows v':>15}{'nearer to z':>15}",
    ]
    for name, found in report["statistics"].items():
        cells = [f"{each['mean']:.2f} ± {each['standard_error']:.2f}" for each in found["r2"].values()]
        switch = found["switch"]
        cells += [f"{switch[code]['mean']:.2f} ± {switch[code]['standard_error']:.2f}" for code in ("z", "v")]
        nearer = switch["nearer_to_z"]
        cells.append(f"{100 * nearer['mean']:.0f} ± {100 * nearer['standard_error']:.0f} %")
        lines.append(f"    {name:22}" + "".join(f"{cell:>15}" for cell in cells))
    return lines


def _luminance(images: np.ndarray) -> np.ndarray:
    return images @ np.array([0.299, 0.587, 0.114])


def _decode(model: Any, z: np.ndarray, v: np.ndarray, batch_size: int, say: Callable[[str], None]) -> np.ndarray:
    """Returns images, uint8 `[n, S, S, 3]`."""
    images, progress = [], Lines(say, len(z), "images switched")
    for (some_z, count), (some_v, _) in zip(full_batches(z, batch_size), full_batches(v, batch_size), strict=True):
        images.append(np.asarray(model.decode(some_z, some_v))[:count])
        progress.advance(count)
    return np.concatenate(images)


def _r2(
    of_train: np.ndarray, of_images: np.ndarray, known: np.ndarray, right: np.ndarray, rows: np.ndarray
) -> Estimate:
    """Regresses a statistic `[m, k]` from features `[m, d]`; returns the share of its variance that is told."""
    from sklearn.linear_model import RidgeCV
    from threadpoolctl import threadpool_limits

    mean, scale = known.mean(0), np.maximum(known.std(0), 1e-12)
    with threadpool_limits(1):
        ridge = RidgeCV(alphas=_PENALTIES).fit(of_train.astype(np.float64), (known - mean) / scale)
        told = ridge.predict(of_images.astype(np.float64)).reshape(right.shape)
    target = (right - mean) / scale
    wrong, spread = np.square(target - told).sum(1), np.square(target).sum(1)
    samples = 1 - wrong[rows].sum(1) / np.maximum(spread[rows].sum(1), 1e-12)
    return Estimate(float(1 - wrong.sum() / max(spread.sum(), 1e-12)), float(samples.std(ddof=1)))


def _followed(moved: np.ndarray, of_z: np.ndarray, of_v: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
    """Returns how a statistic of switched images goes by those of the images that gave z and v; all `[n, k]`."""
    mean, scale = of_v.mean(0), np.maximum(of_v.std(0), 1e-12)
    y, a, b = ((each - mean) / scale for each in (moved, of_z, of_v))
    products = np.stack([(a * a).sum(1), (a * b).sum(1), (b * b).sum(1), (a * y).sum(1), (b * y).sum(1)], 1)

    def coefficients(sums: np.ndarray) -> np.ndarray:
        aa, ab, bb, ay, by = np.moveaxis(sums, -1, 0)
        determinant = np.maximum(aa * bb - ab**2, 1e-12)
        return np.stack([(bb * ay - ab * by) / determinant, (aa * by - ab * ay) / determinant], -1)

    whole, samples = coefficients(products.sum(0)), coefficients(products[rows].sum(1)).std(0, ddof=1)
    to_z, to_v = np.square(y - a).sum(1), np.square(y - b).sum(1)
    # Where both images have the same, as of quadrants, there is nothing to tell.
    nearer = (to_z < to_v)[to_z != to_v]
    share = float(nearer.mean()) if len(nearer) else 0.5
    followed = {
        "z": Estimate(float(whole[0]), float(samples[0])),
        "v": Estimate(float(whole[1]), float(samples[1])),
        "nearer_to_z": Estimate(share, math.sqrt(share * (1 - share) / max(len(nearer), 1))),
    }
    return {name: dataclasses.asdict(estimate) for name, estimate in followed.items()}
