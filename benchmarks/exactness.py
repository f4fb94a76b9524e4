"""Which images come back from their codes: kinds of image that no camera takes beside real ones, run by run.

    python benchmarks/exactness.py --run docs/results/photographs --run docs/results/conditional --docs docs/RESULTS.md

Prints a row for each kind and run: how many images differ after decode(encode(image)), in how many subpixels, and the
root mean square of v, by which `DecoupledModel.encode` warns; images like those of the training have one near 1.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.common import table  # noqa: E402
from benchmarks.scaling import put  # noqa: E402
from tfdecouple.doctor.exactness import RoundTrip, come_back, extreme_images  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402
from tfdecouple.runtime.process import run_program, start_tensorflow  # noqa: E402


def main() -> int:
    """Measures and prints the table."""
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
    parser.add_argument("--docs", type=pathlib.Path, help="put the table into this file, at <!-- exactness -->")
    options = parser.parse_args()
    return run_program(lambda: measure(options))


def measure(options: argparse.Namespace) -> int:
    """Prints a row for each kind of image and run."""
    if options.count < 1:
        raise UserError(f"--count is {options.count}; it must be at least 1")
    if options.docs and not options.docs.is_file():
        raise UserError(f"--docs: there is no file {options.docs}")
    start_tensorflow()
    import tfdecouple
    from tfdecouple.config import DataConfig
    from tfdecouple.data import load_images, open_source
    from tfdecouple.runtime.emulation import emulated_accelerator, switch_left_alone

    emulation = contextlib.ExitStack()
    if options.emulate is not None:
        emulation.enter_context(emulated_accelerator(noise=options.emulate))
    if options.left_alone:
        emulation.enter_context(switch_left_alone())
    rows = []
    with emulation:
        for run in options.run:
            model = tfdecouple.load_model(run)
            side = model.config.image_size
            kinds = extreme_images(side, options.count)
            for name in options.data or ["photographs"]:
                source = open_source(DataConfig(source=name, data_dir=options.data_dir), side)
                kinds[source.title] = load_images(source, "test", min(options.count, source.sizes["test"]))[0]
            of = [run.name, str(model.config.alpha)]
            rows += [[*of, kind, *row(come_back(model, images))] for kind, images in kinds.items()]
    header = ["run", "alpha", "images", "of", "lost", "in subpixels", "RMS of v", "least of the lost"]
    print(text := table(header, rows))
    if options.docs:
        document = put(options.docs.read_text(encoding="utf-8"), "exactness", text)
        options.docs.write_text(document, encoding="utf-8")
    return 0


def row(trip: RoundTrip) -> list[object]:
    """Returns how many images there are and are lost by a round trip, in how many subpixels, and the RMS of v."""
    rms = trip.rms
    spread = f"{rms.min():.2f}" if len(rms) == 1 else f"{rms.min():.2f} to {rms.max():.2f}"
    least = float(rms[trip.is_lost].min()) if trip.lost else None
    return [trip.images, trip.lost, trip.subpixels, spread, least]


if __name__ == "__main__":
    sys.exit(main())
