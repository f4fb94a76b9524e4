"""`python -m tfdecouple encode-beam`: writes the codes of a folder of images into files, with Apache Beam."""

import argparse
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.cli.encode import FORMATS
from tfdecouple.errors import UserError
from tfdecouple.runtime.process import start_tensorflow


def add_parser(commands: Any) -> None:
    """Adds the command `encode-beam` and its options to `commands`, the argparse sub-parsers of `tfdecouple`."""
    parser = arguments.add_command(
        commands,
        "encode-beam",
        "encode a folder of images on a cluster, with Apache Beam",
        "Needs an export (python -m export) and the extra beam. What follows -- goes to Beam: -- --runner=DirectRunner "
        "--direct_num_workers=2 --direct_running_mode=multi_processing",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="export folder, or an encoder.onnx")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of images; sub-folders are labels")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the codes, new or empty")
    arguments.add_choice(parser, "--format", FORMATS, "tfrecord or parquet")
    parser.add_argument("--v", action="store_true", help="write v beside z: as many numbers as the image has")
    arguments.add_number(parser, "--centre-crop", None, "as data.centre_crop (default: as the export crops pictures)")
    arguments.add_number(parser, "--batch-size", 32, "images at a time", 1)
    arguments.add_number(parser, "--shards", 0, "number of files; 0 for the runner's choice")
    arguments.add_number(parser, "--threads", 1, "threads of each worker", 1)
    parser.add_argument("beam", nargs="*", metavar="-- OPTION", help="options of Beam and its runner")


def run(options: argparse.Namespace) -> int:
    """Runs the command `encode-beam`: encodes the images in --images into files in --out by Apache Beam; returns 0."""
    start_tensorflow()
    try:
        import apache_beam  # noqa: F401
    except ImportError:
        raise UserError("encode-beam needs Apache Beam; pip install 'tfdecouple[beam]'") from None
    from tfdecouple.corpus.beam import encode_with_beam

    manifest = encode_with_beam(options)
    skipped = manifest.totals["skipped"]
    unreadable = f", {skipped} unreadable, named in _unreadable.txt" if skipped else ""
    print(
        f"{options.out}: {manifest.totals['images']:,} images in {len(manifest.shards)} {manifest.format} "
        f"files{unreadable}"
    )
    return 0
