"""The formats of exported files: a class for each in the registry, with the modules that write and run the files.

Options, help, model card, manifest and verification follow from the classes. Heavy packages are imported in methods.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib.util
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from export import LOG
from export.formats.runtimes import REMOTE, LiteRTFiles, OnnxFiles, Runtime, SavedModel
from tfdecouple.errors import UserError
from tfdecouple.system.requirements import require_packages
from tfdecouple.visualization import guided_filter

if TYPE_CHECKING:
    from export.endpoints import Endpoint
    from export.exported_model import ExportedModel
    from export.provenance import Provenance

# The program that is published beside ONNX files and runs them with ONNX Runtime and NumPy alone, and its module.
CLIENT = (pathlib.Path(__file__).parents[1] / "client.py", pathlib.Path(guided_filter.__file__))
# The folder of the Markdown templates, one for each format, with code that runs the exported files.
_TEMPLATES = pathlib.Path(__file__).parents[1] / "calls"


@dataclasses.dataclass(frozen=True)
class Job:
    """One export, for the formats: what is exported, and where its files are built.

    Attributes:
        config: the options, an `ExportConfig`.
        provenance: the run of the weights.
        endpoints: the endpoints of the model.
        area: a hidden folder for files that are not published; its folder `built` becomes the export folder.
    """

    config: Any
    provenance: Provenance
    endpoints: Sequence[Endpoint]
    area: pathlib.Path

    @property
    def onnx_files(self) -> dict[str, str]:
        """The endpoints with an ONNX or LiteRT file, {endpoint: name of its file, without suffix}."""
        return {endpoint.name: endpoint.onnx for endpoint in self.endpoints if endpoint.onnx}

    def name_part(self, kind: Format) -> str:
        """Returns the path of a format's files below the export folder, such as "savedmodel/3" or "onnx"."""
        return f"{kind.name}/{self.config.version or 1}" if kind.has_versions else kind.name

    def locate_files(self, kind: Format) -> pathlib.Path:
        """Returns the folder into which this export writes the files of a format."""
        return (self.area / "built" if kind.name in self.config.formats else self.area) / self.name_part(kind)


class Format(abc.ABC):
    """The base class of formats.

    Attributes:
        name: the name of the option's value, and of the folder.
        summary: a description in a few words for the help.
        files: a regular expression of the paths of all files in the folder.
        options: the fields of `ExportConfig` that are for this format alone.
        needs: the formats that are built first, even if they are not published.
        channels_first: whether the files contain networks for maps with channels first.
        has_versions: whether the files are in a folder whose name is the number of a version.
        runtime: the class that runs the files for the verification; None if nothing runs them.
        inside: the folder of the files that `runtime` opens, below the folder of the format.
        copied: whether `runtime` opens copies of files of another format, which the export verified there.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    files: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    channels_first: ClassVar[bool] = False
    has_versions: ClassVar[bool] = False
    runtime: ClassVar[type[Runtime] | None] = None
    inside: ClassVar[str] = ""
    copied: ClassVar[bool] = False

    def require_support(self, config: Any) -> None:
        """Raises UserError if the format cannot be written with the options `config`, before the run is opened."""
        return

    def prepare(self, job: Job) -> None:
        """Raises UserError if the format cannot be written for this model; fetches what the format needs."""
        return

    @abc.abstractmethod
    def write(self, job: Job, exported: ExportedModel, folder: pathlib.Path) -> dict[str, str]:
        """Writes the files into the new folder `folder`, and files that belong beside the folder of this format.

        Returns {endpoint that `runtime` calls: name of its file, without suffix}. `exported` has the folded networks,
        with channels first if the attribute `channels_first` says so.
        """

    def describe(self, job: Job, folder: pathlib.Path, entries: Mapping[str, Any]) -> dict[str, Any]:
        """Returns further entries of the model card; without `runtime` "checked", how the files were checked.

        `entries` are the model card's entries for the formats that this one `needs`.
        """
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*.*"))}
        checked = {} if self.runtime else {"checked": "the folded weights were compared with the model's"}
        return {"bytes": sizes, **checked}

    def list_runtimes(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Yields (name, options of `compare_files`) of each package or provider here that can run the files."""
        if self.runtime is not None:
            if importlib.util.find_spec(self.runtime.package.replace("-", "_")) is None:
                LOG.info("%s: %s is not installed here: not checked", self.name, self.runtime.package)
            else:
                yield self.runtime.package, {}

    def read_example(self) -> str:
        """Returns a Markdown template with code that runs the files; "" if there is none."""
        path = _TEMPLATES / f"{self.name}.md"
        return path.read_text(encoding="utf-8") if path.is_file() else ""


