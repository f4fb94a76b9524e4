"""The command `export`, which `python -m export` runs, too."""

import pathlib
import sys
import time

from tfdecouple.cli.options import EXIT_FAILED
from tfdecouple.errors import UserError
from tfdecouple.system import process
from tfdecouple.system.requirements import require_packages


def export(
    *,
    run: str | None = None,
    to: pathlib.Path | None = None,
    verify: pathlib.Path | None = None,
    expect: str | None = None,
    format: tuple[str, ...] = ("savedmodel", "onnx"),
    endpoints: tuple[str, ...] = (),
    any_size: bool = False,
    version: int | None = None,
    name: str | None = None,
    web_runtime: pathlib.Path | None = None,
    web_gpu: bool = False,
) -> int:
    """Write a run for other programs, which use the files without this project.

    Every file is loaded and compared with the model in a process of its own before the export folder is made. A
    SavedModel for TensorFlow Serving, ONNX files for ONNX Runtime, and files to start a server:

        tfdecouple export --run runs/quickstart --to exported/quickstart

    The same checks again, on the machine where the files are used; without the run:

        tfdecouple export --verify exported/quickstart

    Exit status: 0 published, or verified; 2 a mistake in the command or a full disk; 5 a file did not pass its check,
    nothing published, or with --verify, something is changed or wrong; 130 interrupted, nothing published.

    Args:
        run: run folder; bundled weights such as photographs; or published ones, hf://OWNER/NAME.
        to: export folder, which must not exist yet.
        verify: check an export folder again, here, without the run: digests of all files, and their answers.
        expect: with --verify: the SHA-256 of manifest.json that the export has printed.
        format: one or several of savedmodel, onnx, litert (for phones), and web (a page for browsers).
        endpoints: signatures of the SavedModel; default all.
        any_size: files that encode and decode images of any height and width, instead of the model's.
        version: version of the SavedModel, for TensorFlow Serving; default 1.
        name: name of the model; default the name of the run folder.
        web_runtime: folder of the npm package onnxruntime-web, for the format web; default: npm fetches it.
        web_gpu: give the web page the runtime for graphics cards, too: 27 MB more, used where it is exact and faster.
    """
    require_packages("onnx", "tf2onnx", "onnxruntime", "tensorflow_serving", what="the export")
    if verify and not (run or to):
        return _verify_export(verify, expect)
    if not run or not to or verify or expect:
        raise UserError("export needs --run RUN and --to DIR, or --verify DIR, which --expect DIGEST can follow")

    process.start_tensorflow()
    from export import pipeline, show_progress
    from export.export_folder import MANIFEST
    from export.verification.verify import RefusedError
    from tfdecouple.storage.files import hash_file

    try:
        begun = time.monotonic()
        with show_progress(lambda text: print(f"[{time.monotonic() - begun:4.0f} s] {text}", flush=True)):
            published = pipeline.export(
                run, to, tuple(dict.fromkeys(format)), any_size=any_size, name=name, endpoints=endpoints,
                version=version, web_runtime=web_runtime, web_gpu=web_gpu,
            )  # fmt: skip
    except RefusedError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    print()
    for path in published:
        print(path)
    digest = hash_file(to / MANIFEST)
    print(f"\n{MANIFEST} has the SHA-256 {digest}; keep it elsewhere, for --verify DIR --expect DIGEST")
    return 0


def _verify_export(folder: pathlib.Path, expected: str | None) -> int:
    """Verifies an export folder; `expected` is its manifest's SHA-256 (None: any); returns exit status 0 or 5."""
    from export import show_progress
    from export.export_folder import MANIFEST, load_manifest
    from export.verification.verify import join_problems, verify_folder
    from tfdecouple.storage.files import hash_file

    load_manifest(folder)
    digest = hash_file(folder / MANIFEST)
    if expected is not None and digest != expected.lower():
        print(f"error: {folder / MANIFEST} has the SHA-256 {digest}; expected {expected}", file=sys.stderr)
        return EXIT_FAILED
    with show_progress(lambda text: print(text, flush=True)):
        problems, not_compared = verify_folder(folder)
    print(f"{MANIFEST} has the SHA-256 {digest}", flush=True)
    if problems:
        print(f"error: {folder} is not as it was exported: {join_problems(problems)}", file=sys.stderr)
        return EXIT_FAILED
    unchecked = f"outputs were not checked of {', '.join(not_compared)}"
    agreed = "and all outputs agree with the stored ones"
    print(f"{folder}: all files are unchanged{'; ' + unchecked if not_compared else ', ' + agreed}")
    return 0
