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
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from export.card import (
    JSON_NAME,
    TEXT_NAME,
    make_model_card,
    merge_earlier_formats,
    render_model_card,
    require_same_model,
)
from export.deployed.deployed_model import DeployedModel
from export.endpoints import list_endpoints, list_onnx_names
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
from export.formats import FILE_FORMATS, FORMATS
from export.formats.litert import write_litert_files
from export.formats.onnx import write_onnx_files
from export.formats.runtimes import RUNTIMES
from export.formats.saved_model import save_saved_model, write_serving_files, write_warmup_requests
from export.formats.web import PAGE_MODELS, describe_model, find_web_runtime, require_page_support, write_web_page
from export.provenance import open_run
from export.verification.comparison import RefusedError, join_problems
from export.verification.folded_weights import digest_weights
from export.verification.vectors import choose_image_sizes, load_real_images, make_test_vectors
from export.verification.verify import check_settings, compare_in_process
from tfdecouple.errors import UserError, one_line
from tfdecouple.model.any_size import find_weight_of_fixed_size
from tfdecouple.runs.publishing import hide_image_path
from tfdecouple.runtime.requirements import require_packages
from tfdecouple.storage.files import FileDigest, write_json, write_text

# The program that is published beside ONNX files and runs them with ONNX Runtime and NumPy alone.
CLIENT = pathlib.Path(__file__).with_name("client.py")
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
        for option, value, owner in (
            ("--endpoints", " ".join(self.endpoints), "savedmodel"),
            ("--version", self.version, "savedmodel"),
            ("--web-runtime", self.web_runtime, "web"),
            ("--web-gpu", self.web_gpu, "web"),
        ):
            if value and owner not in self.formats:
                raise UserError(
                    f"{option if value is True else f'{option} {value}'} is for the format {owner} alone, and the "
                    f"formats are {', '.join(self.formats)}; leave it out, or add {owner} to --format"
                )
        if self.any_size and "web" in self.formats:
            raise UserError("--any-size is not for the format web, whose page has pictures at their own size anyway")
        if "litert" in self.formats:
            require_packages("ai_edge_litert", what="the format litert")
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
        self._names = list_onnx_names(self._model.config, config.any_size)
        offered = {endpoint.name: endpoint for endpoint in self._endpoints}
        for name in config.endpoints:
            if name not in offered:
                raise UserError(f"this model has no endpoint {name!r}; it has {', '.join(offered)}")
        self._signatures = [offered[name] for name in dict.fromkeys(config.endpoints or offered)]
        if "web" in config.formats:
            require_page_support(self._model.config)
        # The model card records these facts, so that a later export into this folder can compare its model.
        self._about: dict[str, Any] = {
            **{name: getattr(self._provenance, name) for name in ("name", "run", "step")},
            "config_sha256": self._provenance.make_metadata()["config_sha256"],
            "any_size": config.any_size,
        }
        require_same_model(config.to, config.formats, self._about)
        # The entries of the model card, by format, and of the manifest, by part of the export such as "savedmodel/3".
        self._formats: dict[str, dict[str, Any]] = {}
        self._parts: dict[str, Part] = {}

    def build_and_publish(self) -> list[pathlib.Path]:
        """Builds, verifies and publishes the exported files; returns the paths of new folders and of the model card."""
        config, provenance = self._config, self._provenance
        # The web page contains the ONNX files, so they are built even if the format onnx is not requested.
        needed = {*config.formats, *(["onnx"] if "web" in config.formats else [])}
        written = [name for name in FILE_FORMATS if name in needed]
        with Staging(config.to) as staging:
            runtime = None
            if "web" in config.formats:
                self._report("looking for onnxruntime-web")
                runtime = find_web_runtime(config.web_runtime, _make_folder(staging.area / "npm"), config.web_gpu)
            self._report("folding the weights")
            layouts = {RUNTIMES[name].layout for name in needed - {"web"}}
            deployed = {layout: DeployedModel(self._model, layout) for layout in sorted(layouts)}
            self._report("asking the Keras model for the right answers")
            digests = digest_weights(self._model, deployed)
            vectors, source = self._make_vectors()
            # Programs that call the files need these entries of the metadata, so the verification compares them.
            facts = provenance.make_metadata()
            metadata = {name: facts[name] for name in ("image_shape", "n_bits", "d_z", "crop")}
            vectors |= {**digests, "metadata": np.array(json.dumps(metadata))}
            np.savez_compressed(staging.area / _VECTORS, allow_pickle=False, **vectors)
            version = None
            if "savedmodel" in config.formats:
                version = config.version or max(staging.list_versions(), default=0) + 1
                self._make_saved_model(staging.area, deployed["NHWC"], f"savedmodel/{version}")
            for name in written:
                self._make_files(staging.area, name, deployed[RUNTIMES[name].layout])
            if runtime is not None:
                self._make_page(staging.area, runtime)
            formats = {name: self._formats[name] for name in config.formats}
            card = make_model_card(provenance, self._endpoints, hide_image_path(source, provenance.config), formats)
            return self._publish(staging, card, version)

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

    def _make_saved_model(self, area: pathlib.Path, deployed: DeployedModel, part: str) -> None:
        """Writes and verifies a SavedModel; `part` is its path in the export folder, such as "savedmodel/3"."""
        names = {endpoint.name: endpoint.name for endpoint in self._signatures}
        folder = area / "savedmodel"
        save_saved_model(deployed, self._signatures, folder, lambda name: self._report(f"SavedModel: {name}"))
        write_warmup_requests(folder, self._provenance.name, self._signatures)
        self._verify_files("savedmodel", "SavedModel", folder, part, names, [part])
        self._formats["savedmodel"]["signatures"] = [*names]

    def _make_files(self, area: pathlib.Path, name: str, deployed: DeployedModel) -> None:
        chosen = [endpoint for endpoint in self._endpoints if endpoint.onnx]
        folder = _make_folder(area / name)
        if name == "onnx":
            metadata = {**self._provenance.make_metadata(), "name": self._provenance.name}
            write_onnx_files(deployed, chosen, metadata, folder, self._report)
        else:
            write_litert_files(deployed, chosen, folder, self._report)
        sizes = {file: digest.bytes for file, digest in digest_folder(folder).items()}
        paths = [f"{name}/{file}" for file in sizes]
        self._verify_files(name, f"{name} files", folder, name, self._names, paths)
        self._formats[name]["bytes"] = sizes

    def _verify_files(
        self, name: str, title: str, folder: pathlib.Path, part: str, names: Mapping[str, str], paths: list[str]
    ) -> None:
        """Compares the files in `folder` with the Keras model, and records the result for model card and manifest.

        `name` is the format, and `title` names it in messages. `part` is the path that the folder gets in the export
        folder, and `paths` are the paths that the files get there. `names` is {endpoint: name of its file, without
        suffix}. Raises RefusedError if answers of the files are wrong.
        """
        self._report(f"verifying the {title} in a process of its own")
        file = folder.parent / _VECTORS
        found = compare_in_process(name, folder, file, {"names": dict(names)}, self._report)
        if found.problems:
            raise RefusedError(f"not published: {join_problems(found.problems)}")
        self._parts[part] = Part(vectors=name_vectors_file(file), names=dict(names))
        measured = {"parity": found.parity, "round_trip": found.round_trip, **found.notes}
        self._formats[name] = {**self._about, "files": paths, **measured}

    def _make_page(self, area: pathlib.Path, runtime: pathlib.Path) -> None:
        self._report("building the web page")
        models = {name: file for name, file in self._names.items() if file in PAGE_MODELS}
        about = {**describe_model(self._provenance), "web_gpu": self._config.web_gpu}
        write_web_page(area / "web", area / "onnx", runtime, about)
        self._parts["web"] = self._parts["onnx"].model_copy(update={"names": models})
        # The model card counts images that the ONNX files decode exactly in Python, because no browser was tried.
        trips = self._formats["onnx"]["round_trip"].values()
        kept, tried = (sum(trip[count] for trip in trips) for count in ("identical", "images"))
        self._formats["web"] = {
            **self._about,
            "files": ["web/index.html"],
            "checked": f"{kept} of {tried} images came back in ONNX Runtime in Python; no browser was tried",
            "bytes": sum(path.stat().st_size for path in (area / "web").rglob("*") if path.is_file()),
        }
        self._report(f"  the page is {self._formats['web']['bytes'] / 1e6:.1f} MB")

    def _publish(self, staging: Staging, card: dict[str, Any], version: int | None) -> list[pathlib.Path]:
        self._report("putting it in place")
        # All files are written before the first is renamed into place, so that a full disk leaves no half export.
        files, vectors = _make_folder(staging.area / "files"), staging.area / _VECTORS
        if version is not None:
            write_json(_make_folder(staging.area / "savedmodel" / "assets.extra") / JSON_NAME, card)
            write_serving_files(files, card["name"])
        if "onnx" in self._config.formats:
            shutil.copyfile(CLIENT, files / CLIENT.name)
        merged = merge_earlier_formats(card, staging.folder)
        write_json(files / JSON_NAME, merged)
        write_text(files / TEXT_NAME, render_model_card(merged))
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
            if version is not None:
                staging.publish_version(staging.area / "savedmodel", version)
                published.append(staging.folder / "savedmodel" / str(version))
            for name in (*FILE_FORMATS, "web"):
                if name in self._config.formats:
                    staging.publish_folder(staging.area / name, name)
                    published.append(staging.folder / name)
            for file in sorted(files.iterdir()):
                staging.publish_file(file)
            staging.publish_file(staging.area / MANIFEST)
            for name in old_vectors:
                (staging.folder / name).unlink(missing_ok=True)
        return [*published, staging.folder / TEXT_NAME]

    def _make_manifest(self, staging: Staging, vectors: str) -> tuple[Manifest, set[str]]:
        """Returns the new manifest, and paths of old test vectors that it does not need; `vectors` is a path."""
        formats = self._config.formats
        parts = {name: part for name, part in self._parts.items() if name.partition("/")[0] in formats}
        files = digest_folder(staging.area / "files")
        files[vectors] = FileDigest.from_file(staging.area / _VECTORS)
        for name in parts:
            built = staging.area / name.partition("/")[0]
            if planted := find_planted_files(built, name):
                raise RefusedError(
                    f"not published: {planted[0]} is no file of the export; let no other program write there"
                )
            files |= digest_folder(built, f"{name}/")
        before = Manifest(format=1, parts={}, files={})
        if (staging.folder / MANIFEST).exists():
            try:
                before = load_manifest(staging.folder)
            except UserError as error:
                self._report(f"the manifest is written anew, of this export alone, and nothing is removed: {error}")
        after = before.record_export(staging.folder, parts, files)
        return after, before.vectors - after.vectors


def _make_folder(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
