"""The command line of `python -m export`, which exports a run or, with `--verify`, checks an export folder again."""

import argparse
import math
import pathlib
import sys
from collections.abc import Sequence

from tfdecouple.registry import FORMATS
from tfdecouple.runs.pretrained import DEFAULT, HUB
from tfdecouple.runtime.option_types import make_number_type
from tfdecouple.runtime.process import get_arguments, run_program, start_tensorflow
from tfdecouple.runtime.requirements import require_packages
from tfdecouple.storage.files import hash_file

# The command `doctor` ends with the same status if a check fails.
EXIT_REFUSED = 5

_HELP = """\
Turns a run into files that other programs use without this project: a SavedModel
for TensorFlow Serving, ONNX files for ONNX Runtime, LiteRT files for phones, a static
web page.

  python -m export --run runs/quickstart --to exported/quickstart
      savedmodel/1, onnx/{encoder,decoder,sampler}.onnx, and files to start a server
  python -m export --run runs/quickstart --to exported/quickstart --format web
      a page that runs the model in the browser; serve the folder web/ with any server
  python -m export --run runs/quickstart --to exported/quickstart --format litert
      files for phones: litert/encoder.tflite and so on

  python -m export --verify exported/quickstart
      the same checks again, on the machine where the files are used; without the run

Every file is loaded and compared with the model in a process of its own before the
export folder is made.
"""

_EPILOG = f"""\
exit status:
  0 published, or verified   2 a mistake in the command or a full disk, named in one line
  {EXIT_REFUSED} a file did not pass its check, nothing published; with --verify, something is changed or wrong
  130 interrupted, nothing published
"""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m export") -> int:
    """Runs `python -m export` with `arguments` (None: `sys.argv`); returns its exit status; messages call it `prog`."""
    return run_program(lambda: _run_command(arguments, prog))


def make_export_parser(prog: str) -> argparse.ArgumentParser:
    """Returns the argument parser of `python -m export`; the help text names the command `prog`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=_HELP.replace("python -m export", prog),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    text = f"run folder; or bundled weights such as {DEFAULT}; or published ones, {HUB}OWNER/NAME"
    add("--run", metavar="RUN", help=text)
    add("--to", metavar="DIR", type=pathlib.Path, help="export folder, which must not exist yet")
    text = "check an export folder again, here, without the run: digests of all files, and their answers"
    add("--verify", metavar="DIR", type=pathlib.Path, help=text)
    text = "with --verify: the SHA-256 of manifest.json that the export has printed"
    add("--expect", metavar="DIGEST", help=text)
    text = "; ".join(f"{name}: {kind.summary}" for name, kind in FORMATS.items()) + "; default savedmodel and onnx"
    add("--format", nargs="+", metavar="NAME", default=["savedmodel", "onnx"], help=text)
    add("--endpoints", nargs="+", metavar="NAME", default=[], help="signatures of the SavedModel; default all")
    text = "files that encode and decode images of any height and width, instead of the model's"
    add("--any-size", action="store_true", help=text)
    number = make_number_type(int, -math.inf, math.inf)
    add("--version", metavar="N", type=number, help="version of the SavedModel, for TensorFlow Serving; default 1")
    add("--name", metavar="NAME", help="name of the model; default the name of the run folder")
    text = "folder of the npm package onnxruntime-web, for the format web; default: npm fetches it"
    add("--web-runtime", metavar="DIR", type=pathlib.Path, help=text)
    text = "give the web page the runtime for graphics cards, too: 27 MB more, used where it is exact and faster"
    add("--web-gpu", action="store_true", help=text)
    return parser


def _run_command(arguments: Sequence[str] | None, prog: str) -> int:
    parser = make_export_parser(prog)
    options = parser.parse_args(get_arguments(arguments))
    require_packages("onnx", "tf2onnx", "onnxruntime", "tensorflow_serving", what="the export")
    if options.verify is not None:
        if options.run or options.to:
            parser.error("--verify takes an export folder and neither --run nor --to")
        return _verify_export(options.verify, options.expect)
    if options.expect:
        parser.error("--expect belongs to --verify")
    if not options.run or not options.to:
        parser.error("--run and --to are needed, or --verify")

    start_tensorflow()
    from export.export_folder import MANIFEST
    from export.pipeline import ExportConfig, export
    from export.verification.verify import RefusedError

    try:
        fields = {key: getattr(options, key) for key in ("any_size", "version", "name", "web_runtime", "web_gpu")}
        formats, endpoints = tuple(dict.fromkeys(options.format)), tuple(options.endpoints)
        config = ExportConfig(run=options.run, to=options.to, formats=formats, endpoints=endpoints, **fields)
        published = export(config, _print_now)
    except RefusedError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REFUSED
    print()
    for path in published:
        print(path)
    digest = hash_file(options.to / MANIFEST)
    print(f"\n{MANIFEST} has the SHA-256 {digest}; keep it elsewhere, for --verify DIR --expect DIGEST")
    return 0


def _verify_export(folder: pathlib.Path, expected: str | None) -> int:
    """Verifies an export folder; `expected` is its manifest's SHA-256 (None: any); returns exit status 0 or 5."""
    from export.export_folder import MANIFEST, load_manifest
    from export.verification.verify import join_problems, verify_folder

    load_manifest(folder)
    digest = hash_file(folder / MANIFEST)
    if expected is not None and digest != expected.lower():
        print(f"error: {folder / MANIFEST} has the SHA-256 {digest}; expected {expected}", file=sys.stderr)
        return EXIT_REFUSED
    problems, not_compared = verify_folder(folder, _print_now)
    _print_now(f"{MANIFEST} has the SHA-256 {digest}")
    if problems:
        print(f"error: {folder} is not as it was exported: {join_problems(problems)}", file=sys.stderr)
        return EXIT_REFUSED
    unchecked = f"; answers were not checked of {', '.join(not_compared)}"
    print(f"{folder} is as it was exported{unchecked if not_compared else ', and answers as the model did'}")
    return 0


def _print_now(text: str) -> None:
    print(text, flush=True)
