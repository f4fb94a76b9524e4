"""The steps of an export: open the run, build and verify all files in a hidden folder, and rename the folder once."""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import signal
from collections.abc import Iterator, Sequence

import numpy as np

from export import LOG
from export.card import make_model_card, render_model_card
from export.endpoints import list_endpoints
from export.export_folder import (
    JSON_NAME,
    MANIFEST,
    TEXT_NAME,
    VECTORS,
    ExportManifest,
    require_new_folder,
    stage_export,
)
from export.exported_model import ExportedModel
from export.formats import Format
from export.provenance import open_run
from export.verification.comparison import digest_array
from export.verification.vectors import load_real_images, make_picture, make_test_vectors
from export.verification.verify import check_settings, compare_in_process, require_no_problems
from tfdecouple.data.sources import hide_image_path
from tfdecouple.errors import UserError
from tfdecouple.registry import FORMATS
from tfdecouple.storage.files import Facts, convert_tensorflow_errors, write_json, write_text
from tfdecouple.system.signals import handle_signals


def export(
    run: str | pathlib.Path,
    to: pathlib.Path,
    formats: Sequence[str] = ("savedmodel", "onnx"),
    *,
    any_size: bool = False,
    name: str | None = None,
    endpoints: tuple[str, ...] = (),
    version: int | None = None,
    web_runtime: pathlib.Path | None = None,
    web_gpu: bool = False,
) -> list[pathlib.Path]:
    """Exports a run and returns the new paths: the SavedModel's version, folders of other formats, the model card.

    If an error is raised, there is no export folder. The logger "export" gets lines of progress.

    Args:
        run: the run folder, or the name or address of bundled or published weights.
        to: the export folder, which must not exist yet.
        formats: the formats to write, from `FORMATS`.
        any_size: whether the files encode and decode images of any height and width.
        name: the name of the model; None for the name of the run folder.
        endpoints: the endpoints that the SavedModel has as signatures; () for all.
        version: the number of the SavedModel's version; None for 1.
        web_runtime: the folder of onnxruntime-web; None lets npm fetch it.
        web_gpu: whether the web page also has the runtime for graphics cards.

    Raises:
        UserError: if the run cannot be opened, the disk is full, or the files do not pass their verification.
        MemoryError, ResourceExhaustedError: if memory is exhausted.
    """
    options = {"endpoints": endpoints, "version": version, "web_runtime": web_runtime, "web_gpu": web_gpu}
    kinds = _make_formats(formats, options)
    require_new_folder(to)
    # After SIGTERM an export cleans up as after Ctrl-C.
    with handle_signals(signal.default_int_handler, signal.SIGTERM), _explain_errors(to), stage_export(to) as area:
        built = area / "built"
        built.mkdir()
        LOG.info("opening %s", run)
        model, provenance = open_run(run, name)
        shape = model.config.image_shape
        if any_size and (weight := model.any_size.weight_of_fixed_size):
            raise UserError(
                f"--any-size: the shape of the weight {weight} depends on the image size; leave --any-size out"
            )
        offered = list_endpoints(model.config, any_size)
        for kind in kinds:
            kind.prepare(model.config, offered, area)
        LOG.info("folding the weights")
        exported: dict[bool, ExportedModel] = {}
        vectors: dict[str, np.ndarray] = {}
        for first in sorted({kind.channels_first for kind in kinds}):
            exported[first] = ExportedModel(model, first, any_size, exported.get(False))
            require_no_problems(exported[first].find_faults())
            digests = sorted(map(digest_array, exported[first].collect_arrays().values()))
            vectors[f"weights/{'NCHW' if first else 'NHWC'}"] = np.array(digests)
        LOG.info("asking the Keras model for the right answers")
        (rows, columns, channels), sizes = shape, [shape[:2]]
        sizes += [(rows + 1, columns * 2 // 3), (rows * 3 // 2 - 3, columns * 2 + 5)] if any_size else []
        for height, width in sizes:
            images, source = load_real_images(provenance.config.data, (height, width, channels))
            made = make_test_vectors(model, images, any_size)
            vectors |= {f"{width}x{height}/{key}": array for key, array in made.items()} if any_size else made
        if any_size:
            vectors["sizes"] = np.array([f"{width}x{height}" for height, width in sizes])
        vectors["metadata"] = np.array(json.dumps(provenance.metadata))
        vectors |= make_picture(shape, provenance.crop)
        np.savez_compressed(built / VECTORS, allow_pickle=False, **vectors)
        entries: dict[str, Facts] = {}
        # {path of a part of the export, such as "savedmodel/3": {endpoint: name of its file}}
        parts: dict[str, dict[str, str]] = {}
        for kind in kinds:
            folder, report = built / kind.path, None
            names = parts[kind.path] = kind.write(exported[kind.channels_first], provenance, folder)
            files = [path.relative_to(built).as_posix() for path in sorted(folder.rglob("*.*"))]
            if kind.runtime is not None:
                LOG.info("verifying %s in a process of its own", kind.name)
                report = compare_in_process(kind.name, folder / kind.inside, built / VECTORS, {"names": names})
                require_no_problems(report.problems)
            listed = [kind.path] if kind.has_versions else files
            entries[kind.name] = {"files": listed, **kind.describe(folder, names, report)}
        card = make_model_card(provenance, offered, hide_image_path(source, provenance.config.data), entries, any_size)
        write_text(built / TEXT_NAME, render_model_card(card))
        write_json(built / JSON_NAME, card)
        for kind in kinds:
            if kind.has_versions:
                write_json(built / kind.path / "assets.extra" / JSON_NAME, card)
        manifest = ExportManifest.from_folder(built, parts)
        write_json(built / MANIFEST, manifest.model_dump())
        changes = [f"{change}: {path}" for change, path in manifest.find_changes(built)]
        require_no_problems([*changes, *check_settings(built, card)])
        LOG.info("putting it in place")
        require_new_folder(to)
        with handle_signals(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM):
            os.rename(built, to)
    return [to.absolute() / path for path in (*parts, TEXT_NAME)]


def _make_formats(names: Sequence[str], options: Facts) -> list[Format]:
    """Returns the formats `names` with their options; UserError for an option of a format that is not among `names`."""
    for name in names:
        FORMATS.require(name, "a format")
    formats = []
    for name, kind in FORMATS.items():
        own = {field.name: options[field.name] for field in dataclasses.fields(kind) if field.name in options}
        if name in names:
            formats.append(kind(**own))
        elif wrong := [option for option, value in own.items() if value]:
            option, value = wrong[0], own[wrong[0]]
            shown = "" if value is True else f" {' '.join(value) if isinstance(value, tuple) else value}"
            raise UserError(
                f"--{option.replace('_', '-')}{shown} is for the format {name} alone, and the formats are "
                f"{', '.join(names)}; leave it out, or add {name} to --format"
            )
    return formats


@contextlib.contextmanager
def _explain_errors(to: pathlib.Path) -> Iterator[None]:
    """A context that turns errors of a full disk and of other failed writes to the folder `to` into UserError."""
    try:
        with convert_tensorflow_errors():
            yield
    except BrokenPipeError:
        # The reader of the progress lines, such as `head`, has ended; `run_program` handles this error.
        raise
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(f"{error.strerror or error}") from error
        advice = "; free some space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise UserError(f"cannot write to {to}: {error.strerror or error}{advice}") from error
