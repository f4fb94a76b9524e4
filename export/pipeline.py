"""The steps of an export: open the run, build the files, verify them, and rename them into the export folder."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from export.card import JSON_NAME, TEXT_NAME, make_model_card, render_model_card, require_replaceable_export
from export.endpoints import list_endpoints
from export.export_folder import (
    EDITABLE,
    MANIFEST,
    Manifest,
    Part,
    Staging,
    digest_folder,
    find_planted_files,
    ignore_interruptions,
    interrupt_on_sigterm,
    load_manifest,
    name_vectors_file,
    require_free_version,
)
from export.exported_model import ExportedModel
from export.formats import FORMATS, Format, Job
from export.provenance import open_run
from export.verification.comparison import RefusedError, digest_weights, join_problems
from export.verification.vectors import choose_image_sizes, load_real_images, make_test_vectors
from export.verification.verify import check_settings, compare_in_process
from tfdecouple.errors import UserError, one_line
from tfdecouple.model.any_size import find_weight_of_fixed_size
from tfdecouple.runs.publishing import hide_image_path
from tfdecouple.storage.files import FileDigest, write_json, write_text

# Name of the file of test vectors (inputs and the Keras model's answers) in the hidden folder where files are built.
_VECTORS = "vectors.npz"
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
        to: the export folder.
        formats: the formats to write, from `FORMATS`.
        endpoints: the endpoints that the SavedModel has as signatures; () for all.
        any_size: whether the files encode and decode images of any height and width.
        version: the number of the SavedModel's version; None for the next free number.
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
            if name not in FORMATS:
                raise UserError(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
        for name, one in FORMATS.items():
            for field in one.options:
                value, option = getattr(self, field), f"--{field.replace('_', '-')}"
                if value and name not in self.formats:
                    shown = "" if value is True else f" {' '.join(value) if isinstance(value, tuple) else value}"
                    raise UserError(
                        f"{option}{shown} is for the format {name} alone, and the formats are "
                        f"{', '.join(self.formats)}; leave it out, or add {name} to --format"
                    )
        for name in self.formats:
            FORMATS[name].require_support(self)
        if self.version is not None:
            if not 1 <= self.version < 2**63:
                raise UserError(f"the version is {self.version}; it must be at least 1 and below 2**63")
            require_free_version(self.to / "savedmodel" / str(self.version))


def export(config: ExportConfig, report: Callable[[str], Any] = print) -> list[pathlib.Path]:
    """Exports a run and returns the new paths: the SavedModel's version, folders of other formats, the model card.

    If an error is raised, the export folder has no file of this export, and earlier files are unchanged. `report` is
    called with lines of progress.

    Raises:
        UserError: if the run cannot be opened, the disk is full, or the files do not pass their verification.
        MemoryError, ResourceExhaustedError: if memory is exhausted.
    """
    with interrupt_on_sigterm():
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
            raise UserError(
                f"--any-size: weight {weight} of this model has the size of its images; leave --any-size out"
            )
        self._endpoints = list_endpoints(self._model.config, config.any_size)
        require_replaceable_export(config.to, config.formats, self._provenance.name)
        self._formats = {name: FORMATS[name] for name in FORMATS if name in config.formats}
        needed = {other for one in self._formats.values() for other in one.needs}
        self._built = [one for name, one in FORMATS.items() if name in self._formats or name in needed]
        # The entries of the manifest, by format.
        self._parts: dict[str, Part] = {}

    def build_and_publish(self) -> list[pathlib.Path]:
        """Builds, verifies and publishes the exported files; returns the paths of new folders and of the model card."""
        config = self._config
        with Staging(config.to) as staging:
            job = Job(config, self._provenance, self._endpoints, staging.area, self._report)
            for one in self._built:
                one.prepare(job)
            self._version = config.version or max(staging.list_versions(), default=0) + 1
            self._report("folding the weights")
            for first in sorted({one.channels_first for one in self._built if not one.copied}):
                job.exported[first] = ExportedModel(self._model, first, config.any_size)
                if problems := [*job.exported[first].find_faults()]:
                    raise RefusedError(f"not published: {join_problems(problems)}")
            self._report("asking the Keras model for the right answers")
            vectors, source = self._make_vectors()
            for first, exported in job.exported.items():
                vectors[f"weights/{'NCHW' if first else 'NHWC'}"] = digest_weights(exported.collect_arrays())
            # Programs that call the files need these entries of the metadata, so the verification compares them.
            facts = self._provenance.make_metadata()
            metadata = {name: facts[name] for name in ("image_shape", "n_bits", "d_z", "crop")}
            vectors["metadata"] = np.array(json.dumps(metadata))
            np.savez_compressed(staging.area / _VECTORS, allow_pickle=False, **vectors)
            for one in self._built:
                self._make_files(one, job)
            entries = {name: job.entries[name] for name in self._formats}
            source = hide_image_path(source, self._provenance.config)
            card = make_model_card(self._provenance, self._endpoints, source, entries)
            return self._publish(staging, job, card)

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

    def _name_part(self, one: Format) -> str:
        """Returns the path of a format's files in the export folder, such as "onnx" or "savedmodel/3"."""
        return f"{one.name}/{self._version}" if one.has_versions else one.name

    def _make_files(self, one: Format, job: Job) -> None:
        """Writes the files of a format, compares them with the Keras model, and records both for card and manifest.

        Raises RefusedError if answers of the files are wrong.
        """
        folder, vectors, part = job.area / one.name, job.area / _VECTORS, self._name_part(one)
        names = one.write(job, folder)
        entry: dict[str, Any] = {key: getattr(self._provenance, key) for key in ("name", "run", "step")}
        entry["files"] = [part] if one.has_versions else [f"{part}/{file}" for file in digest_folder(folder)]
        entry["any_size"] = self._config.any_size
        if one.runtime is not None and not one.copied:
            self._report(f"verifying the {one.title} in a process of its own")
            found = compare_in_process(one.name, folder / one.inside, vectors, {"names": names}, self._report)
            if found.problems:
                raise RefusedError(f"not published: {join_problems(found.problems)}")
            entry |= {"parity": found.parity, "round_trip": found.round_trip, **found.notes}
        job.entries[one.name] = {**entry, **one.describe(job, folder)}
        self._parts[one.name] = Part(vectors=name_vectors_file(vectors), names=names)

    def _publish(self, staging: Staging, job: Job, card: dict[str, Any]) -> list[pathlib.Path]:
        self._report("putting it in place")
        # All files are written before the first is renamed into place, so that a full disk leaves no half export.
        files, vectors = staging.area / "files", staging.area / _VECTORS
        files.mkdir()
        for one in self._formats.values():
            one.write_beside(job, files)
            if one.has_versions:
                assets = staging.area / one.name / "assets.extra"
                assets.mkdir(exist_ok=True)
                write_json(assets / JSON_NAME, card)
        write_json(files / JSON_NAME, card)
        write_text(files / TEXT_NAME, render_model_card(card))
        # Settings of a server from an earlier export are kept, because the user may have edited them.
        for name in EDITABLE:
            if (staging.folder / name).is_file():
                shutil.copyfile(staging.folder / name, files / name)
        if problems := [*check_settings(files, staging.area, card)]:
            raise RefusedError(f"not published: {join_problems(problems)}")
        record, old_vectors = self._make_manifest(staging, name_vectors_file(vectors))
        write_json(staging.area / MANIFEST, record.model_dump())
        published = []
        with ignore_interruptions():
            staging.publish_file(vectors, name_vectors_file(vectors))
            for one in self._formats.values():
                built, part = staging.area / one.name, self._name_part(one)
                staging.publish_version(built, part) if one.has_versions else staging.publish_folder(built, part)
                published.append(staging.folder / part)
            for file in sorted(files.iterdir()):
                staging.publish_file(file)
            staging.publish_file(staging.area / MANIFEST)
            for name in old_vectors:
                (staging.folder / name).unlink(missing_ok=True)
        return [*published, staging.folder / TEXT_NAME]

    def _make_manifest(self, staging: Staging, vectors: str) -> tuple[Manifest, set[str]]:
        """Returns the new manifest, and paths of old test vectors that it does not need; `vectors` is a path."""
        files = digest_folder(staging.area / "files")
        files[vectors] = FileDigest.from_file(staging.area / _VECTORS)
        for one in self._formats.values():
            built, part = staging.area / one.name, self._name_part(one)
            if planted := find_planted_files(built, part):
                raise RefusedError(
                    f"not published: {planted[0]} is no file of the export; let no other program write there"
                )
            files |= digest_folder(built, f"{part}/")
        before = Manifest(format=1, parts={}, files={})
        if (staging.folder / MANIFEST).exists():
            try:
                before = load_manifest(staging.folder)
            except UserError as error:
                self._report(f"the manifest is written anew, of this export alone, and nothing is removed: {error}")
        parts = {self._name_part(one): self._parts[name] for name, one in self._formats.items()}
        after = before.record_export(staging.folder, parts, files)
        return after, before.vectors - after.vectors
