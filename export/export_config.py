"""The config of one export, which is checked as far as possible before the run is opened."""

from __future__ import annotations

import dataclasses
import pathlib

from tfdecouple.errors import UserError
from tfdecouple.runtime.requirements import require

# Formats that are a folder of files, one for each endpoint that has a file name (`Endpoint.onnx`).
FILE_FORMATS = ("onnx", "litert")
FORMATS = ("savedmodel", *FILE_FORMATS, "web")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The run, the formats and the folder of one export.

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

    Raises:
        UserError: if a value is wrong; the message names it.
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
        """Raises UserError if a value is wrong, or options do not fit the formats."""
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
        if self.any_size and "web" in self.formats:
            raise UserError("--any-size is not for the format web, whose page has pictures at their own size anyway")
        if "litert" in self.formats:
            require("ai_edge_litert", what="the format litert")
        if self.version is not None:
            if not 1 <= self.version < 2**63:
                raise UserError(f"the version is {self.version}; it must be at least 1 and below 2**63")
            require_free_version(self.to / "savedmodel" / str(self.version))


def require_free_version(target: pathlib.Path) -> None:
    """Raises UserError if the folder of a SavedModel's version, `target`, exists already."""
    if target.exists():
        raise UserError(
            f"version {target.name} exists already in {target.parent}; leave --version out to take the next free number"
        )
