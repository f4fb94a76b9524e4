"""Tests whether a switch is better if z encodes a whole photograph than if z, like v, encodes a part of it.

    python benchmarks/whole_and_part.py train PHOTOGRAPHS OUT --updates 1200
    python benchmarks/whole_and_part.py measure OTHER_PHOTOGRAPHS OUT

A switch decodes z of one image (the reference) with v of another (the content). "train" trains two models, "part" and
"whole", from the bundled weights of 64-pixel images and on the same photographs. The flow of both models encodes v from
a part of the photograph, of random size and shrunk to 64 x 64. The encoder of "part" encodes z from the same part, and
the encoder of "whole" from the whole photograph. "measure" compares switches by the two models, by the bundled weights
and by classical transfers of colour.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.common import make_table, write_json
from tfdecouple.runtime.process import run_program, start_tensorflow

NAMES = ("part", "whole")
# Side of the model's images, in pixels; images in a batch; longest side of the shrunk training photographs, in pixels.
SIDE, BATCH, LARGEST = 64, 32, 1280
# Before switches, "measure" shrinks the photographs until their longest side has one of these numbers of pixels.
SIZES = (256, 512)
# Weights of red, green and blue in the luminance of a pixel.
LUMINANCE = np.array([0.299, 0.587, 0.114])


def draw_pairs(files: list[pathlib.Path]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields endless random pairs (large crop of a photograph, part of this crop), both uint8 `[64, 64, 3]`."""
    from PIL import Image

    photographs = []
    for file in files:
        image = Image.open(file).convert("RGB")
        image.thumbnail((LARGEST, LARGEST))
        photographs.append(image)
    rng = np.random.default_rng(0)
    while True:
        image = photographs[rng.integers(len(photographs))]
        width, height = (int(side * scale) for scale in [rng.uniform(0.6, 1)] for side in image.size)
        left, top = (rng.integers(0, most - side + 1) for most, side in zip(image.size, (width, height), strict=True))
        side = int(np.exp(rng.uniform(np.log(SIDE), np.log(min(width, height)))))
        x, y = left + rng.integers(0, width - side + 1), top + rng.integers(0, height - side + 1)
        flip = -1 if rng.random() < 0.5 else 1
        boxes = (left, top, left + width, top + height), (x, y, x + side, y + side)
        whole, part = (np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX, box)) for box in boxes)
        yield whole[:, ::flip], part[:, ::flip]


def make_update(name: str, updates: int) -> tuple[Any, Callable]:
    """Returns the bundled model, and a function of images (whole, part) that trains this model for one step.

    The function returns bits/dim and KL, scalars. z encodes the whole images if `name` is "whole", else their parts.
    """
    import keras
    import tensorflow as tf

    import tfdecouple
    from tfdecouple.model.objective import negative_elbo
    from tfdecouple.runtime.execution import backward_memory

    model = tfdecouple.load_pretrained("photographs")
    rate = keras.optimizers.schedules.CosineDecay(0.0, updates, warmup_target=5e-4, warmup_steps=50, alpha=0.02)
    optimizer, variables = keras.optimizers.Adam(rate, clipnorm=50.0), model.trainable_variables
    optimizer.build(variables)

    @tf.function
    def update(whole: tf.Tensor, part: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        whole, part = model.quantizer.find_bins(whole), model.quantizer.find_bins(part)
        noise = tf.random.normal([BATCH, model.config.latent_dim]), tf.random.uniform(tf.shape(part))
        with tf.GradientTape() as tape, backward_memory("keep"):
            encoded = whole if name == "whole" else part
            elbo, _ = negative_elbo(model, part, *noise, encoder_bins=encoded, training=True)
            loss = tf.reduce_mean(elbo.bits_per_dim)
        optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)
        return loss, tf.reduce_mean(elbo.kl)

    return model, update


def train_models(files: list[pathlib.Path], out: pathlib.Path, updates: int) -> None:
    """Trains the models "part" and "whole" on image files; writes weights to `out/NAME.npz` after every 100 updates."""
    pairs, models = draw_pairs(files), {name: make_update(name, updates) for name in NAMES}
    history: dict[str, list[list[float]]] = {name: [] for name in NAMES}
    for step in range(1, updates + 1):
        batch = [np.stack(images) for images in zip(*(next(pairs) for _ in range(BATCH)), strict=True)]
        for name, (_, update) in models.items():
            history[name].append([float(number) for number in update(*batch)])
        if step % 20 == 0:
            print(step, {name: np.mean(rows[-20:], 0).round(3).tolist() for name, rows in history.items()}, flush=True)
        if step % 100 == 0 or step == updates:
            for name, (model, _) in models.items():
                np.savez(out / f"{name}.npz", step=step, **read_weights(model))


def read_weights(model: Any) -> dict[str, np.ndarray]:
    """Returns {name: array} of a model's weights for an .npz file, with "|" instead of "/" in the names."""
    return {name.replace("/", "|"): variable.numpy() for name, variable in model.named_variables().items()}


