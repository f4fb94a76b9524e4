"""The steps of an export: open the run, build and verify all files in a hidden folder, and rename the folder once."""

import dataclasses
import errno
import json
import os
import pathlib
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

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
from tfdecouple.data.sources import choose_user_crop, hide_image_path
from tfdecouple.errors import UserError, one_line
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


def export(config: ExportConfig, report: Callable[[str], Any] = print) -> list[pathlib.Path]:
    """Exports a run and returns the new paths: the SavedModel's version, folders of other formats, the model card.

    The files are built and verified in a hidden folder beside the export folder, which is then renamed. If an error is
    raised, there is no export folder. `report` is called with lines of progress.

    Raises:
        UserError: if the run cannot be opened, the disk is full, or the files do not pass their verification.
        MemoryError, ResourceExhaustedError: if memory is exhausted.
    """
    # After SIGTERM an export cleans up as after Ctrl-C.
    with handle_signals(signal.default_int_handler, signal.SIGTERM):
        exporter = _Exporter(config, report)
        try:
            return exporter.build_and_publish()
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


class _Exporter:
    """Carries out one export: the constructor opens the run, and the methods build, verify and publish the files."""

    def __init__(self, config: ExportConfig, report: Callable[[str], Any]):
        self._config = config
        begun = time.monotonic()
        self._report = lambda text: report(f"[{time.monotonic() - begun:4.0f} s] {text}")
        self._report(f"opening {config.run}")
        self._model, self._provenance = open_run(config.run, config.name)
        for file, reason in self._provenance.omissions.items():
            self._report(f"{file} cannot be used and is left out: {reason}")
        if config.any_size and (weight := find_weight_of_fixed_size(self._model.config)):
            text = f"--any-size: the shape of the weight {weight} depends on the image size; leave --any-size out"
            raise UserError(text)
        self._endpoints = list_endpoints(self._model.config, config.any_size)
        needed = {other for name in config.formats for other in FORMATS[name].needs}
        self._built: list[Format] = [kind() for name, kind in FORMATS.items() if name in {*config.formats, *needed}]
        self._formats = {kind.name: kind for kind in self._built if kind.name in config.formats}
        # The entries of the manifest, {path of a part such as "savedmodel/3": {endpoint: name of its file}}.
        self._parts: dict[str, dict[str, str]] = {}

    def build_and_publish(self) -> list[pathlib.Path]:
        """Builds and verifies the export, and renames it; returns the paths of its folders and of the model card."""
        config = self._config
        with stage_export(config.to) as area:
            built = area / "built"
            built.mkdir()
            job = Job(config, self._provenance, self._endpoints, area, self._report)
            for kind in self._built:
                kind.prepare(job)
            self._report("folding the weights")
            for first in sorted({kind.channels_first for kind in self._built if not kind.copied}):
                other = next(iter(job.exported.values()), None)
                job.exported[first] = ExportedModel(self._model, first, config.any_size, other)
                require_no_problems(job.exported[first].find_faults())
            self._report("asking the Keras model for the right answers")
            vectors, source = self._make_vectors()
            for first, exported in job.exported.items():
                vectors[f"weights/{'NCHW' if first else 'NHWC'}"] = digest_weights(exported.collect_arrays())
            vectors["metadata"] = np.array(json.dumps(self._provenance.metadata))
            vectors |= make_picture(self._model.config.image_shape, choose_user_crop(self._provenance.config.data))
            np.savez_compressed(built / VECTORS, allow_pickle=False, **vectors)
            for kind in self._built:
                self._make_files(kind, job)
            self._complete_export(built, job, hide_image_path(source, self._provenance.config.data))
            self._report("putting it in place")
            require_new_folder(config.to)
            with handle_signals(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM):
                os.rename(built, config.to)
        return [config.to.absolute() / name for name in (*self._parts, TEXT_NAME)]

    def _make_vectors(self) -> tuple[dict[str, np.ndarray], str]:
        data, shape = self._provenance.config.data, self._model.config.image_shape
        if not self._config.any_size:
            images, source = load_real_images(data, shape)
            return make_test_vectors(self._model, images, self._report), source
        sizes = choose_image_sizes(*shape[:2])
        vectors = {"sizes": np.array([f"{width}x{height}" for height, width in sizes])}
        for name, (height, width) in zip(vectors["sizes"], sizes, strict=True):
            images, source = load_real_images(data, (height, width, shape[-1]))
            made = make_test_vectors(self._model, images, self._report, any_size=True)
            vectors |= {f"{name}/{key}": array for key, array in made.items()}
        return vectors, source

    def _make_files(self, kind: Format, job: Job) -> None:
        """Writes the files of a format, compares them with the Keras model, and records both for card and manifest.

        Raises RefusedError if answers of the files are wrong.
        """
        published = kind.name in self._formats
        built = job.area / "built"
        part = f"{kind.name}/{self._config.version or 1}" if kind.has_versions else kind.name
        folder = job.folders[kind.name] = (built if published else job.area) / part
        names = kind.write(job, folder)
        files = [f"{part}/{path.relative_to(folder).as_posix()}" for path in sorted(folder.rglob("*.*"))]
        entry: dict[str, Any] = {"files": [part] if kind.has_versions else files}
        if kind.runtime is not None and not kind.copied:
            self._report(f"verifying {kind.name} in a process of its own")
            found = compare_in_process(kind.name, folder / kind.inside, built / VECTORS, {"names": names}, self._report)
            require_no_problems(found.problems)
            entry |= {"parity": found.parity, "round_trip": found.round_trip, **found.notes}
        job.entries[kind.name] = {**entry, **kind.describe(job, folder)}
        if published:
            self._parts[part] = names

    def _complete_export(self, built: pathlib.Path, job: Job, images: str) -> None:
        """Writes model card and manifest, and verifies that `built` has exactly the files that they name."""
        entries = {name: job.entries[name] for name in self._formats}
        card = make_model_card(self._provenance, self._endpoints, images, entries, self._config.any_size)
        text = render_model_card(card)
        write_text(built / TEXT_NAME, text)
        write_json(built / JSON_NAME, card)
        for name, kind in self._formats.items():
            if kind.has_versions:
                write_json(job.folders[name] / "assets.extra" / JSON_NAME, card)
        manifest = ExportManifest.from_folder(built, self._parts)
        write_json(built / MANIFEST, manifest.model_dump())
        problems = [f"{change}: {name}" for change, name in manifest.find_changes(built)]
        problems += check_settings(built, card)
        require_no_problems(problems)