class _SavedModelFormat(Format):
    name, summary = "savedmodel", "a SavedModel for TensorFlow Serving"
    files = (
        r"(saved_model|fingerprint)\.pb|variables/variables\.(index|data-\d{5}-of-\d{5})"
        r"|assets\.extra/(model_card\.json|tf_serving_warmup_requests)"
    )
    options, has_versions, runtime = ("endpoints", "version"), True, SavedModel

    def write(self, job: Job, exported: ExportedModel, folder: pathlib.Path) -> dict[str, str]:
        from export.formats import saved_model

        chosen = self._choose_endpoints(job)
        saved_model.save_saved_model(exported, chosen, folder)
        saved_model.write_warmup_requests(folder, job.provenance.name, chosen)
        saved_model.write_serving_files(folder.parents[1], job.provenance.name)
        return {endpoint.name: endpoint.name for endpoint in chosen}

    def prepare(self, job: Job) -> None:
        self._choose_endpoints(job)

    def describe(self, job: Job, folder: pathlib.Path, entries: Mapping[str, Any]) -> dict[str, Any]:
        return {"signatures": [endpoint.name for endpoint in self._choose_endpoints(job)]}

    def _choose_endpoints(self, job: Job) -> list[Endpoint]:
        offered = {endpoint.name: endpoint for endpoint in job.endpoints}
        for name in job.config.endpoints:
            if name not in offered:
                raise UserError(f"this model has no endpoint {name!r}; it has {', '.join(offered)}")
        return [offered[name] for name in dict.fromkeys(job.config.endpoints or offered)]


class _OnnxFormat(Format):
    name, summary = "onnx", "files for ONNX Runtime"
    files, channels_first, runtime = r"\w+\.onnx", True, OnnxFiles

    def write(self, job: Job, exported: ExportedModel, folder: pathlib.Path) -> dict[str, str]:
        import onnx

        from export.formats import onnx as writer

        folder.mkdir()
        metadata = {**job.provenance.metadata, "name": job.provenance.name}
        for endpoint in job.endpoints:
            if endpoint.onnx:
                LOG.info("ONNX: %s", endpoint.onnx)
                model = writer.build_onnx(exported, endpoint, {**metadata, "endpoint": endpoint.name})
                onnx.save(model, folder / f"{endpoint.onnx}.onnx")
        for path in CLIENT:
            shutil.copyfile(path, folder.parent / path.name)
        return job.onnx_files

    def list_runtimes(self) -> Iterator[tuple[str, dict[str, str]]]:
        import onnxruntime

        for provider in onnxruntime.get_available_providers():
            if provider == REMOTE:
                LOG.info("%s: %s computes on a server elsewhere: not checked", self.name, provider)
            else:
                yield provider, {"provider": provider}


class _LiteRTFormat(Format):
    name, summary = "litert", "LiteRT files for phones"
    files, runtime = r"\w+\.tflite", LiteRTFiles

    def require_support(self, config: Any) -> None:
        require_packages("ai_edge_litert", what="the format litert")

    def write(self, job: Job, exported: ExportedModel, folder: pathlib.Path) -> dict[str, str]:
        from export.formats import litert

        folder.mkdir()
        litert.write_litert_files(exported, [endpoint for endpoint in job.endpoints if endpoint.onnx], folder)
        return job.onnx_files


class _WebFormat(_OnnxFormat):
    name, summary = "web", "a static web page"
    files = r"\w+\.(js|html|css)|model/\w+\.(onnx|jpg|json)|runtime/[\w-][\w.-]*"
    options, needs, inside, copied = ("web_runtime", "web_gpu"), ("onnx",), "model", True

    def require_support(self, config: Any) -> None:
        if config.any_size:
            raise UserError("--any-size is not for the format web, whose page has pictures at their own size anyway")

    def prepare(self, job: Job) -> None:
        from export.formats import web

        web.require_page_support(job.provenance.config.model)
        LOG.info("looking for onnxruntime-web")
        npm = job.area / "npm"
        npm.mkdir()
        web.find_web_runtime(job.config.web_runtime, npm, job.config.web_gpu)

    def write(self, job: Job, exported: ExportedModel, folder: pathlib.Path) -> dict[str, str]:
        from export.formats import web

        LOG.info("building the web page")
        about = {**web.describe_model(job.provenance), "web_gpu": job.config.web_gpu}
        npm = job.area / "npm"
        runtime_files = web.find_web_runtime(job.config.web_runtime or npm, npm, job.config.web_gpu)
        web.write_web_page(folder, job.locate_files(_OnnxFormat()), runtime_files, about)
        return {name: file for name, file in job.onnx_files.items() if file in web.PAGE_MODELS}

    def describe(self, job: Job, folder: pathlib.Path, entries: Mapping[str, Any]) -> dict[str, Any]:
        # The model card counts images that the ONNX files decode exactly in Python, because no browser was tried.
        trips = entries["onnx"]["round_trip"].values()
        kept, tried = (sum(trip[count] for trip in trips) for count in ("identical", "images"))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        LOG.info("  the page is %.1f MB", size / 1e6)
        checked = f"{kept} of {tried} images came back in ONNX Runtime in Python; no browser was tried"
        return {"files": ["web/index.html"], "checked": checked, "bytes": size}
