"""Counts the images that decode(encode(image)) changes, for real images and for extreme ones, for each run.

    python benchmarks/exactness.py --run runs/quickstart --run docs/results/conditional --json exactness.json

Prints a row for each kind of image and run: the number of changed images, the number of changed subpixels, and the root
mean square of v. It is near 1 for images like the training images, and `DecoupledModel.encode` warns if it is large.
With --every-image the images are all test images of each --data.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.common import table, write_json  # noqa: E402
from tfdecouple.doctor.device_checks import count_changed_subpixels, make_extreme_images  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402
from tfdecouple.runtime.process import run_program, start_tensorflow  # noqa: E402

HEADER = ["run", "alpha", "images", "of", "lost", "in subpixels", "RMS of v", "least of the lost"]
# Largest number of images that are encoded at once.
_AT_ONCE = 256


def main() -> int:
    """Reads the command line and measures; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", required=True, type=pathlib.Path, help="run folder; may be repeated")
    parser.add_argument("--count", type=int, default=64, help="images of noise and of each data set (default 64)")
    parser.add_argument("--data", action="append", default=[], help="a source of real images, such as cifar10")
    parser.add_argument("--data-dir", help="folder of TFDS")
    parser.add_argument(
        "--emulate",
        type=float,
        metavar="NOISE",
        help="compute as on a GPU that rounds to TF32, and change each result by up to NOISE of it, such as 1e-6",
    )
    parser.add_argument(
        "--left-alone",
        action="store_true",
        help="leave TensorFlow's switch for TF32 alone: what --emulate would lose without this project",
    )
    parser.add_argument("--every-image", action="store_true", help="all test images of each --data alone")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures there")
    options = parser.parse_args()
    return run_program(lambda: measure(options))


def measure(options: argparse.Namespace) -> int:
    """Prints a row for each kind of image and run; returns the exit status."""
    if options.count < 1:
        raise UserError(f"--count is {options.count}; it must be at least 1")
    start_tensorflow()
    from helpers.emulation import emulated_accelerator, switch_left_alone

    from tfdecouple.config import DataConfig
    from tfdecouple.data import load_images, open_source
    from tfdecouple.runs.opened_run import Run

    emulation = contextlib.ExitStack()
    if options.emulate is not None:
        emulation.enter_context(emulated_accelerator(noise=options.emulate))
    if options.left_alone:
        emulation.enter_context(switch_left_alone())
    rows = []
    with emulation:
        for run in options.run:
            opened = Run.open(run)
            model = opened.model
            shape = model.config.image_shape
            kinds = {} if options.every_image else make_extreme_images(shape, options.count)
            for name in options.data or ["photographs"]:
                source = open_source(DataConfig(source=name, data_dir=options.data_dir), shape)
                size = source.sizes["test"]
                count = size if options.every_image else min(options.count, size)
                kinds[source.title] = load_images(source, "test", count)[0]
            of = {"run": run.name, "step": opened.step, "alpha": model.config.alpha}
            rows += [{**of, "images": kind, **figures(model, images)} for kind, images in kinds.items()]
    print(table(HEADER, [cells(row) for row in rows]))
    write_json(options.json, {"rows": rows})
    return 0


def figures(model: Any, images: np.ndarray) -> dict[str, Any]:
    """Returns the number of images, the images and subpixels that a round trip changes, and the range of v's RMS."""
    trips = [
        count_changed_subpixels(model, images[start : start + _AT_ONCE]) for start in range(0, len(images), _AT_ONCE)
    ]
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


def cells(row: dict[str, Any]) -> list[object]:
    """Returns the cells of the table for a row of figures."""
    least, most = (f"{row[name]:.2f}" for name in ("least_rms", "most_rms"))
    spread = least if row["of"] == 1 else f"{least} to {most}"
    of = [row["run"], str(row["alpha"]), row["images"], row["of"]]
    return [*of, row["lost"], row["subpixels"], spread, row["least_rms_of_the_lost"]]


if __name__ == "__main__":
    sys.exit(main())
