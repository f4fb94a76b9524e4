"""What to export, refused before anything is opened where it is known to be wrong."""

from __future__ import annotations

import dataclasses
import pathlib

from export.formats.file_formats import FILE_FORMATS, file_format
from export.staging import taken
from tfdecouple.errors import UserError
from tfdecouple.runtime.extras import require

FORMATS = ("savedmodel", *FILE_FORMATS, "web")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to export.

    Attributes:
        run: run folder, or the name or address of weights that were trained already.
        to: export folder.
        formats: some of `FORMATS`.
        endpoints: names of the SavedModel's signatures; () for all.
        version: number of the SavedModel's version; None for the next free one.
        name: of the model; None for the run folder's.
        web_runtime: folder of onnxruntime-web; None lets npm fetch it.
        web_gpu: whether the web page has the runtime for graphics cards, too.
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
        """Refuses what is known to be wrong before anything is opened.

        Raises:
            UserError: naming the value.
        """
        for name in self.formats:
            if name not in FORMATS:
                raise UserError(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
        if not self.formats:
            raise UserError(f"no format is given; there are {', '.join(FORMATS)}")
        for option, given, of in (
            ("--endpoints", " ".join(self.endpoints), "savedmodel"),
            ("--version", self.version, "savedmodel"),
            ("--web-runtime", self.web_runtime, "web"),
            ("--web-gpu", self.web_gpu, "web"),
        ):
            if given and of not in self.formats:
                shown = option if given is True else f"{option} {given}"
                raise UserError(
                    f"{shown} is for the format {of} alone, and the formats are {', '.join(self.formats)}; "
                    f"leave it out, or add {of} to --format"
                )
        for name in self.formats:
            if name in FILE_FORMATS:
                require(*file_format(name).packages, what=f"the format {name}")
        if self.version is not None:
            if not 1 <= self.version < 2**63:
                raise UserError(f"the version is {self.version}; it must be at least 1 and below 2**63")
            target = self.to / "savedmodel" / str(self.version)
            if target.exists():
                raise UserError(taken(target))
