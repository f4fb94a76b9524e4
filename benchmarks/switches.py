"""Measures how far switches of z carry the colours of one photograph to another that no model was trained on.

    python benchmarks/switches.py PHOTOGRAPHS OUT RUN ... [--docs docs/results/colours.md]

A switch decodes z of one photograph (the reference) with v of another (the content). The program pairs the photographs
in the folder PHOTOGRAPHS, such as FOLDER/test of photographs.py, switches each pair with the weights of every RUN, and
transfers the change of colours to photographs of 320 pixels by the guided filter of the command `switch`, at full
strength. Classical transfers of colour are measured beside. All is measured again after a random change of colours of
each photograph. The program writes the metrics to `OUT/switches.json`.
"""

import argparse
import pathlib
import random
import sys
import warnings
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.common import make_table, update_page
from benchmarks.photographs import LUMINANCE, change_colours
from tfdecouple.errors import UserError
from tfdecouple.storage.files import write_json
from tfdecouple.system.process import run_program, start_tensorflow

# The reference of a photograph is the one this many places later in the shuffled list.
SHIFT = 7
# Before switches, photographs are shrunk until their longest side has this many pixels.
LONGEST = 320
# The metrics of `measure_transfer`, in its order, and the count of photographs that decode to exactly the same pixels.
METRICS = (
    "colour", "luminance", "contrast", "gradients", "least gradients", "distance", "in thirds", "colour noise",
    "most noise", "clipped, %", "most clipped, %", "back",
)  # fmt: skip
# Number of lines through the space of colours, and of quantiles on each, in the sliced Wasserstein distance, which
# compares every STEP-th pixel of an image.
LINES, QUANTILES, STEP = 32, 256, 7

Pair = tuple[np.ndarray, np.ndarray]


def measure_switches(files: list[pathlib.Path], runs: list[str]) -> dict[str, dict[str, float]]:
    """Returns {method, photographs: {metric: value}} for classical methods and each run."""
    from skimage.exposure import match_histograms

    from tfdecouple.runs.opened_run import Run
    from tfdecouple.visualization.full_size import read_photograph

    random.Random(7).shuffle(files)
    plain = [read_photograph(str(file), 3, LONGEST).pixels for file in files]
    rng = np.random.default_rng(5)
    sets = {"as they are": plain, "recoloured": [change_colours(pixels, rng) for pixels in plain]}
    models = {pathlib.PurePath(run).name: Run.open(run).model for run in runs}
    others = {
        "unchanged": lambda a, b: a,
        "Reinhard": match_moments,
        "Monge-Kantorovich": match_covariances,
        "`match_histograms`": lambda a, b: match_histograms(a, b, channel_axis=-1).astype(np.uint8),
    }
    metrics: dict[str, dict[str, float]] = {}
    for kind, photographs in sets.items():
        pairs = list(zip(photographs, photographs[SHIFT:] + photographs[:SHIFT], strict=True))
        for name, function in others.items():
            metrics[f"{name}, {kind}"] = measure_transfer(pairs, [function(a, b) for a, b in pairs])
        for name, model in models.items():
            results, back = switch_pairs(model, pairs)
            metrics[f"{name}, {kind}"] = {**measure_transfer(pairs, results), "back": back}
    return metrics


def switch_pairs(model: Any, pairs: list[Pair]) -> tuple[list[np.ndarray], float]:
    """Returns the first photograph of each pair with z of the second, and how many of the first decode exactly."""
    import tensorflow as tf

    from tfdecouple.model.any_size import shrink_images
    from tfdecouple.visualization.guided_filter import change_at_full_size

    sides = model.config.image_shape[:2]
    contents, references = (
        tf.concat([shrink_images(tf.constant(image[None]), *sides) for image in images], 0)
        for images in zip(*pairs, strict=True)
    )
    z, v = model.encode(contents)
    before = np.asarray(contents)
    after = np.asarray(model.decode(model.match_z(model.encode(references).z, v), v))
    back = (np.asarray(model.decode(z, v)) == before).all((1, 2, 3)).sum()
    results = [change_at_full_size(a, *small) for (a, _), *small in zip(pairs, before, after, strict=True)]
    return results, float(back)


