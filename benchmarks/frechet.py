"""What a Frechet distance of samples depends on: the temperature of v, and the side that the extractor resizes to.

    python benchmarks/frechet.py --run docs/results/conditional --extractor FILE.onnx --data-dir DIR --json frechet.json

Prints a row for each temperature at the extractor's own side, and one for each other side at temperature 1: the
distance of samples to test images, that of training images (the floor), and the one over the other. A network of larger
images blows those of 32 pixels up before it looks at them. The floor says what that does to real images; where the one
over the other is the same at each side, the distance is in the samples and not in the resizing. The extractor is an
ONNX file with one Resize, whose size is replaced.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.common import table, write_json  # noqa: E402
from tfdecouple.cli.evaluate import count_test_evaluation  # noqa: E402
from tfdecouple.cli.run_images import find_results_folder  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402
from tfdecouple.runtime.process import run_program, start_tensorflow  # noqa: E402

HEADER = ["side", "temperature", "distance", "floor", "distance over floor"]


def main() -> int:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=pathlib.Path, help="run folder")
    parser.add_argument("--extractor", required=True, type=pathlib.Path, help="ONNX file")
    parser.add_argument("--data-dir", help="folder of TFDS")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.6, 0.7, 0.8, 0.9, 1.0], metavar="T")
    parser.add_argument("--sides", type=int, nargs="*", default=[32, 64], metavar="PIXELS", help="beside its own")
    parser.add_argument("--images", type=int, default=10_000, help="of each kind (default 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples and of the draw of images")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures there")
    options = parser.parse_args()
    return run_program(lambda: measure(options))


def measure(options: argparse.Namespace) -> int:
    """Prints a row for each temperature and side."""
    start_tensorflow()
    from tfdecouple.metrics.frechet import Drawn, frechet_distance, moments_of, open_extractor
    from tfdecouple.runs.opened_run import Run

    run = Run.open(options.run)
    source = run.open_source(data_dir=options.data_dir)
    drawn = Drawn(run.model, source, options.seed, 250, lambda text: None)
    own = resized_to(options.extractor)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for side in (own, *options.sides):
            file = options.extractor
            if side != own:
                file = pathlib.Path(folder) / f"{side}.onnx"
                resize_to(options.extractor, side, file)
            network = open_extractor(file, run.config.model.image_shape)
            test, train = (moments_of(network, drawn.images(split, options.images)) for split in ("test", "train"))
            if side == own:
                count_test_evaluation(options.run, find_results_folder(str(options.run), None, "evaluation"), source)
            floor = frechet_distance(train.mean, train.covariance, test.mean, test.covariance)
            for temperature in options.temperatures if side == own else [1.0]:
                found = moments_of(network, drawn.samples(options.images, temperature))
                distance = frechet_distance(found.mean, found.covariance, test.mean, test.covariance)
                rows.append({"side": side, "temperature": temperature, "distance": distance, "floor": floor})
                print(rows[-1], flush=True)
    print(table(HEADER, cells(rows)))
    of = {"run": options.run.name, "step": run.step, "images": options.images, "seed": options.seed}
    write_json(options.json, {**of, "rows": rows})
    return 0


def cells(rows: list[dict[str, Any]]) -> list[list[Any]]:
    """Returns the rows of the table."""
    return [
        [row["side"], f"{row['temperature']:g}", row["distance"], row["floor"], row["distance"] / row["floor"]]
        for row in rows
    ]


def resized_to(path: pathlib.Path) -> int:
    """Returns the side that an ONNX file resizes images to.

    Raises:
        UserError: where it has not one Resize to a square of a fixed side.
    """
    _, size = _opened(path)
    return int(numpy_helper.to_array(size)[0])


def resize_to(path: pathlib.Path, side: int, to: pathlib.Path) -> None:
    """Writes an ONNX file that resizes images to another side.

    Raises:
        UserError: as `resized_to`.
    """
    network, size = _opened(path)
    size.CopyFrom(numpy_helper.from_array(np.full(2, side, np.int64), size.name))
    onnx.save(network, to)


def _opened(path: pathlib.Path) -> tuple[onnx.ModelProto, onnx.TensorProto]:
    """Returns a network and, in it, height and width that its one Resize has as a constant."""
    network = onnx.load(path)
    nodes = network.graph.node
    sizes = [node.input[3] for node in nodes if node.op_type == "Resize" and len(node.input) > 3]
    # [n, channels] of the images, and then the constant.
    parts = [name for node in nodes if node.op_type == "Concat" and node.output[0] in sizes for name in node.input]
    constants = [node.attribute[0].t for node in nodes if node.op_type == "Constant" and node.output[0] in parts]
    square = [each for each in constants if len(set(numpy_helper.to_array(each).flat)) == 1 and each.dims == [2]]
    if len(sizes) != 1 or len(square) != 1:
        raise UserError(f"{path} does not resize images once, to a square of a fixed side; give another --extractor")
    return network, square[0]


if __name__ == "__main__":
    sys.exit(main())
