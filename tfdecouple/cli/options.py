"""Options that several commands share, as annotated types; nothing here imports TensorFlow or NumPy."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from tfdecouple.data.image_formats import MOST_FILE_SIDE
from tfdecouple.errors import UserError


def within(least: float, most: float = 2**31 - 1, text: str | None = None) -> Parameter:
    """Returns the annotation of an option whose numbers lie from `least` to `most`; `text` is the option's help."""
    validator = validators.Number(gte=least, lte=most)
    # An explicit help of None would hide that of a command's docstring.
    return Parameter(validator=validator, help=text) if text else Parameter(validator=validator)


def _require_results_folder(_: object, path: pathlib.Path | None) -> None:
    existing = next((folder for folder in (path, *path.parents) if folder.exists()), None) if path else None
    if existing and not existing.is_dir():
        raise UserError(f"cannot write into {path}: {existing} is no folder; name another folder with --out")


def _require_photograph(_: object, path: pathlib.Path | None) -> None:
    if path is not None and not path.exists():
        raise UserError(f"{path} does not exist; name a photograph, or a folder of them")


# Paths are checked before TensorFlow is imported, which takes seconds.
Folder = Annotated[pathlib.Path, Parameter(validator=_require_results_folder)]
Photograph = Annotated[pathlib.Path, Parameter(validator=_require_photograph)]
RunName = Annotated[
    str,
    Parameter("--run", help="run folder, also one in training; bundled weights: photographs; or hf://OWNER/NAME"),
]
Out = Annotated[
    Folder | None,
    Parameter("--out", help="folder for the results; default RUN/pictures, or ./pictures where RUN is no folder"),
]
Seed = Annotated[int, within(0, text="seed of all draws")]
Count = within(1, 100_000)
Devices = Annotated[int | None, within(1, 256, "use N GPUs, not all; without GPUs, N logical CPU devices")]
Settings = Annotated[
    tuple[str, ...],
    Parameter(
        "--set",
        consume_multiple=False,
        help="change an option, such as --set model.alpha=0.5 or --set 'model.steps=[1,[2,2],2]'; can be repeated; "
        "`explain` lists the options",
    ),
]
Amounts = Annotated[
    tuple[float, ...],
    within(-1000, 1000, "multiples of the direction, in standard deviations of its property; 0 gives the image itself"),
]


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class DataSet:
    """The data set of a command, and the part of it that the command reads.

    Attributes:
        data: photographs, folder:PATH, or the name of a TFDS data set (docs/data.md); default that of the run.
        data_dir: folder of prepared TFDS data sets; default that of the run.
        download: download and prepare the TFDS data set if it is missing.
        split: part of the data; default, if not named above: test, or all of a folder that is not the run's.
    """

    data: str | None = None
    data_dir: str | None = None
    download: bool = False
    split: Literal["train", "validation", "test", "all"] | None = None


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of results for a user's photographs.

    Attributes:
        size: own: also write each result at the photograph's own size, by a guided filter; model: only the picture.
        max_side: shrink larger photographs until both sides have at most N pixels.
        unlimited: at the own size, let differences of colours grow more than twofold, and clip at black and white.
    """

    size: Literal["own", "model"] = "own"
    max_side: Annotated[int, within(1, MOST_FILE_SIDE)] = MOST_FILE_SIDE
    unlimited: bool = False


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class PairOptions(DataSet, Sizes):
    """The options of a command that takes pairs of photographs, or draws pairs of images of a data set.

    Attributes:
        count: number of pairs of the data set; default 10, of interpolate 1.
    """

    count: Annotated[int | None, Count] = None
    seed: Seed = 0

    def require_pairs(self, command: str, files: Sequence[pathlib.Path], reference: pathlib.Path | None = None) -> None:
        """Raises UserError for an odd number of photographs, or if an option of the data set is given with them.

        With a `reference`, the only file is a folder of photographs.
        """
        names = ("data", "data_dir", "download", "split", "count")
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name)]
        if files and given:
            instead = f"and the command got {files[0]}; leave {given[0]} out"
            raise UserError(f"{given[0]} is for images of a data set, {instead}")
        if reference is None and len(files) % 2:
            raise UserError(f"{command} got {len(files)} images; it takes pairs, an even number")
