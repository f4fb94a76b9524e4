"""Functions that find directions in z along which one property of an image changes, and evaluate the directions.

In all functions `z` are the codes of the training images, float32 `[n, d_z]`, and `held_z` those of held-out images.
"""

import math
from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from tfdecouple.data.drawn_images import decode_images, draw_image_indices, encode_drawn_images
from tfdecouple.data.labels import Attributes, check_labels
from tfdecouple.data.sources import Source
from tfdecouple.errors import DataError
from tfdecouple.metrics.classification import STRENGTHS, fit_classifier
from tfdecouple.metrics.image_statistics import CHANGES
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.latent_directions import CLASSIFIER, DECODED, MEANS, Direction
from tfdecouple.runs.opened_run import Run
from tfdecouple.storage.files import Facts
from tfdecouple.system.progress import Counter

# At least this many training images must have a label, and at least this many must not. A fifth is held out to choose
# C, the inverse strength of the classifier's regularisation.
LEAST = 5
# At this penalty, one standard deviation of z costs as much as a tenth of a standard deviation of a statistic.
_LENGTH_PENALTY = 0.01


def encode_examples(
    run: Run, source: Source, split: str, count: int, seed: int, names: Sequence[str], attributes: Attributes | None
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes at most `count` images drawn from a split: returns z, `[n, d_z]`, and the images' values, `[n, names]`.

    `names` are labels, or columns of the CSV file `attributes`. The value for a label is 1 if the image has it, else 0;
    NaN if unknown. DataError is raised if no image is in the file.
    """
    indices = np.sort(draw_image_indices(source, split, count, seed))
    z, label = run.encode_split(source, split, indices)
    label = check_labels(source, label)
    if attributes is None:
        numbers = [source.label_names.index(name) for name in names]
        return z, np.where(label[:, None] >= 0, label[:, None] == numbers, np.nan)
    if source.skipped:
        raise DataError(f"{source.skipped} images of {source.title} cannot be read; repair or remove them")
    keys = [source.find_image_key(split, index) for index in indices.tolist()]
    values = attributes.look_up_attributes(keys)
    if np.isnan(values).all():
        lacks = f"no row for any of {len(keys)} images of {split}, such as {keys[0]}"
        raise DataError(f"{attributes.path} has {lacks}; its first column must name the files")
    return z, values


def find_directions(
    names: Sequence[str], training: tuple[np.ndarray, np.ndarray], held_out: tuple[np.ndarray, np.ndarray], seed: int
) -> tuple[list[Direction], list[str]]:
    """Finds directions in z for `names`, labels or numbers; returns them, and a text for each name with too few images.

    `training` and `held_out` are results of `encode_examples`. DataError is raised if no direction is found.
    """
    directions, missing = list[Direction](), list[str]()
    with Counter("finding directions", len(names), unit="directions") as counter:
        for number, name in enumerate(names):
            counted, held = ~np.isnan(training[1][:, number]), ~np.isnan(held_out[1][:, number])
            z, values = training[0][counted], training[1][counted, number]
            held_z, held_values = held_out[0][held], held_out[1][held, number]
            kinds, counts = np.unique(values, return_counts=True)
            if len(kinds) < 2 or len(values) < 2 * LEAST or (len(kinds) == 2 and counts.min() < LEAST):
                needs = f"it needs {LEAST} images of two kinds, and there are {counts.tolist()}"
                missing.append(f"no direction {name}: {needs}")
            elif len(kinds) == 2:
                directions += find_label_directions(name, z, values == kinds[1], held_z, held_values == kinds[1], seed)
            else:
                directions += find_number_directions(name, z, values, held_z, held_values)
            counter(number + 1)
    if not directions:
        raise DataError(f"{missing[0]}; use more images, or others with --data")
    return directions, missing


def find_label_directions(
    name: str, z: np.ndarray, has: np.ndarray, held_z: np.ndarray, held_has: np.ndarray, seed: int
) -> list[Direction]:
    """Returns two directions in z from images without a label to images with it: by means and by a linear classifier.

    The first is the difference of means, as in Glow (Kingma and Dhariwal, 2018, section 6). The second is the normal of
    the classifier, which ignores properties that are only correlated with the label. Each is as long as the slope of
    the mean of z per standard deviation of the label, which counts as 0 or 1. `has` and `held_has`, bool `[n]`, say
    which of the training and held-out images have the label; at least `LEAST` training images have it, and at least
    `LEAST` lack it. The classifier is fitted to equally many images of both kinds, drawn with `seed`.

    The metrics of a direction (`Direction.figures`) are `accuracy`, the mean of the accuracies on held-out images with
    and without the label (0.5 is chance); its binomial `standard_error`; `auroc`; counts of images; and C. The first
    three are None if the held-out images all have the label, or all lack it.
    """
    means = z[has].mean(0, dtype=np.float64), z[~has].mean(0, dtype=np.float64)
    difference = means[0] - means[1]
    counts = {"kind": "label", "images_with": int(has.sum()), "images_without": int((~has).sum())}
    counts |= {"held_out_with": int(held_has.sum()), "held_out_without": int((~held_has).sum())}
    slope = has.std() * difference
    by_means = _evaluate_scores(held_z @ difference - difference @ (means[0] + means[1]) / 2, held_has)
    rng = np.random.default_rng(seed)
    kinds = [rng.permutation(np.flatnonzero(kind)) for kind in (has, ~has)]
    # Images with and without the label alternate, so that the last fifth, which is held out, has both classes.
    chosen = np.stack([kind[: min(map(len, kinds))] for kind in kinds], 1).ravel()
    # z is not standardised, so that the regularisation keeps the weights of dimensions small that hardly vary.
    centre = z[chosen].mean(0, dtype=np.float64)
    classifier, choice = fit_classifier("logistic regression", (z[chosen] - centre).astype(np.float32), has[chosen])
    weights = classifier.coef_[0].astype(np.float64)
    scores = (held_z - centre) @ weights + classifier.intercept_[0]
    by_classifier = _evaluate_scores(scores, held_has) | {"C": choice["C"], "converged": choice["converged"]}
    return [
        Direction(name, MEANS, slope.astype(np.float32), counts | by_means),
        Direction(name, CLASSIFIER, _scale_normal(weights, slope), counts | by_classifier),
    ]


def find_number_directions(
    name: str, z: np.ndarray, values: np.ndarray, held_z: np.ndarray, held_values: np.ndarray
) -> list[Direction]:
    """Returns two directions in z, by two methods, along which a numeric attribute of images, such as an age, grows.

    The first is the slope of the mean of z per standard deviation of the attribute. The second is the normal of a ridge
    regression, whose penalty is chosen by leave-one-out cross-validation. `values` and `held_values`, `[n]`, are the
    attribute of the training images, not all the same, and of the held-out images. The metrics of a direction are the
    `r2` of a linear prediction along it on the held-out images (None if these all have the same value), counts of
    images, and the penalty.
    """
    mean, deviation = values.mean(), values.std()
    standard, held_standard = (values - mean) / deviation, (held_values - mean) / deviation
    slope = (z - z.mean(0, dtype=np.float64)).T @ standard / len(z)
    counts = {"kind": "number", "images": len(values), "held_out": len(held_values), "deviation": float(deviation)}
    line = LinearRegression().fit((z @ slope)[:, None], standard)
    with threadpool_limits(1):
        ridge = RidgeCV(alphas=[1 / strength for strength in STRENGTHS]).fit(z.astype(np.float64), standard)
    r2 = dict.fromkeys((MEANS, CLASSIFIER))
    if len(held_values) > 1 and np.ptp(held_values) > 0:
        r2[MEANS] = float(line.score((held_z @ slope)[:, None], held_standard))
        r2[CLASSIFIER] = float(ridge.score(held_z, held_standard))
    normal = _scale_normal(np.asarray(ridge.coef_, np.float64), slope)
    return [
        Direction(name, MEANS, slope.astype(np.float32), counts | {"r2": r2[MEANS]}),
        Direction(name, CLASSIFIER, normal, counts | {"r2": r2[CLASSIFIER], "alpha": float(ridge.alpha_)}),
    ]


def find_statistic_directions(
    model: DecoupledModel, images: np.ndarray, held_out: np.ndarray, seed: int = 0
) -> list[Direction]:
    """Returns for each of `CHANGES` the direction in z that changes only its statistic of decoded images.

    Each image is decoded from its v and from its z plus, and minus, half a random step, drawn from the covariance of z.
    Least squares give the change of each statistic, in its standard deviations over `images`, per standard deviation of
    z along each principal axis. The direction is the shortest step, in standard deviations of z, that changes its
    statistic by 1 and the others by 0. `_LENGTH_PENALTY` shortens a direction along which images hardly change.

    `images` and `held_out` are uint8 `[n, height, width, 3]`. The metric of a direction is `changes`, {name in
    `CHANGES`: mean change of its statistic, in standard deviations, when the direction is added to z of `held_out`}.
    DataError is raised if all images have the same value of a statistic.
    """

    def compute(pixels: np.ndarray) -> np.ndarray:
        return np.array([[function(image[None] / 255.0).item() for function in CHANGES.values()] for image in pixels])

    deviation = compute(images).std(0)
    if deviation.min() < 1e-6:
        raise DataError(f"no image is {list(CHANGES)[deviation.argmin()]} than another; take others with --data")
    z, v = encode_drawn_images(model, images)
    held_z, held_v = encode_drawn_images(model, held_out)
    assert z is not None and held_z is not None, "the model has no z"
    _, scales, axes = np.linalg.svd(z - z.mean(0), full_matrices=False)
    axes *= scales[:, None] / math.sqrt(len(z))
    steps = np.random.default_rng(seed).standard_normal((len(z), len(axes)))
    half = (steps @ axes / 2).astype(np.float32)
    up, down = (compute(decode_images(model, moved, v)) for moved in (z + half, z - half))
    slopes = np.linalg.lstsq(steps, (up - down) / deviation, rcond=None)[0]
    vectors = np.linalg.solve(slopes.T @ slopes + _LENGTH_PENALTY * np.eye(len(CHANGES)), slopes.T) @ axes
    counts = {"kind": "statistic", "images": len(images), "held_out": len(held_out)}
    directions, before = [], compute(held_out)
    for number, (name, vector) in enumerate(zip(CHANGES, vectors.astype(np.float32), strict=True)):
        after = compute(decode_images(model, held_z + vector, held_v))
        changes = dict(zip(CHANGES, ((after - before) / deviation).mean(0).tolist(), strict=True))
        figures = {**counts, "deviation": float(deviation[number]), "changes": changes}
        directions.append(Direction(name, DECODED, vector, figures))
    return directions


def _scale_normal(normal: np.ndarray, difference: np.ndarray) -> np.ndarray:
    square = normal @ normal
    return ((abs(normal @ difference) / square if square > 0 else 0.0) * normal).astype(np.float32)


def _evaluate_scores(scores: np.ndarray, has: np.ndarray) -> Facts:
    """Returns accuracy, its standard error and AUROC of a classifier that predicts the label if a score is above 0."""
    if has.all() or not has.any():
        return {"accuracy": None, "standard_error": None, "auroc": None}
    shares, sizes = (np.mean(scores[has] > 0), np.mean(scores[~has] <= 0)), (has.sum(), (~has).sum())
    variance = sum(share * (1 - share) / size for share, size in zip(shares, sizes, strict=True)) / 4
    accuracy, auroc = float(np.mean(shares)), float(roc_auc_score(has, scores))
    return {"accuracy": accuracy, "standard_error": math.sqrt(variance), "auroc": auroc}
