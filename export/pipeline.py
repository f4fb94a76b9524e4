"""From a run to a published export: build out of sight, pass the gate, put in place."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from export import manifest
from export.card import JSON_NAME, TEXT_NAME, card_text, make_card, merged
from export.deployed.deployed_model import DeployedModel
from export.endpoints import Endpoint, endpoints, onnx_names, page_names
from export.formats.file_formats import FILE_FORMATS, FileFormat, Sources, file_format
from export.formats.saved_model import save_saved_model, served_others, write_serving_files, write_warmup
from export.formats.web import build_page, examples_for, find_runtime, folder_bytes
from export.origin import Origin, open_run, without_path
from export.request import Request
from export.staging import Staging, interruptible, uninterrupted
from export.verification.archive import save_cases
from export.verification.cases import make_cases, real_images
from export.verification.check import Report
from export.verification.fold import weight_digests
from export.verification.gate import pass_gate
from tfdecouple.config.shapes import describe_images, is_square_of_rgb
from tfdecouple.errors import UserError, one_line
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.latent_directions import MEANS
from tfdecouple.runs.run_folder import SUMMARY
from tfdecouple.storage.files import write_json, write_text

# Published beside ONNX files: it runs them, with ONNX Runtime and NumPy alone.
CLIENT = pathlib.Path(__file__).with_name("client.py")
# Of the directions, which the page has a slider each for.
_MOST_SLIDERS = 100

# A disk, or the share of it that one may have.
_FULL = (errno.ENOSPC, errno.EDQUOT)
# TensorFlow has one error for a full disk and for memory that is used up.
_OUT_OF_MEMORY = re.compile("OOM|allocat|out of memory", re.IGNORECASE)

Say = Callable[[str], Any]


def export(request: Request, say: Say = print) -> list[pathlib.Path]:
    """Exports a run.

    Args:
        request: what and where to.
        say: is told each thing that takes its time.

    Returns:
        What was put in place.

    Raises:
        UserError: where the run cannot be opened, the disk is full, or the files do not pass the gate. Nothing of this
            export is visible then, and what was there before is untouched.
        MemoryError, ResourceExhaustedError: where memory is used up, likewise.
    """
    with interruptible():
        work = _Export(request, say)
        try:
            return work.run()
        except BrokenPipeError:
            # What `say` writes to went away; the program knows what to do then.
            raise
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise MemoryError(f"{error.strerror or error}") from error
            advice = "; free some space there" if error.errno in _FULL else ""
            raise UserError(f"cannot write to {request.to}: {error.strerror or error}{advice}") from error
        except tf.errors.OpError as error:
            reason, advice = one_line(error, first=True), ""
            if isinstance(error, tf.errors.ResourceExhaustedError):
                if _OUT_OF_MEMORY.search(str(error)):
                    raise
                reason, advice = os.strerror(errno.ENOSPC), "; free some space there"
            raise UserError(f"cannot write to {request.to}: {reason}{advice}") from error


class _Export:
    """One export on its way."""

    def __init__(self, request: Request, say: Say):
        self.request = request
        self._say = say
        self._begun = time.monotonic()
        self.say(f"opening {request.run}")
        self._model, self._origin = open_run(request.run, request.name)
        if self._origin.without_directions:
            self.say(f"directions are left out: {self._origin.without_directions}")
        if self._origin.without_summary:
            self.say(f"{SUMMARY} cannot be read and is left out: {self._origin.without_summary}")
        self._offered = _chosen(self._model, request.endpoints)
        # Where the cases that it is checked by are kept in the export folder; named when they are made.
        self._kept_cases = ""
        # How each part that is put in place is checked again.
        self._parts: dict[str, manifest.Part] = {}
        if "web" in request.formats and not self._model.config.has_latent:
            raise UserError("the web page switches z, and this model has none; leave the format web out")
        if "web" in request.formats and not is_square_of_rgb(self._model.config.image_shape):
            raise UserError(
                f"the web page takes squares of RGB, and this model {describe_images(self._model.config.image_shape)}; "
                "leave the format web out"
            )
        if "web" in request.formats and self._model.config.has_class_codes:
            raise UserError(
                "the web page knows no labels, and this model encodes an image by its label; leave the format web out, "
                "or train a model whose prior alone knows labels (model.prior=flow)"
            )

    def say(self, text: str) -> None:
        self._say(f"[{time.monotonic() - self._begun:4.0f} s] {text}")

    def run(self) -> list[pathlib.Path]:
        request, model, origin = self.request, self._model, self._origin
        with Staging(request.to) as staging:
            runtime = None
            if "web" in request.formats:
                self.say("looking for onnxruntime-web")
                runtime = find_runtime(request.web_runtime, _made(staging.area / "npm"), request.web_gpu)
            self.say("asking the Keras model for what the files must answer")
            images, checked_on = real_images(origin.config)
            checked_on = without_path(checked_on, origin.config)
            asked = make_cases(model, images, tell=self.say)
            wanted = (*request.formats, *(["onnx"] if runtime is not None else []))
            made = [file_format(name) for name in FILE_FORMATS if name in wanted]
            layouts = {one.layout for one in made} | ({"NHWC"} if "savedmodel" in request.formats else set())
            asked |= weight_digests(model, sorted(layouts))
            cases = staging.area / "cases.npz"
            save_cases(asked, cases)
            self._kept_cases = manifest.case_file(cases)
            formats: dict[str, Any] = {}
            sources = Sources(
                model=model,
                endpoints=tuple(one for one in endpoints(model.config) if one.onnx),
                metadata={**origin.metadata(), "name": origin.name},
                area=staging.area,
                say=self.say,
            )
            version = self._build_saved_model(staging)
            for one in made:
                one.write(sources, _made(staging.area / one.name))
            if version is not None:
                self._check_saved_model(staging, cases, version, formats)
            for one in made:
                self._check_files(one, sources, cases, formats)
            if runtime is not None:
                self.say("building the web page")
                models = page_names(model.config)
                about = {**describe(origin), "web_gpu": request.web_gpu}
                page = (staging.area / "web", staging.area / "onnx", runtime, about, models.values())
                build_page(*page)
                self._keep_part("web", "onnx", "web/model", {**self._parts["onnx"].options, "names": models})
                # What Python measured of the same model files says nothing of the page's own runtime.
                trips = formats["onnx"]["round_trip"].values()
                kept, tried = (sum(trip[count] for trip in trips) for count in ("identical", "images"))
                formats["web"] = {
                    **_about_files(origin, ["web/index.html"]),
                    "checked": {"python": f"ONNX Runtime gave {kept} of {tried} images back with the same models"},
                    "bytes": folder_bytes(staging.area / "web"),
                }
                self.say(f"  the page is {formats['web']['bytes'] / 1e6:.1f} MB")
            card = make_card(
                origin, endpoints(model.config), checked_on, {name: formats[name] for name in request.formats}
            )
            return self._publish(staging, card, version)

    def _build_saved_model(self, staging: Staging) -> int | None:
        model, offered = self._model, self._offered
        if "savedmodel" not in self.request.formats:
            return None
        folder = staging.area / "savedmodel"
        self.say("folding the weights")
        save_saved_model(DeployedModel.from_model(model), offered, folder, lambda name: self.say(f"SavedModel: {name}"))
        write_warmup(folder, self._origin.name, offered)
        return self.request.version or max(staging.versions(), default=0) + 1

    def _keep_part(self, name: str, runtime: Any, folder: str, options: dict[str, Any]) -> None:
        self._parts[name] = manifest.Part(runtime=runtime, folder=folder, cases=self._kept_cases, options=options)

    def _check_saved_model(self, staging: Staging, cases: pathlib.Path, version: int, formats: dict[str, Any]) -> None:
        part, signatures = f"savedmodel/{version}", [endpoint.name for endpoint in self._offered]
        timed = [name for name in onnx_names(self._model.config) if name in signatures]
        options = {"names": dict(zip(signatures, signatures, strict=True)), "metadata": {}}
        self.say("checking the SavedModel in a process of its own")
        report = pass_gate("savedmodel", staging.area / "savedmodel", cases, self.say, {**options, "timed": timed})
        self._keep_part(part, "savedmodel", part, options)
        formats["savedmodel"] = _entry(self._origin, report, [part])
        formats["savedmodel"]["signatures"] = signatures

    def _check_files(self, one: FileFormat, sources: Sources, cases: pathlib.Path, formats: dict[str, Any]) -> None:
        folder = sources.area / one.name
        self.say(f"checking the {one.title} files in a process of its own")
        options = {"names": sources.names, "metadata": dict(sources.metadata)}
        report = pass_gate(one.name, folder, cases, self.say, {**options, "timed": list(sources.names)})
        self._keep_part(one.name, one.name, one.name, options)
        files = sorted(path.name for path in folder.iterdir())
        formats[one.name] = _entry(self._origin, report, [f"{one.name}/{name}" for name in files])
        formats[one.name]["bytes"] = {name: (folder / name).stat().st_size for name in files}
        if one.name == "onnx" and one.name in self.request.formats:
            client = _made(sources.area / "files") / CLIENT.name
            shutil.copyfile(CLIENT, client)
            self.say(f"checking {CLIENT.name} in a process of its own")
            names = {name: name for name in ("encode", "decode", "switch") if name in _named(self._model)}
            of_client: dict[str, Any] = {"names": names, "metadata": {}, "client": str(client), "round_trip": False}
            formats[one.name]["client"] = pass_gate("client", folder, cases, self.say, of_client).parity

    def _publish(self, staging: Staging, card: dict[str, Any], version: int | None) -> list[pathlib.Path]:
        self.say("putting it in place")
        # All that can fail for want of room comes first; after it things are only renamed.
        files = _made(staging.area / "files")
        if version is not None:
            extra = _made(staging.area / "savedmodel" / "assets.extra")
            write_json(extra / JSON_NAME, card)
            write_serving_files(files, card["name"])
        whole = merged(card, staging.folder)
        write_json(files / JSON_NAME, whole)
        write_text(files / TEXT_NAME, card_text(json.loads(json.dumps(whole))))
        # What configures a server may have been edited since an earlier export wrote it.
        for file in sorted(files.iterdir()):
            if file.name in manifest.EDITABLE and (staging.folder / file.name).exists():
                file.unlink()
                if file.name == "models.config" and (others := served_others(staging.folder, card["name"])):
                    self.say(f"models.config is left as it is: it serves {others}, and not this model, {card['name']}")
        parts = {name: part for name, part in self._parts.items() if name.partition("/")[0] in self.request.formats}
        record, old_cases = self._manifest(staging, parts)
        write_json(staging.area / manifest.NAME, record.model_dump())
        published = []
        with uninterrupted():
            staging.put_file(staging.area / "cases.npz", self._kept_cases)
            if version is not None:
                staging.put_version(staging.area / "savedmodel", version)
                published.append(staging.folder / "savedmodel" / str(version))
            for name in (*FILE_FORMATS, "web"):
                if name in self.request.formats:
                    staging.put_folder(staging.area / name, name)
                    published.append(staging.folder / name)
            for file in sorted(files.iterdir()):
                staging.put_file(file)
            staging.put_file(staging.area / manifest.NAME)
            for name in old_cases:
                (staging.folder / name).unlink(missing_ok=True)
        return [*published, staging.folder / TEXT_NAME]

    def _manifest(self, staging: Staging, parts: dict[str, manifest.Part]) -> tuple[manifest.Manifest, set[str]]:
        """What the export folder will hold when all is put in place, and the cases of which it has no more need."""
        files = manifest.digests_in(staging.area / "files")
        files[self._kept_cases] = manifest.file_digest(staging.area / "cases.npz")
        for name in parts:
            files |= manifest.digests_in(staging.area / name.partition("/")[0], name)
        before = manifest.EMPTY
        if (staging.folder / manifest.NAME).exists():
            try:
                before = manifest.load(staging.folder)
            except UserError as error:
                self.say(f"the manifest is written anew, of this export alone, and nothing is removed: {error}")
        left, gone = before.without_removed(staging.folder)
        for name in sorted({*gone} - {*parts, *files}):
            self.say(f"{name} lies there no more and is left out of the manifest")
        # Settings of a server that lie there without a manifest.
        for name in manifest.EDITABLE:
            if name not in {*left.files, *files} and (staging.folder / name).is_file():
                files[name] = manifest.file_digest(staging.folder / name)
        whole = left.merged(parts, files)
        return whole, before.cases - whole.cases


def _named(model: DecoupledModel) -> dict[str, Endpoint]:
    return {endpoint.name: endpoint for endpoint in endpoints(model.config)}


def _chosen(model: DecoupledModel, names: Sequence[str]) -> tuple[Endpoint, ...]:
    every = _named(model)
    for name in names:
        if name not in every:
            raise UserError(f"this model has no endpoint {name!r}; it has {', '.join(every)}")
    return tuple(every[name] for name in dict.fromkeys(names)) or tuple(every.values())


def _entry(origin: Origin, report: Report, files: list[str]) -> dict[str, Any]:
    return {
        **_about_files(origin, files),
        "parity": report.parity,
        "round_trip": report.round_trip,
        "latency_ms": report.latency_ms,
        **report.notes,
    }


def _about_files(origin: Origin, files: list[str]) -> dict[str, Any]:
    """Whose files they are; by name and config a later export knows them again."""
    said = {"name": origin.name, "run": origin.run, "step": origin.step}
    return {**said, "config_sha256": origin.metadata()["config_sha256"], "files": files}


def describe(origin: Origin) -> dict[str, Any]:
    """Returns what the page is told of the model: figures, labels and directions."""
    bits = origin.bits_per_dim or {}
    found = [one for one in origin.directions or () if one.method == MEANS][:_MOST_SLIDERS]
    model = origin.config.model
    directions = [{"name": one.name, "vector": one.vector.tolist(), "told": one.describe_accuracy()} for one in found]
    return {
        **({"directions": directions} if directions else {}),
        **({"label_shares": list(model.label_shares)} if model.has_classes else {}),
        "name": origin.name,
        "image_shape": list(model.image_shape),
        "n_bits": model.n_bits,
        "centre_crop": origin.crop,
        "latent_dim": model.latent_dim,
        "bits_per_dim": bits.get("test", bits.get("validation")),
        "data": origin.data,
        "examples": examples_for(origin.config.data if origin.images_known else None),
    }


def _made(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
