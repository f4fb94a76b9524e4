"""The steps of an export: open the run, build and verify all files in a hidden folder, and rename the folder once."""

import dataclasses
import errno
import json
import os
import pathlib
import re
import signal
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

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
from export.formats import Format, Job
from export.provenance import open_run
from export.verification.comparison import digest_weights
from export.verification.vectors import choose_image_sizes, load_real_images, make_picture, make_test_vectors
from export.verification.verify import check_settings, compare_in_process, require_no_problems
from tfdecouple.config import DataConfig
from tfdecouple.data.sources import hide_image_path
from tfdecouple.errors import UserError, one_line
from tfdecouple.model import DecoupledModel
from tfdecouple.model.any_size import find_weight_of_fixed_size
from tfdecouple.registry import FORMATS
from tfdecouple.storage.files import write_json, write_text
from tfdecouple.system.signals import handle_signals

# Error numbers of a full disk, and of an exhausted disk quota.
_FULL = (errno.ENOSPC, errno.EDQUOT)
# TensorFlow raises the same class of error for a full disk and for exhausted memory. If the message matches this
# pattern, memory is exhausted.
_OUT_OF_MEMORY = re.compile("OOM|allocat|out of memory", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The options of one export, which are checked as far as possible before the run is opened.

    Attributes:
        run: the run folder, or the name or address of bundled or published weights.
        to: the export folder, which must not exist yet.
        formats: the formats to write, from `FORMATS`.
        endpoints: the endpoints that the SavedModel has as signatures; () for all.
        any_size: whether the files encode and decode images of any height and width.
        version: the number of the SavedModel's version; None for 1.
        name: the name of the model; None for the name of the run folder.
        web_runtime: the folder of onnxruntime-web; None lets npm fetch it.
        web_gpu: whether the web page also has the runtime for graphics cards.
    """

    run: str | pathlib.Path
    to: pathlib.Path
    formats: tuple[str, ...] = ("savedmodel", "onnx")
    endpoints: tuple[str, ...] = ()
    any_size: bool = False
    version: int | None = None
    name: str | None = None
    web_runtime: pathlib.Path | None = None
    web_gpu: bool = False

    def __post_init__(self) -> None:
        for name in self.formats:
            FORMATS.require(name, "a format")
        for name, kind in FORMATS.items():
            for field in kind.options:
                value, option = getattr(self, field), f"--{field.replace('_', '-')}"
                if value and name not in self.formats:
                    shown = "" if value is True else f" {' '.join(value) if isinstance(value, tuple) else value}"
                    raise UserError(
                        f"{option}{shown} is for the format {name} alone, and the formats are "
                        f"{', '.join(self.formats)}; leave it out, or add {name} to --format"
                    )
        for name in self.formats:
            FORMATS[name]().require_support(self)
        if self.version is not None and not 1 <= self.version < 2**63:
            raise UserError(f"the version is {self.version}; it must be at least 1 and below 2**63")
        require_new_folder(self.to)


def export(config: ExportConfig) -> list[pathlib.Path]:
    """Exports a run and returns the new paths: the SavedModel's version, folders of other formats, the model card.

    The files are built and verified in a hidden folder beside the export folder, which is then renamed. If an error is
    raised, there is no export folder. The logger "export" gets lines of progress.

    Raises:
        UserError: if the run cannot be opened, the disk is full, or the files do not pass their verification.
        MemoryError, ResourceExhaustedError: if memory is exhausted.
    """
    # After SIGTERM an export cleans up as after Ctrl-C.
    with handle_signals(signal.default_int_handler, signal.SIGTERM):
        try:
            return _build_and_publish(config)
        except BrokenPipeError:
            # The reader of the progress lines, such as `head`, has ended; `run_program` handles this error.
            raise
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise MemoryError(f"{error.strerror or error}") from error
            advice = "; free some space there" if error.errno in _FULL else ""
            raise UserError(f"cannot write to {config.to}: {error.strerror or error}{advice}") from error
        except tf.errors.OpError as error:
            reason, advice = one_line(error, first=True), ""
            if isinstance(error, tf.errors.ResourceExhaustedError):
                if _OUT_OF_MEMORY.search(str(error)):
                    raise
                reason, advice = os.strerror(errno.ENOSPC), "; free some space there"
            raise UserError(f"cannot write to {config.to}: {reason}{advice}") from error


def _build_and_publish(config: ExportConfig) -> list[pathlib.Path]:
    """Opens the run, builds and verifies the export, and renames it; returns the paths of its folders and its card."""
    LOG.info("opening %s", config.run)
    model, provenance = open_run(config.run, config.name)
    for file, reason in provenance.omissions.items():
        LOG.info("%s cannot be used and is left out: %s", file, reason)
    if config.any_size and (weight := find_weight_of_fixed_size(model.config)):
        raise UserError(f"--any-size: the shape of the weight {weight} depends on the image size; leave --any-size out")
    endpoints = list_endpoints(model.config, config.any_size)
    needed = {other for name in config.formats for other in FORMATS[name].needs}
    kinds: list[Format] = [kind() for name, kind in FORMATS.items() if name in {*config.formats, *needed}]
    with stage_export(config.to) as area:
        job = Job(config, provenance, endpoints, area)
        built = area / "built"
        built.mkdir()
        for kind in kinds:
            kind.prepare(job)
        LOG.info("folding the weights")
        exported: dict[bool, ExportedModel] = {}
        for first in sorted({kind.channels_first for kind in kinds}):
            exported[first] = ExportedModel(model, first, config.any_size, exported.get(False))
            require_no_problems(exported[first].find_faults())
        LOG.info("asking the Keras model for the right answers")
        vectors, source = _make_vectors(model, provenance.config.data, config.any_size)
        for first, networks in exported.items():
            vectors[f"weights/{'NCHW' if first else 'NHWC'}"] = digest_weights(networks.collect_arrays())
        vectors["metadata"] = np.array(json.dumps(provenance.metadata))
        vectors |= make_picture(model.config.image_shape, provenance.crop)
        np.savez_compressed(built / VECTORS, allow_pickle=False, **vectors)
        entries: dict[str, dict[str, Any]] = {}
        # {path of a part of the export, such as "savedmodel/3": {endpoint: name of its file}}
        parts: dict[str, dict[str, str]] = {}
        for kind in kinds:
            names, entries[kind.name] = _make_files(kind, job, exported[kind.channels_first], entries)
            if kind.name in config.formats:
                parts[job.name_part(kind)] = names
        published = {name: entries[name] for name in entries if name in config.formats}
        images = hide_image_path(source, provenance.config.data)
        card = make_model_card(provenance, endpoints, images, published, config.any_size)
        write_text(built / TEXT_NAME, render_model_card(card))
        write_json(built / JSON_NAME, card)
        for kind in kinds:
            if kind.has_versions and kind.name in published:
                write_json(job.locate_files(kind) / "assets.extra" / JSON_NAME, card)
        manifest = ExportManifest.from_folder(built, parts)
        write_json(built / MANIFEST, manifest.model_dump())
        changes = [f"{change}: {name}" for change, name in manifest.find_changes(built)]
        require_no_problems([*changes, *check_settings(built, card)])
        LOG.info("putting it in place")
        require_new_folder(config.to)
        with handle_signals(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM):
            os.rename(built, config.to)
    return [config.to.absolute() / name for name in (*parts, TEXT_NAME)]


def _make_vectors(model: DecoupledModel, data: DataConfig, any_size: bool) -> tuple[dict[str, np.ndarray], str]:
    """Returns the test vectors of an export, and a description of the real images among them."""
    shape = model.config.image_shape
    if not any_size:
        images, source = load_real_images(data, shape)
        return make_test_vectors(model, images), source
    sizes = choose_image_sizes(*shape[:2])
    vectors = {"sizes": np.array([f"{width}x{height}" for height, width in sizes])}
    for name, (height, width) in zip(vectors["sizes"], sizes, strict=True):
        images, source = load_real_images(data, (height, width, shape[-1]))
        made = make_test_vectors(model, images, any_size=True)
        vectors |= {f"{name}/{key}": array for key, array in made.items()}
    return vectors, source


def _make_files(
    kind: Format, job: Job, exported: ExportedModel, entries: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Writes the files of a format and compares them with the Keras model; raises RefusedError for wrong answers.

    Returns {endpoint: name of its file}, and the model card's entry for the format. `entries` are those of the formats
    before it.
    """
    part, folder = job.name_part(kind), job.locate_files(kind)
    names = kind.write(job, exported, folder)
    files = [f"{part}/{path.relative_to(folder).as_posix()}" for path in sorted(folder.rglob("*.*"))]
    entry: dict[str, Any] = {"files": [part] if kind.has_versions else files}
    if kind.runtime is not None and not kind.copied:
        LOG.info("verifying %s in a process of its own", kind.name)
        vectors = job.area / "built" / VECTORS
        report = compare_in_process(kind.name, folder / kind.inside, vectors, {"names": names})
        require_no_problems(report.problems)
        entry |= {"parity": report.parity, "round_trip": report.round_trip, **report.notes}
    return names, {**entry, **kind.describe(job, folder, entries)}
