"""From a run to a published export: build out of sight, pass the gate, put in place."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from export import manifest
from export.card import JSON_NAME, TEXT_NAME, card_text, make_card, merged
from export.deployed.deployed_model import DeployedModel
from export.endpoints import Endpoint, endpoints, onnx_names, page_names
from export.formats.files import FILE_FORMATS, FileFormat, Sources, file_format
from export.formats.saved_model import save_saved_model, write_serving_files, write_warmup
from export.formats.web import build_page, examples_for, find_runtime
from export.origin import Origin, open_run, without_path
from export.request import Request
from export.staging import Staging, interruptible, uninterrupted
from export.verification.arrays import Report, save_cases
from export.verification.cases import known_kept, make_cases, real_images
from export.verification.check_folder import card_problems, page_problems, served_others, serving_problems
from export.verification.fold import weight_digests
from export.verification.folder import part_of
from export.verification.run import Process, RefusedError, further_checks, listed, pass_gate, run_client
from tfdecouple.errors import UserError, one_line
from tfdecouple.image_shapes import described, square
from tfdecouple.model import DecoupledModel
from tfdecouple.runs import SUMMARY
from tfdecouple.runs.directions import MEANS
from tfdecouple.storage.files import write_json, write_text

# Published beside ONNX files: it runs them, with ONNX Runtime and NumPy alone.
CLIENT = pathlib.Path(__file__).with_name("client.py")
# Of the directions, which the page has a slider each for.
_MOST_SLIDERS = 100

# A disk, or the share of it that one may have.
_FULL = (errno.ENOSPC, errno.EDQUOT)
# TensorFlow has one error for a full disk and for memory that is used up.
_OUT_OF_MEMORY = re.compile("OOM|allocat|out of memory", re.IGNORECASE)

# Seconds until processes that are ended are looked at again.
_PAUSE = 0.05

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
        if "web" in request.formats and square(self._model.config.image_shape) is None:
            raise UserError(
                f"the web page takes squares of RGB, and this model {described(self._model.config.image_shape)}; leave "
                "the format web out"
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
                runtime = find_runtime(request.web_runtime, _made(staging.area / "npm"))
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
            with self._saved_model_checked(staging, cases, version, formats):
                for one in made:
                    one.write(sources, _made(staging.area / one.name))
            for one in made:
                self._check_files(one, sources, cases, formats)
            if runtime is not None:
                self.say("building the web page")
                models = page_names(model.config)
                page = (staging.area / "web", staging.area / "onnx", runtime, describe(origin), models.values())
                build_page(*page)
                _refuse(page_problems(*page))
                options = {**self._parts["onnx"].options, "names": models}
                self._parts["web"] = part_of("check_onnx", "web/model", self._kept_cases, options)
                # What Python measured of the same model files says nothing of the page's own runtime.
                trips = formats["onnx"]["round_trip"].values()
                kept, tried = (sum(trip[count] for trip in trips) for count in ("identical", "images"))
                python = f"ONNX Runtime for Python gave {kept} of {tried} images back with those of the model"
                checked = {"digest": f"all files; {python}"}
                formats["web"] = {**_about_files(origin, ["web/index.html"]), "checked": checked}
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

    @contextlib.contextmanager
    def _saved_model_checked(
        self, staging: Staging, cases: pathlib.Path, version: int | None, formats: dict[str, Any]
    ) -> Iterator[None]:
        """Checks the SavedModel, where there is one, beside what is done within; what fails there ends the check."""
        if version is None:
            yield
            return
        part, signatures = f"savedmodel/{version}", [endpoint.name for endpoint in self._offered]
        timed = [name for name in onnx_names(self._model.config) if name in signatures]
        options: dict[str, Any] = {"endpoints": signatures, "name": self._origin.name, "timed": timed}
        self.say("checking the SavedModel in a process of its own")
        processes: list[Process] = []
        over = threading.Event()

        def leave_alone() -> None:
            over.set()
            for process in processes:
                if process.stdin:
                    process.stdin.close()

        def started(process: Process) -> None:
            processes.append(process)
            if over.is_set():
                leave_alone()

        def check() -> Report:
            def tell(text: str) -> None:
                self.say(f"{text} (SavedModel)")

            folder = staging.area / "savedmodel"
            return pass_gate("check_saved_model", folder, cases, tell=tell, started=started, **options)

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            checked = pool.submit(check)
            try:
                yield
                leave_alone()
                self.say("waiting for the check of the SavedModel")
                report = checked.result()
            except BaseException:
                checked.cancel()
                while not checked.done():
                    for process in processes:
                        process.kill()
                    time.sleep(_PAUSE)
                raise
        self._tell(report)
        self._parts[part] = part_of("check_saved_model", part, self._kept_cases, options)
        formats["savedmodel"] = _entry(self._origin, report, [part])
        formats["savedmodel"]["signatures"] = signatures

    def _check_files(self, one: FileFormat, sources: Sources, cases: pathlib.Path, formats: dict[str, Any]) -> None:
        folder = sources.area / one.name
        self.say(f"checking the {one.title} files in a process of its own")
        options = one.options(sources)
        report = self._pass_gate(one.check, folder, cases, **options)
        self._parts[one.name] = part_of(one.check, one.name, self._kept_cases, options)
        files = sorted(path.name for path in folder.iterdir())
        formats[one.name] = _entry(self._origin, report, [f"{one.name}/{name}" for name in files])
        formats[one.name]["bytes"] = {name: (folder / name).stat().st_size for name in files}
        for package, check in further_checks(one.check).items():
            self.say(f"checking the {one.title} files in {package}")
            other = self._pass_gate(check, folder, cases, **options)
            entry = {"parity": other.parity, "round_trip": other.round_trip, **other.notes}
            formats[one.name].setdefault("runtimes", {})[package] = entry
        if one.name == "onnx" and one.name in self.request.formats:
            shutil.copyfile(CLIENT, _made(sources.area / "files") / CLIENT.name)
            client = sources.area / "files" / CLIENT.name
            formats[one.name]["client"] = run_client(client, folder, lambda: known_kept(self._model))
            self.say(f"  {CLIENT.name}: {formats[one.name]['client']}")

    def _pass_gate(self, check: str, folder: pathlib.Path, cases: pathlib.Path, **options: Any) -> Report:
        """Runs a check, and tells what it measured."""
        report = pass_gate(check, folder, cases, tell=self.say, **options)
        self._tell(report)
        return report

    def _tell(self, report: Report) -> None:
        """Tells what a check measured."""
        for endpoint, outputs in report.parity.items():
            for output, figures in outputs.items():
                if "differing" in figures:
                    text = f"{figures['differing']:.4%} of subpixels differ, max {figures['max']:.0f} levels"
                else:
                    text = f"max {figures['max']:.1e}, mean {figures['mean']:.1e} of the largest value"
                self.say(f"  {endpoint}: {output}: {text}")
        trips = ", ".join(f"{kind} {e['identical']}/{e['images']}" for kind, e in report.round_trip.items())
        if trips:
            self.say(f"  identical after encode and decode: {trips}")

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
        _refuse(card_problems(files / JSON_NAME, whole, files / TEXT_NAME))
        if version is not None:
            _refuse(card_problems(extra / JSON_NAME, card))
            _refuse(serving_problems(files, card["name"]))
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


def _refuse(problems: Iterable[str]) -> None:
    if found := list(problems):
        raise RefusedError(f"not published: {listed(found)}")


def _chosen(model: DecoupledModel, names: Sequence[str]) -> tuple[Endpoint, ...]:
    every = {endpoint.name: endpoint for endpoint in endpoints(model.config)}
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
    directions = [{"name": one.name, "vector": one.vector.tolist(), "told": one.told()} for one in found]
    return {
        **({"directions": directions} if directions else {}),
        **({"label_shares": list(model.label_shares)} if model.has_classes else {}),
        "name": origin.name,
        "image_size": model.image_size,
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
