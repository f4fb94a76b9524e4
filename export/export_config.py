"""The config of one export. Mistakes that show without the run are refused before it is opened."""

from __future__ import annotations

import dataclasses
import pathlib

from tfdecouple.errors import UserError
from tfdecouple.runtime.requirements import require

# The formats of one file for each endpoint (`Endpoint.onnx`), in a folder of the same name.
FILE_FORMATS = ("onnx", "litert")
FORMATS = ("savedmodel", *FILE_FORMATS, "web")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The run, the formats and the folder of one export.

    Attributes:
        run: run folder, or the name or address of bundled or published weights.
        to: export folder.
        formats: some of `FORMATS`.
        endpoints: names of the SavedModel's signatures; () for all.
        version: number of the SavedModel's version; None for the next free one.
        name: of the model; None for the run folder's.
        web_runtime: folder of onnxruntime-web; None lets npm fetch it.
        web_gpu: whether the web page has the runtime for graphics cards, too.

    Raises:
        UserError: for a value that is wrong, naming it.
    """

    run: str | pathlib.Path
    to: pathlib.Path
    formats: tuple[str, ...] = ("savedmodel", "onnx")
    endpoints: tuple[str, ...] = ()
    version: int | None = None
    name: str | None = None
    web_runtime: pathlib.Path | None = None
    web_gpu: bool = False

    def __post_init__(self) -> None:
        """Refuses wrong values."""
        for name in self.formats or ("",):
            if name not in FORMATS:
                there_is = f"there is no format {name!r}" if name else "no format is given"
                raise UserError(f"{there_is}; there are {', '.join(FORMATS)}")
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
        if "litert" in self.formats:
            require("ai_edge_litert", what="the format litert")
        if self.version is not None:
            if not 1 <= self.version < 2**63:
                raise UserError(f"the version is {self.version}; it must be at least 1 and below 2**63")
            require_free_version(self.to / "savedmodel" / str(self.version))


def require_free_version(target: pathlib.Path) -> None:
    """Raises UserError if the version of a SavedModel exists already."""
    if target.exists():
        raise UserError(
            f"version {target.name} exists already in {target.parent}; leave --version out to take the next free number"
        )
