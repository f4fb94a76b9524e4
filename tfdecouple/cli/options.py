"""Options that several commands share, as annotated types; nothing here imports TensorFlow or NumPy."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from tfdecouple.data.image_formats import MOST_FILE_SIDE
from tfdecouple.errors import DataError, UserError


def within(least: float, most: float = 2**31 - 1, text: str | None = None) -> Parameter:
    """Returns the annotation of an option whose numbers lie from `least` to `most`; `text` is the option's help."""

    def require_bounds(_: Any, value: Any) -> None:
        for number in value if isinstance(value, Sequence) else [value]:
            # NaN is within no bounds.
            if number is not None and not least <= number <= most:
                bound = f"at most {most:,}" if number > most else f"at least {least:,}"
                raise ValueError(f"It must be {bound if abs(number) < math.inf else 'a finite number'}.")

    # An explicit help of None would hide that of a command's docstring.
    return Parameter(validator=require_bounds, help=text) if text else Parameter(validator=require_bounds)


# Paths are checked before TensorFlow is imported, which takes seconds.
def _require_results_folder(_: Any, path: pathlib.Path | None) -> None:
    existing = next((folder for folder in (path, *path.parents) if folder.exists()), None) if path else None
    if existing and not existing.is_dir():
        raise UserError(f"cannot write into {path}: {existing} is no folder; name another folder with --out")


def _require_images(_: Any, paths: tuple[str, ...] | str | None) -> None:
    for path in paths if isinstance(paths, tuple) else [paths]:
        if path is not None and not pathlib.Path(path).exists():
            raise DataError(f"there is no image {path}; give the path of a file, or of a folder with --reference")


# Exit statuses of programs, beside 0, 1, 2 and 130 (`system.process.run_program`).
EXIT_DIVERGED, EXIT_LOST, EXIT_FAILED, EXIT_INTERRUPTED = 3, 4, 5, 75

RunName = Annotated[
    str,
    Parameter(
        name="--run",
        help="run folder, also one in training; the bundled weights, photographs; or weights on the Hub, "
        "hf://OWNER/NAME",
    ),
]
Folder = Annotated[pathlib.Path, Parameter(validator=_require_results_folder)]
Out = Annotated[
    Folder | None,
    Parameter(name="--out", help="folder for the results; default RUN/pictures, or ./pictures where RUN is no folder"),
]
Photograph = Annotated[str, Parameter(validator=_require_images)]
Seed = Annotated[int, within(0, text="seed of all draws")]
Count = within(1, 100_000)
Devices = Annotated[int | None, within(1, 256, "use N GPUs, not all; without GPUs, N logical CPU devices")]
Settings = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        consume_multiple=False,
        help="change an option, such as --set model.alpha=0.5 or --set 'model.steps=[1,[2,2],2]'; can be repeated; "
        "`explain` lists the options",
    ),
]
Split = Annotated[
    Literal["train", "validation", "test", "all"] | None,
    Parameter(
        help="part of the data; default test, but all images of a folder without sub-folder train that the model was "
        "not trained on"
    ),
]
Pairing = Annotated[
    Literal["auto", "within", "across", "any"] | None,
    Parameter(
        help="pairs of the data set: within a label, across labels or any; default auto: within and across if there "
        "are labels"
    ),
]
# Multiples of a direction in z.
Amounts = Annotated[
    tuple[float, ...],
    within(
        -1000,
        1000,
        "multiples of the direction that are added to z, in standard deviations of its property over images; 0 gives "
        "the image itself",
    ),
]


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class DataSet:
    """The data set of a command.

    Attributes:
        data: the images: photographs, folder:PATH, or the name of a TFDS data set (docs/data.md); default those of the
            run.
        data_dir: folder of prepared TFDS data sets; default that of the run.
        download: download and prepare the TFDS data set if it is missing.
    """

    data: str | None = None
    data_dir: str | None = None
    download: bool = False


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of results for a user's photographs.

    Attributes:
        size: own: also write each result at the photograph's own size, where a guided filter repeats the change of
            colours that the model made at its size; model: only the picture at the model's size, whose pixels are
            exact.
        max_side: shrink larger photographs until both sides have at most N pixels.
        unlimited: at a photograph's own size, let differences of colours grow more than twofold, and clip values at
            black and white.
    """

    size: Literal["own", "model"] = "own"
    max_side: Annotated[int, within(1, MOST_FILE_SIDE)] = MOST_FILE_SIDE
    unlimited: bool = False


def require_pairs(command: str, files: Sequence[str], reference: str | None, source: DataSet, **options: Any) -> None:
    """Raises UserError for a user's `files` and one of the `options` of a data set, or for files that are no pairs.

    With a `reference`, the only file is a folder of photographs.
    """
    for name, value in {**options, **dataclasses.asdict(source)}.items():
        if files and value not in (None, False):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} is for images of a data set, and the command got {files[0]}; leave {option} out")
    if reference is None and len(files) % 2:
        raise UserError(f"{command} got {len(files)} images; it takes pairs, an even number")
