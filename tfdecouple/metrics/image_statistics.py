"""A metric of how far z is global and v local (paper section 3.2): which statistics of images each of them encodes."""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tfdecouple.config import Config
from tfdecouple.config.shapes import is_square_of_rgb
from tfdecouple.data.drawn_images import decode_images, draw_image_indices, encode_drawn_images, read_drawn_images
from tfdecouple.data.image_formats import describe_images
from tfdecouple.errors import DataError, UserError
from tfdecouple.metrics.classification import reduce_features, standardize_features
from tfdecouple.metrics.latent_use import draw_derangement
from tfdecouple.metrics.metric import Estimate, Evaluation, Metric, Result, format_table
from tfdecouple.storage.files import Facts

if TYPE_CHECKING:
    from tfdecouple.model import DecoupledModel

# Smallest number of training images for the regressions, and smallest number of evaluated images.
LEAST = 4
# The regressions use at most `_FITTED` training images, and at most `_VALUES` colour values in the images of a split.
_FITTED, _VALUES = 2_000, 2**25


class ImageStatistics(Metric):
    """The metric of how well z and v predict image statistics, and which code these follow when z is switched."""

    name = "image_statistics"
    help = (
        "also how well z and v predict colour, brightness, contrast, spectrum, orientation and light, and which of "
        "these follow z in a switch"
    )
    needs_z = needs_posterior = True

    def prepare_inputs(self, config: Config) -> None:
        if (split := self.options.split) in ("train", "all"):
            raise UserError(f"--split is {split!r}, which --image-statistics is fitted on; take validation or test")
        if not is_square_of_rgb(config.model.image_shape):
            images = describe_images(config.model.image_shape)
            raise UserError(f"--image-statistics needs square RGB images, and this model has {images}; leave it out")

    def compute(self, evaluation: Evaluation) -> Result:
        options, source, opened = self.options, evaluation.source, evaluation.opened
        most = max(_VALUES // math.prod(opened.config.model.image_shape), LEAST)
        images = []
        for split, count in (("train", _FITTED), (options.split, evaluation.count)):
            indices = np.sort(draw_image_indices(source, split, min(count, most), options.seed))
            images.append(read_drawn_images(opened.model, source, split, indices, evaluation.batch_size)[0])
        report = compute_image_statistics(opened.model, *images, batch_size=evaluation.batch_size, seed=options.seed)
        return Result(report, _format_image_statistics(report))


def compute_brightness(images: np.ndarray) -> np.ndarray:
    """Returns the mean luminance of each image, `[n, 1]`; `images` are float64 `[n, S, S, 3]`, from 0 to 1."""
    return _compute_luminance(images).mean((1, 2))[:, None]


def compute_colour(images: np.ndarray) -> np.ndarray:
    """Returns each image's mean red minus green and mean yellow minus blue, `[n, 2]`; `images` are `[n, S, S, 3]`."""
    red, green, blue = images.mean((1, 2)).T
    return np.stack([red - green, (red + green) / 2 - blue], 1)


def compute_saturation(images: np.ndarray) -> np.ndarray:
    """Returns the mean distance of each image's colours from the grey of the same luminance, `[n, 1]`."""
    return np.linalg.norm(images - _compute_luminance(images)[..., None], axis=-1).mean((1, 2))[:, None]


def compute_contrast(images: np.ndarray) -> np.ndarray:
    """Returns the standard deviation of each image's luminance over pixels, `[n, 1]`; `images` are `[n, S, S, 3]`."""
    return _compute_luminance(images).std((1, 2))[:, None]


def compute_orientation(images: np.ndarray) -> np.ndarray:
    """Returns each image's dominant orientation: cosine and sine of twice the angle of its gradients, `[n, 2]`.

    The vector's length is 1 if all edges are parallel, and 0 if no orientation prevails.
    """
    down, right = np.gradient(_compute_luminance(images), axis=(1, 2))
    energy = (right**2 + down**2).sum((1, 2))
    along, across = (right**2 - down**2).sum((1, 2)), 2 * (right * down).sum((1, 2))
    return np.stack([along, across], 1) / np.maximum(energy, 1e-12)[:, None]


def compute_spectral_slope(images: np.ndarray) -> np.ndarray:
    """Returns the slope of the log power of each image's luminance over the log frequency, `[n, 1]`.

    The slope is about -2 in photographs, and lower in smoother images. The power is the mean over all directions.
    """
    luminance = _compute_luminance(images)
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


def find_brightest_quadrant(images: np.ndarray) -> np.ndarray:
    """Returns where each image's brightest quadrant is, `[n, 2]`: -1 (left) or 1 (right), -1 (top) or 1 (bottom)."""
    luminance = _compute_luminance(images)
    half = luminance.shape[1] // 2
    halves = slice(0, half), slice(-half, None)
    best = np.stack([luminance[:, row, column].mean((1, 2)) for row in halves for column in halves], 1).argmax(1)
    return np.stack([best % 2, best // 2], 1) * 2.0 - 1


# Functions that compute a statistic of images with values in [0, 1], by name, in the order of the printed table.
STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean colour": compute_colour,
    "brightness": compute_brightness,
    "contrast": compute_contrast,
    "spectral slope": compute_spectral_slope,
    "dominant orientation": compute_orientation,
    "brightest quadrant": find_brightest_quadrant,
}
# Words for a higher value of a statistic, and the functions that compute it, `[n, 1]`, of images in [0, 1].
CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "brighter": compute_brightness,
    "warmer": lambda images: compute_colour(images)[:, 1:],
    "more contrast": compute_contrast,
    "more saturated": compute_saturation,
}


def compute_image_statistics(
    model: "DecoupledModel", train: np.ndarray, images: np.ndarray, *, batch_size: int, seed: int = 0
) -> Facts:
    """Returns a dict of how well z and v predict statistics of images, and which code each follows in a switch.

    Prediction (`r2`): a ridge regression predicts the statistic from z (the posterior mean), from v, or from the
    pixels. It is fitted to training images; v and pixels are reduced by PCA to at most d_z dimensions. R2 is computed
    on `images`, and is 0 if the prediction is the mean over the training images.

    Switch: each image n is decoded with the z of another image p. The statistic of the decoded image is regressed by
    least squares on the statistics of p and of n, in units of standard deviations. The two coefficients say how far the
    statistic follows `z` and `v`. `nearer_to_z` is the share of decoded images, without ties, whose statistic is nearer
    to that of p than to that of n; 0.5 is chance.

    `train` and `images` are uint8 `[n, S, S, 3]`. DataError is raised if there are fewer than `LEAST`.
    """
    for what, count in (("training images", len(train)), ("images", len(images))):
        if count < LEAST:
            raise DataError(f"{count} {what} are too few for a regression of their statistics; give {LEAST} or more")
    (train_z, train_v), (z, v) = (encode_drawn_images(model, group, batch_size) for group in (train, images))
    assert train_z is not None and z is not None, "the model has no z"
    partner = draw_derangement(len(images), seed)
    switched = decode_images(model, z[partner], v, batch_size)
    of_train, of_images, of_switched = (
        {name: function(group / 255.0) for name, function in STATISTICS.items()} for group in (train, images, switched)
    )
    features = {"z": standardize_features(train_z.copy(), z.copy())}
    for name, both in {"v, PCA": (train_v, v), "pixels, PCA": (train, images)}.items():
        features[name] = reduce_features(*standardize_features(*both), z.shape[1], seed)
    statistics = {
        name: {
            "r2": {kind: _compute_r2(x, of_train[name], values, seed) for kind, x in features.items()},
            "switch": _regress_switch(of_switched[name], values[partner], values, seed),
        }
        for name, values in of_images.items()
    }
    return {"train_images": len(train), "images": len(images), "dimensions": z.shape[1], "statistics": statistics}


def _format_image_statistics(report: Facts) -> list[str]:
    lines = [
        f"statistics of images: R2 of a linear regression from {report['dimensions']} numbers at most, fitted on "
        f"{report['train_images']:,} training images, on {report['images']:,} images; and after a switch of z"
    ]
    rows = [["", "from z", "from v, PCA", "pixels, PCA", "follows z", "follows v", "nearer to z"]]
    for name, result in report["statistics"].items():
        switch = result["switch"]
        cells = [Estimate(**figure).to_text(2) for figure in (*result["r2"].values(), switch["z"], switch["v"])]
        rows.append([name, *cells, Estimate(**switch["nearer_to_z"]).to_percent(0)])
    return lines + format_table(rows)


def _compute_luminance(images: np.ndarray) -> np.ndarray:
    return images @ np.array([0.299, 0.587, 0.114])


def _bootstrap_errors(statistic: Callable[..., np.ndarray], *values: np.ndarray, seed: int) -> list[dict[str, float]]:
    import scipy.stats

    errors = scipy.stats.bootstrap(
        values, statistic, n_resamples=200, paired=True, vectorized=True, method="percentile", rng=seed
    ).standard_error
    pairs = zip(np.ravel(statistic(*values)), np.ravel(errors), strict=True)
    return [{"mean": float(mean), "standard_error": float(error)} for mean, error in pairs]


def _compute_r2(features: tuple[np.ndarray, ...], train_y: np.ndarray, y: np.ndarray, seed: int) -> dict[str, float]:
    """Returns R2, {"mean", "standard_error"}, of a ridge regression of a statistic on two arrays of features `[n, d]`.

    The regression is fitted to the first array and to `train_y`, `[n, k]`; R2 is that of the second array and `y`.
    """
    from sklearn.linear_model import RidgeCV
    from threadpoolctl import threadpool_limits

    train_x, x = features
    mean, scale = train_y.mean(0), np.maximum(train_y.std(0), 1e-12)
    with threadpool_limits(1):
        # Leave-one-out cross-validation chooses the penalty.
        ridge = RidgeCV(alphas=np.logspace(-1, 5, 13)).fit(train_x.astype(np.float64), (train_y - mean) / scale)
        predicted = ridge.predict(x.astype(np.float64)).reshape(y.shape)
    target = (y - mean) / scale

    def r2(residuals: np.ndarray, totals: np.ndarray, axis: int = -1) -> np.ndarray:
        return 1 - residuals.sum(axis) / np.maximum(totals.sum(axis), 1e-12)

    return _bootstrap_errors(r2, np.square(target - predicted).sum(1), np.square(target).sum(1), seed=seed)[0]


def _regress_switch(switched: np.ndarray, of_z: np.ndarray, of_v: np.ndarray, seed: int) -> dict[str, dict[str, float]]:
    """Returns how far a statistic, `[n, k]`, of switched images follows those of the images that gave z and v."""
    mean, scale = of_v.mean(0), np.maximum(of_v.std(0), 1e-12)
    y, a, b = ((statistic - mean) / scale for statistic in (switched, of_z, of_v))

    def solve_normal_equations(*products: np.ndarray, axis: int = -1) -> np.ndarray:
        """Returns p and q, `[2, ...]`, of the fit y = p a + q b, from images' products: aa, ab, bb, ay and by."""
        aa, ab, bb, ay, by = (product.sum(axis) for product in products)
        determinant = np.maximum(aa * bb - ab**2, 1e-12)
        return np.stack([(bb * ay - ab * by) / determinant, (aa * by - ab * ay) / determinant])

    products = [(left * right).sum(1) for left, right in ((a, a), (a, b), (b, b), (a, y), (b, y))]
    follows_z, follows_v = _bootstrap_errors(solve_normal_equations, *products, seed=seed)
    to_z, to_v = np.square(y - a).sum(1), np.square(y - b).sum(1)
    # A switched image whose statistic is equally near to both images is a tie and does not count.
    nearer = (to_z < to_v)[to_z != to_v]
    share = Estimate.from_values(nearer if len(nearer) else [0.5])
    return {"z": follows_z, "v": follows_v, "nearer_to_z": dataclasses.asdict(share)}
