"""`python -m tfdecouple encode-beam`: the codes of a folder of images, encoded by an Apache Beam runner."""

from __future__ import annotations

import argparse
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.cli.encode import FORMATS
from tfdecouple.errors import UserError
from tfdecouple.runtime.process import start_tensorflow


def add_parser(commands: Any) -> None:
    """Describes the arguments."""
    parser = arguments.command(
        commands,
        "encode-beam",
        "encode a folder of images on a cluster, with Apache Beam",
        "Needs an export (python -m export) and the extra beam. What follows -- goes to Beam: -- --runner=DirectRunner "
        "--direct_num_workers=2 --direct_running_mode=multi_processing",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="export folder, or an encoder.onnx")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of images; sub-folders are labels")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the codes, new or empty")
    parser.add_argument("--format", default="tfrecord", metavar="NAME", help="tfrecord (default) or parquet")
    parser.add_argument("--v", action="store_true", help="write v beside z: as many numbers as the image has")
    parser.add_argument(
        "--centre-crop", type=int, metavar="N", help="as data.centre_crop (default: as the export crops pictures)"
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time (default 32)")
    parser.add_argument(
        "--shards", type=int, default=0, metavar="N", help="number of files; default the runner's choice"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of each worker (default 1)")
    parser.add_argument("beam", nargs="*", metavar="-- OPTION", help="options of Beam and its runner")


def run(options: argparse.Namespace) -> int:
    """Runs the pipeline.

    Raises:
        UserError: for impossible arguments, a missing model or images, or a pipeline that fails.
    """
    for name, least in (("centre_crop", 0), ("batch_size", 1), ("shards", 0), ("threads", 1)):
        arguments.at_least(options, name, least)
    if options.format not in FORMATS:
        raise UserError(f"--format is {options.format!r}; it must be {' or '.join(FORMATS)}")
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