def measure_transfer(pairs: list[Pair], results: list[np.ndarray]) -> dict[str, float]:
    """Returns how far results have the colours of a reference image and the detail of a content image, by metric.

    A pair is (content, reference), both uint8 `[height, width, 3]`, as is a result. The first three metrics are 0 if
    the result equals the content, and 1 if the result equals the reference, in the mean colour (less its lightness),
    the mean luminance, and the standard deviation of the luminance. The next two are the mean and the smallest
    correlation of the result's luminance gradients with the content's. Then come means over the results: the distance
    of the result's colours from the reference's (`measure_distance`), the mean of this distance in the upper, middle
    and lower third, the mean gradient of the chroma divided by the content's (with the largest such quotient), and the
    percentage of values that are 0 or 255 (with the largest).
    """
    from skimage.color import rgb2lab

    shares, correlations, distances, thirds, noise, clipped = np.zeros((3, 2)), [], [], [], [], []
    for pair, result in zip(pairs, results, strict=True):
        images = (*pair, result)
        colours = [image.reshape(-1, 3) / 255 for image in images]
        moments = [(c.mean(0) - c.mean(), c.mean(0) @ LUMINANCE, (c @ LUMINANCE).std()) for c in colours]
        for number, (of_content, of_reference, of_result) in enumerate(zip(*moments, strict=True)):
            change = np.atleast_1d(of_reference - of_content)
            shares[number] += change @ np.atleast_1d(of_result - of_content), change @ change
        slopes = [np.stack(np.gradient(image / 255 @ LUMINANCE)).ravel() for image in (pair[0], result)]
        correlations.append(float(np.corrcoef(slopes)[0, 1]))
        content, reference, changed = (rgb2lab(image) for image in images)
        distances.append(measure_distance(changed, reference))
        parts = zip(np.array_split(changed, 3), np.array_split(reference, 3), strict=True)
        thirds.append(np.mean([measure_distance(*part) for part in parts]))
        chroma = [np.hypot(*np.gradient(image[..., 1:], axis=(0, 1))).mean() for image in (changed, content)]
        noise.append(chroma[0] / chroma[1])
        clipped.append(100 * np.isin(result, (0, 255)).mean())
    gained = (shares[:, 0] / shares[:, 1]).tolist()
    means = [float(np.mean(correlations)), min(correlations), float(np.mean(distances)), float(np.mean(thirds))]
    values = [*gained, *means, *(float(function(list_)) for list_ in (noise, clipped) for function in (np.mean, max))]
    return dict(zip(METRICS[:-1], values, strict=True))


def measure_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the sliced 2-Wasserstein distance (Rabin et al. 2011) of colours `[height, width, 3]` of two images."""
    lines = np.random.default_rng(3).normal(size=(3, LINES))
    lines /= np.linalg.norm(lines, axis=0)
    places = (np.arange(QUANTILES) + 0.5) / QUANTILES
    quantiles = [np.quantile(image.reshape(-1, 3)[::STEP] @ lines, places, axis=0) for image in (a, b)]
    return float(np.sqrt(np.square(quantiles[0] - quantiles[1]).mean()))


def match_moments(content: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns the image `content`, uint8, with CIELAB means and deviations of `reference` (Reinhard et al. 2001)."""
    from skimage.color import lab2rgb, rgb2lab

    a, b = rgb2lab(content), rgb2lab(reference)
    matched = (a - a.mean((0, 1))) / a.std((0, 1)) * b.std((0, 1)) + b.mean((0, 1))
    with warnings.catch_warnings():
        # Colours outside RGB are clipped.
        warnings.simplefilter("ignore")
        return (np.clip(lab2rgb(matched), 0, 1) * 255).astype(np.uint8)


def match_covariances(content: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns the image `content`, uint8, with RGB means and covariances of `reference` (Pitié and Kokaram 2007)."""
    from scipy.linalg import sqrtm

    a, b = (image.reshape(-1, 3).astype(float) for image in (content, reference))
    # The added variance is that of rounding; it keeps the root of a grey image's covariance invertible.
    covariances = [np.cov(colours.T) + np.eye(3) / 12 for colours in (a, b)]
    root = sqrtm(covariances[0]).real
    inverse = np.linalg.inv(root)
    gains = inverse @ sqrtm(root @ covariances[1] @ root).real @ inverse
    matched = (a - a.mean(0)) @ gains + b.mean(0)
    return np.clip(matched + 0.5, 0, 255).astype(np.uint8).reshape(content.shape)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=pathlib.Path, metavar="PHOTOGRAPHS", help="a folder of image files")
    parser.add_argument("out", type=pathlib.Path, metavar="OUT", help="the folder of the metrics")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or names of bundled weights")
    parser.add_argument("--docs", type=pathlib.Path, help="put the table into this file, at <!-- switches -->")
    options = parser.parse_args()
    start_tensorflow()
    options.out.mkdir(parents=True, exist_ok=True)
    files = sorted(path for path in options.photographs.iterdir() if path.is_file())
    if len(files) <= SHIFT:
        raise UserError(f"{options.photographs} has {len(files)} photographs; the pairs need at least {SHIFT + 1}")
    metrics = measure_switches(files, options.runs)
    rows = [[name, *map(values.get, METRICS)] for name, values in metrics.items()]
    table = make_table(["switch, photographs", *METRICS], rows)
    print(table)
    write_json(options.out / "switches.json", metrics)
    if options.docs:
        update_page(options.docs, {"switches": table})
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
