"""Counts, for trained models, the real and extreme images that decode(encode(image)) does not reconstruct exactly.

    python benchmarks/exactness.py --run runs/quickstart --run docs/results/conditional --json exactness.json

Prints a table row for each run and each set of images, such as noise or the test images of a data set: how many images
there are ("of") and how many change ("lost"), how many subpixels (colour values) change, and the root mean square (RMS)
of v. The RMS is near 1 for images like the training images, and `DecoupledModel.encode` warns if the RMS is large. With
--every-image the program uses all test images of each --data, and no other images; with --drawn, noise and
checkerboards with squares of 1, 2 and 4 pixels and of the whole image, each with --count draws of colours.
"""

import argparse
import contextlib
import pathlib
import sys
import warnings
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.common import make_table
from tfdecouple.data.hard_images import make_hard_images
from tfdecouple.errors import ExactnessWarning, InversionError
from tfdecouple.storage.files import write_json
from tfdecouple.system.process import run_program, start_tensorflow

HEADER = ["run", "alpha", "images", "of", "lost", "in subpixels", "RMS of v", "least of the lost"]
# Number of images that are encoded and decoded at once.
BATCH = 256


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", required=True, type=pathlib.Path, help="run folder; may be repeated")
    parser.add_argument("--count", type=int, default=64, help="noise images, and images per data set (default 64)")
    parser.add_argument("--data", action="append", default=[], help="a source of real images, such as cifar10")
    parser.add_argument("--data-dir", help="folder of TensorFlow Datasets")
    text = "compute as on a GPU that rounds to TF32, and change each result by up to NOISE of it, such as 1e-6"
    parser.add_argument("--emulate", type=float, metavar="NOISE", help=text)
    text = "keep TF32 on, which the project turns off, to show which images --emulate then makes inexact"
    parser.add_argument("--keep-tf32", action="store_true", help=text)
    parser.add_argument("--every-image", action="store_true", help="count all test images of each --data, no others")
    parser.add_argument("--drawn", action="store_true", help="count noise and drawn checkerboards, no others")
    parser.add_argument("--json", type=pathlib.Path, help="write the counts to this file")
    options = parser.parse_args()
    start_tensorflow()
    from benchmarks.emulation import emulated_accelerator, keep_tf32_switch
    from tfdecouple.config import DataConfig
    from tfdecouple.data.batches import load_images
    from tfdecouple.data.sources import open_source
    from tfdecouple.runs.opened_run import Run

    emulation = contextlib.ExitStack()
    if options.emulate is not None:
        emulation.enter_context(emulated_accelerator(noise=options.emulate))
    if options.keep_tf32:
        emulation.enter_context(keep_tf32_switch())
    rows = []
    with emulation:
        for run in options.run:
            opened = Run.open(run)
            model, shape = opened.model, opened.config.model.image_shape
            kinds, sources = {}, options.data or ["photographs"]
            if options.drawn:
                kinds, sources = draw_hard_images(shape, options.count), []
            elif not options.every_image:
                kinds = make_hard_images(shape, options.count)
            for name in sources:
                source = open_source(DataConfig(source=name, data_dir=options.data_dir), shape)
                count = min(options.count, source.sizes["test"]) if not options.every_image else source.sizes["test"]
                kinds[source.title] = load_images(source, "test", count)[0]
            weights = {"run": run.name, "step": opened.step, "alpha": model.config.alpha}
            rows += [{**weights, "images": kind, **count_changes(model, images)} for kind, images in kinds.items()]
    print(make_table(HEADER, [format_row(row) for row in rows]))
    if options.json:
        write_json(options.json, {"rows": rows})
    return 0


def draw_hard_images(shape: tuple[int, int, int], count: int) -> dict[str, np.ndarray]:
    """Returns {kind: uint8 `[count, *shape]`}: noise and checkerboards, of all values and of 0 and 255."""
    rng, kinds = np.random.default_rng(0), {}
    for of, values in (("all values", np.arange(256, dtype=np.uint8)), ("0 and 255", np.array([0, 255], np.uint8))):
        kinds[f"noise of {of}"] = rng.choice(values, (count, *shape))
        for side in (1, 2, 4, max(shape)):
            is_first = (np.indices(shape[:2]) // side).sum(0)[..., None] % 2 == 0
            first, second = rng.choice(values, (2, count, 1, 1, shape[-1]))
            kinds[f"squares of {side}, {of}"] = np.where(is_first, first, second)
    return kinds


def count_changed_subpixels(model: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many subpixels of each image change by encoding and decoding, int `[n]`, and the RMS of each v."""
    with warnings.catch_warnings():
        # The model warns of images that it might not reconstruct exactly. Here changes are counted instead.
        warnings.simplefilter("ignore", ExactnessWarning)
        z, v = model.encode(images)
    try:
        decoded = np.asarray(model.decode(z, v))
    except InversionError:
        # An image has pixels that are not finite. Images are counted one by one; all subpixels of that image changed.
        if len(images) > 1:
            single = [count_changed_subpixels(model, images[index : index + 1]) for index in range(len(images))]
            changed, rms = map(np.concatenate, zip(*single, strict=True))
            return changed, rms
        decoded = ~images
    changed = (decoded != images).reshape(len(images), -1).sum(1)
    return changed, np.sqrt(np.square(np.asarray(v, np.float64)).mean((1, 2, 3)))


def count_changes(model: Any, images: np.ndarray) -> dict[str, Any]:
    """Returns a dict: how many images and colour values decode(encode(image)) changes, lowest and highest RMS of v."""
    trips = [count_changed_subpixels(model, images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    differing, rms = map(np.concatenate, zip(*trips, strict=True))
    is_lost = differing > 0
    return {
        "of": len(images),
        "lost": int(is_lost.sum()),
        "subpixels": int(differing.sum()),
        "least_rms": float(rms.min()),
        "most_rms": float(rms.max()),
        "least_rms_of_the_lost": float(rms[is_lost].min()) if is_lost.any() else None,
    }


def format_row(row: dict[str, Any]) -> list[object]:
    """Returns a table row, a list of cells, from `row`, the dict of a model, a set of images and counts of changes."""
    names, counts = [row["run"], str(row["alpha"]), row["images"]], [row["of"], row["lost"], row["subpixels"]]
    return [*names, *counts, f"{row['least_rms']:.3g} to {row['most_rms']:.3g}", row["least_rms_of_the_lost"]]


if __name__ == "__main__":
    sys.exit(run_program(main))