def measure_switches(files: list[pathlib.Path], out: pathlib.Path) -> None:
    """Decodes v of each photograph with z of another; prints metrics of the results, and writes pictures to `out`."""
    import tensorflow as tf

    import tfdecouple
    from tfdecouple.visualization.full_size import change_at_full_size, read_photograph

    model = tfdecouple.load_pretrained("photographs")
    weights = {"bundled": read_weights(model), **{name: dict(np.load(out / f"{name}.npz")) for name in NAMES}}
    random.Random(7).shuffle(files)
    metrics: dict[str, list[float]] = {}
    for size in SIZES:
        photographs = [read_photograph(str(file), 3, size) for file in files]
        pairs = list(zip(photographs, photographs[7:] + photographs[:7], strict=True))
        others = {"unchanged": lambda a, b: a, "Reinhard": match_moments, "`match_histograms`": match_colours}
        for name, function in others.items():
            rows = [(a.pixels, b.pixels, function(a.pixels, b.pixels)) for a, b in pairs]
            metrics[f"{name}, {size}"] = measure_transfer(rows)
        columns = [[a.pixels for a, _ in pairs], [b.pixels for _, b in pairs]]
        for name, arrays in weights.items():
            for key, variable in model.named_variables().items():
                variable.assign(arrays[key.replace("/", "|")])
            by_flow, by_filter = [], []
            for a, b in pairs:
                (z, _, _), (_, v, sides) = (model.encode(tf.constant(one.pixels[None])) for one in (b, a))
                by_flow.append(np.asarray(model.decode(z, v, sides))[0])
                before = model.quantize_images(a.shrink_photograph(model.config.image_shape)[None])
                after = model.decode(z, model.encode(before)[1])
                by_filter.append(change_at_full_size(a.pixels, np.asarray(before)[0], np.asarray(after)[0]))
            for way, results in (("flow", by_flow), ("filter", by_filter)):
                columns.append(results)
                rows = [(a.pixels, b.pixels, result) for (a, b), result in zip(pairs, results, strict=True)]
                metrics[f"{name}, {way}, {size}"] = measure_transfer(rows)
        write_pictures(out / f"switches-{size}.jpg", columns)
    header = ("switch", "colour", "brightness", "contrast", "gradients", "least", "distance")
    print(make_table(header, [(name, *row) for name, row in metrics.items()]))
    named = {name: dict(zip(header[1:], row, strict=True)) for name, row in metrics.items()}
    write_json(out / "whole_and_part.json", named)


def measure_transfer(rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[float]:
    """Returns six metrics of how far results have the colours of a reference image and the detail of a content image.

    A row is (content, reference, result), uint8 `[height, width, 3]`. The first three metrics are 0 if the result
    equals the content, and 1 if the result equals the reference, in the mean colour (less its lightness), the mean
    luminance, and the standard deviation of the luminance. The next two are the mean and the smallest correlation of
    the result's luminance gradients with the content's. The last is the mean distance of the result's colours from the
    reference's (2-Wasserstein of Gaussians, RGB from 0 to 1).
    """
    from scipy.linalg import sqrtm

    shares, correlations, distances = np.zeros((3, 2)), [], []
    for images in rows:
        colours = [image.reshape(-1, 3) / 255 for image in images]
        moments = [(c.mean(0) - c.mean(), c.mean(0) @ LUMINANCE, (c @ LUMINANCE).std()) for c in colours]
        for number, (content, reference, result) in enumerate(zip(*moments, strict=True)):
            way = np.atleast_1d(reference - content)
            shares[number] += way @ np.atleast_1d(result - content), way @ way
        first, _, last = (np.stack(np.gradient(image / 255 @ LUMINANCE)).ravel() for image in images)
        correlations.append(float(np.corrcoef(first, last)[0, 1]))
        covariances = [np.cov(colours[number].T) for number in (2, 1)]
        root = sqrtm(covariances[0] @ covariances[1]).real
        gap = colours[2].mean(0) - colours[1].mean(0)
        distances.append(float(max(0, gap @ gap + np.trace(sum(covariances) - 2 * root)) ** 0.5))
    gained = (shares[:, 0] / shares[:, 1]).tolist()
    return [*gained, float(np.mean(correlations)), min(correlations), float(np.mean(distances))]


def match_moments(content: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns the image `content`, uint8, with CIELAB means and deviations of `reference` (Reinhard et al. 2001)."""
    from skimage.color import lab2rgb, rgb2lab

    a, b = rgb2lab(content), rgb2lab(reference)
    matched = (a - a.mean((0, 1))) / a.std((0, 1)) * b.std((0, 1)) + b.mean((0, 1))
    return (np.clip(lab2rgb(matched), 0, 1) * 255).astype(np.uint8)


def match_colours(content: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns the image `content`, uint8, with the histogram of `reference` in each colour channel."""
    from skimage.exposure import match_histograms

    return match_histograms(content, reference, channel_axis=-1).astype(np.uint8)


def write_pictures(path: pathlib.Path, columns: list[list[np.ndarray]], most: int = 6, side: int = 200) -> None:
    """Writes a JPEG file with a column for each list in `columns`, which shows the first `most` images of the list."""
    from PIL import Image

    sheet = Image.new("RGB", (len(columns) * side, most * side), "white")
    for column, images in enumerate(columns):
        for row, pixels in enumerate(images[:most]):
            image = Image.fromarray(pixels)
            image.thumbnail((side - 4, side - 4))
            sheet.paste(image, (column * side, row * side))
    sheet.save(path, quality=85)


def main() -> int:
    """Runs the program `whole_and_part.py`, which compares two ways to encode z; returns exit status 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("train", "measure"), help="train both models, or measure switches")
    parser.add_argument("photographs", type=pathlib.Path, help="a folder of image files")
    parser.add_argument("out", type=pathlib.Path, help="the folder of weights, metrics and pictures")
    parser.add_argument("--updates", type=int, default=1200, help="updates of each model (default 1200)")
    options = parser.parse_args()
    start_tensorflow()
    options.out.mkdir(parents=True, exist_ok=True)
    files = sorted(path for path in options.photographs.iterdir() if path.is_file())
    if options.action == "train":
        train_models(files, options.out, options.updates)
    else:
        measure_switches(files, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
