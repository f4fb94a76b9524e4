"""The formats of exported files: a class for each in the registry, with the modules that write and run the files.

Help, model card, manifest and verification follow from the classes. Heavy packages are imported in methods.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib.util
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from export import LOG
from export.formats.runtimes import REMOTE, LiteRTFiles, OnnxFiles, Report, Runtime, SavedModel
from tfdecouple.errors import UserError
from tfdecouple.storage.files import Facts
from tfdecouple.system.requirements import require_packages
from tfdecouple.visualization import guided_filter

if TYPE_CHECKING:
    from export.endpoints import Endpoint
    from export.exported_model import ExportedModel
    from export.provenance import Provenance
    from tfdecouple.config import ModelConfig

# The program that is published beside ONNX files and runs them with ONNX Runtime and NumPy alone, and its module.
CLIENT = (pathlib.Path(__file__).parents[1] / "client.py", pathlib.Path(guided_filter.__file__))


@dataclasses.dataclass
class Format(abc.ABC):
    """The base class of formats; the fields of a subclass are the options of `export` that are for this format alone.

    Attributes:
        name: the name of the option's value, and of the folder.
        files: a regular expression of the paths of all files in the folder.
        channels_first: whether the files contain networks for maps with channels first.
        has_versions: whether the files are in a folder whose name is the number of a version.
        runtime: the class that runs the files for the verification; None if nothing runs them.
        inside: the folder of the files that `runtime` opens, below the folder of the format.
    """

    name: ClassVar[str]
    files: ClassVar[str]
    channels_first: ClassVar[bool] = False
    has_versions: ClassVar[bool] = False
    runtime: ClassVar[type[Runtime] | None] = None
    inside: ClassVar[str] = ""

    @property
    def path(self) -> str:
        """The path of the format's files below the export folder, such as "savedmodel/3" or "onnx"."""
        return self.name

    def prepare(self, model: ModelConfig, endpoints: Sequence[Endpoint], scratch: pathlib.Path) -> None:
        """Raises UserError if the format cannot be written for this model; fetches what it needs into `scratch`."""
        return

    @abc.abstractmethod
    def write(self, exported: ExportedModel, provenance: Provenance, folder: pathlib.Path) -> dict[str, str]:
        """Writes the files into the new folder `folder`, and files that belong beside the folder of this format.

        Returns {endpoint that `runtime` calls: name of its file, without suffix}.
        """

    def describe(self, folder: pathlib.Path, names: Mapping[str, str], report: Report | None) -> Facts:
        """Returns entries of the model card; `names` is what `write` returned, `report` is None without `runtime`."""
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*.*"))}
        if report is None:
            return {"checked": "the folded weights were compared with the model's", "bytes": sizes}
        return {"parity": report.parity, "round_trip": report.round_trip, **report.notes, "bytes": sizes}

    def list_runtimes(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Yields (name, options of `compare_files`) of each package or provider here that can run the files."""
        if self.runtime is not None and importlib.util.find_spec(self.runtime.package.replace("-", "_")) is None:
            LOG.info("%s: %s is not installed here: not checked", self.name, self.runtime.package)
        elif self.runtime is not None:
            yield self.runtime.package, {}


@dataclasses.dataclass
class _SavedModelFormat(Format):
    endpoints: tuple[str, ...] = ()
    version: int | None = None

    name = "savedmodel"
    files = (
        r"(saved_model|fingerprint)\.pb|variables/variables\.(index|data-\d{5}-of-\d{5})"
        r"|assets\.extra/(model_card\.json|tf_serving_warmup_requests)"
    )
    has_versions, runtime = True, SavedModel

    @property
    def path(self) -> str:
        return f"{self.name}/{self.version or 1}"

    def prepare(self, model: ModelConfig, endpoints: Sequence[Endpoint], scratch: pathlib.Path) -> None:
        if self.version is not None and not 1 <= self.version < 2**63:
            raise UserError(f"the version is {self.version}; it must be at least 1 and below 2**63")
        offered = [endpoint.name for endpoint in endpoints]
        for name in self.endpoints:
            if name not in offered:
                raise UserError(f"this model has no endpoint {name!r}; it has {', '.join(offered)}")

    def write(self, exported: ExportedModel, provenance: Provenance, folder: pathlib.Path) -> dict[str, str]:
        from export.formats import saved_model

        offered = {endpoint.name: endpoint for endpoint in exported.endpoints}
        chosen = [offered[name] for name in dict.fromkeys(self.endpoints or offered)]
        saved_model.save_saved_model(exported, chosen, folder)
        saved_model.write_warmup_requests(folder, provenance.name, chosen)
        saved_model.write_serving_files(folder.parents[1], provenance.name)
        return {endpoint.name: endpoint.name for endpoint in chosen}

    def describe(self, folder: pathlib.Path, names: Mapping[str, str], report: Report | None) -> Facts:
        return {**super().describe(folder, names, report), "signatures": [*names]}


class _OnnxFormat(Format):
    name = "onnx"
    files, channels_first, runtime = r"\w+\.onnx", True, OnnxFiles

    def write(self, exported: ExportedModel, provenance: Provenance, folder: pathlib.Path) -> dict[str, str]:
        from export.formats import onnx as writer

        folder.mkdir()
        for path in CLIENT:
            shutil.copyfile(path, folder.parent / path.name)
        return writer.write_onnx_files(exported, provenance, folder)

    def list_runtimes(self) -> Iterator[tuple[str, dict[str, str]]]:
        import onnxruntime

        for provider in onnxruntime.get_available_providers():
            if provider == REMOTE:
                LOG.info("%s: %s computes on a server elsewhere: not checked", self.name, provider)
            else:
                yield provider, {"provider": provider}


class _LiteRTFormat(Format):
    name = "litert"
    files, runtime = r"\w+\.tflite", LiteRTFiles

    def prepare(self, model: ModelConfig, endpoints: Sequence[Endpoint], scratch: pathlib.Path) -> None:
        require_packages("ai_edge_litert", what="the format litert")

    def write(self, exported: ExportedModel, provenance: Provenance, folder: pathlib.Path) -> dict[str, str]:
        from export.formats import saved_model

        return saved_model.write_litert_files(exported, folder)


@dataclasses.dataclass
class _WebFormat(_OnnxFormat):
    web_runtime: pathlib.Path | None = None
    web_gpu: bool = False

    name = "web"
    files = r"\w+\.(js|html|css)|model/\w+\.(onnx|jpg|json)|runtime/[\w-][\w.-]*"
    inside = "model"

    def prepare(self, model: ModelConfig, endpoints: Sequence[Endpoint], scratch: pathlib.Path) -> None:
        from export.formats import web

        if "sample" not in [endpoint.name for endpoint in endpoints]:
            raise UserError("--any-size is not for the format web, whose page has pictures at their own size anyway")
        web.require_page_support(model)
        LOG.info("looking for onnxruntime-web")
        self.web_runtime = web.find_web_runtime(self.web_runtime, scratch, self.web_gpu)

    def write(self, exported: ExportedModel, provenance: Provenance, folder: pathlib.Path) -> dict[str, str]:
        from export.formats import web

        LOG.info("building the web page")
        assert self.web_runtime is not None
        return web.write_web_page(exported, provenance, folder, self.web_runtime, self.web_gpu)

    def describe(self, folder: pathlib.Path, names: Mapping[str, str], report: Report | None) -> Facts:
        assert report is not None
        trips = report.round_trip.values()
        kept, tried = (sum(trip[count] for trip in trips) for count in ("identical", "images"))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        LOG.info("  the page is %.1f MB", size / 1e6)
        checked = f"{kept} of {tried} images came back in ONNX Runtime in Python; no browser was tried"
        return {"files": ["web/index.html"], "checked": checked, "bytes": size}
