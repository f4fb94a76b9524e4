"""The command line `python -m export`."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from tfdecouple.process import run_program, start_tensorflow

EXIT_REFUSED = 4

_HELP = """\
Turns a run into files that other programs use without this project: a SavedModel
for TensorFlow Serving, ONNX files for ONNX Runtime, a static web page.

  python -m export --run runs/quickstart --to exported/quickstart
      savedmodel/1, onnx/{encoder,decoder,sampler}.onnx, and files to start a server
  python -m export --run runs/quickstart --to exported/quickstart --format web
      a page that runs the model in the browser; serve the folder web/ with any server
  python -m export --run runs/quickstart --to exported/quickstart --precision int8
      smaller ONNX files beside those of float32

Every file is loaded and compared with the model in a process of its own before it is
put in place. The same command again adds the next version of the SavedModel.
"""

_EPILOG = f"""\
exit status:
  0 published   2 a mistake in the command or a full disk, said in one line
  {EXIT_REFUSED} a file did not pass its check, nothing published   130 interrupted, nothing published
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m export`."""
    return run_program(lambda: _export(arguments))


def _export(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description=_HELP,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", required=True, metavar="DIR", type=pathlib.Path, help="run folder")
    parser.add_argument("--to", required=True, metavar="DIR", type=pathlib.Path, help="export folder")
    parser.add_argument(
        "--format",
        nargs="+",
        metavar="NAME",
        default=["savedmodel", "onnx"],
        help="savedmodel, onnx, web; default savedmodel and onnx",
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        metavar="NAME",
        default=[],
        help="float16, int8: smaller ONNX files too, whose pixel errors the model card states",
    )
    parser.add_argument(
        "--endpoints", nargs="+", metavar="NAME", default=[], help="signatures of the SavedModel; default all"
    )
    parser.add_argument(
        "--version", metavar="N", type=int, help="version of the SavedModel; default the next free number"
    )
    parser.add_argument("--name", metavar="NAME", help="of the model; default the name of the run folder")
    parser.add_argument(
        "--web-runtime",
        metavar="DIR",
        type=pathlib.Path,
        help="folder of the npm package onnxruntime-web, for the format web; default: npm fetches it",
    )
    options = parser.parse_args(arguments)

    start_tensorflow()
    from export.gate.run import RefusedError
    from export.pipeline import Request, export

    request = Request(
        run=options.run,
        to=options.to,
        formats=tuple(dict.fromkeys(options.format)),
        precisions=tuple(dict.fromkeys(options.precision)),
        endpoints=tuple(options.endpoints),
        version=options.version,
        name=options.name,
        web_runtime=options.web_runtime,
    )
    try:
        published = export(request, lambda text: print(text, flush=True))
    except RefusedError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REFUSED
    print()
    for path in published:
        print(path)
    return 0
