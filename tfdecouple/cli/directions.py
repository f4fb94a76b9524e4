"""`python -m tfdecouple directions`: the directions in z that change a label or a number of images."""

from __future__ import annotations

import argparse
import itertools
import math
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tfdecouple.cli import options as arguments
from tfdecouple.errors import DataError, UserError, nearest
from tfdecouple.runtime.process import start_tensorflow

if TYPE_CHECKING:
    import numpy as np

    from tfdecouple.cli.run_images import OpenedRun
    from tfdecouple.data import Source
    from tfdecouple.data.attributes import Attributes
    from tfdecouple.runs.latent_directions import Direction

# Images that directions are found in, and as many held out, where the user asks for no other number.
_IMAGES = 10_000
_MOST_DIRECTIONS = 1000


def add_parser(commands: Any) -> None:
    """Describes the arguments."""
    parser = arguments.command(
        commands,
        "directions",
        "find the directions in z that change a label or a number of images",
        "In training images, for each label unless told otherwise; how well each tells held-out images apart is "
        "printed. They are kept in the run folder as directions.json, beside those of other names that are there "
        "already, and a picture shows steps along each. `edit` and the exported page take them from there.",
    )
    # Not weights that were trained already, as of other commands: nothing could be kept there.
    parser.add_argument("--run", required=True, metavar="RUN", help="run folder, which keeps the directions")
    arguments.add_out(parser)
    arguments.add_data(parser, split="validation")
    parser.add_argument("--label-pairs", action="store_true", help="from one label to another, for each pair of labels")
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="of these labels only")
    parser.add_argument(
        "--attributes",
        metavar="FILE",
        help="for each number of a CSV file instead: a line of names, then a line an image that begins with its file's "
        "name. A column of two values is taken as a label",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=0,
        metavar="N",
        help=f"training images, drawn, and as many of --split (default at most {_IMAGES:,})",
    )
    arguments.add_amounts(parser)
    arguments.add_drawing(parser, 3, "images in a picture, of --split")


def run(options: argparse.Namespace) -> int:
    """Writes directions.json into the run folder, and direction-NAME.png for each.

    Raises:
        UserError: for impossible arguments, a run without weights or z, images without labels or that cannot be read.
    """
    arguments.check(options)
    arguments.at_least(options, "images", 0)
    amounts = arguments.amounts(options)
    if options.attributes and (options.labels or options.label_pairs):
        raise UserError("--attributes excludes --labels and --label-pairs: give one of them, then the other")
    start_tensorflow()
    from tfdecouple.cli.run_images import open_data, open_run
    from tfdecouple.data.attributes import read_attributes
    from tfdecouple.runs import is_folder, weights_sha256
    from tfdecouple.runs.latent_directions import LONGEST_NAME, Directions

    if not is_folder(options.run):
        raise UserError(
            f"directions are kept in a run folder, and {options.run} is none; make one of it first, with "
            f"python -m tfdecouple publish --run {options.run} --to DIR"
        )
    attributes = read_attributes(options.attributes) if options.attributes else None
    opened = open_run(options, z_for="directions")
    source = open_data(opened, options)
    if options.split == "train":
        raise UserError("--split is 'train', which directions are found in; take validation or test")
    wanted = _of_numbers(attributes) if attributes else _of_labels(source, options)
    for name in wanted:
        if len(name) > LONGEST_NAME:
            raise UserError(
                f"the direction {name[:40]!r}... would have a name of {len(name)} characters, and {LONGEST_NAME} are "
                "the most; shorten that of the label or of the column"
            )
    if attributes:
        attributes.require_one_each(source.keys())
    training = _read(opened, source, "train", options, attributes)
    held_out = _read(opened, source, options.split, options, attributes)
    about = {"data": source.title, "source": source.name, "split": options.split, "seed": options.seed}
    found = _found(wanted, training, held_out, options.seed, about)
    weights = weights_sha256(opened.model)
    path = _merged(Directions(weights, opened.facts(), tuple(found)), opened).write(pathlib.Path(opened.path))
    for line in _table(found):
        print(line)
    print(f"{path}: {len(found)} directions in z", flush=True)
    _show(opened, source, options, amounts, found)
    return 0


class _Read(NamedTuple):
    """Images of a split: z float32 `[n, d_z]`, labels int32 `[n]`, numbers float64 `[n, columns]`."""

    z: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray


# Of some images: whether each is one (1), is none (0) or does not count (NaN); or its number.
_Values = Callable[[_Read], "np.ndarray"]


def _read(
    opened: OpenedRun, source: Source, split: str, options: argparse.Namespace, attributes: Attributes | None
) -> _Read:
    """Reads images, drawn, and encodes them."""
    import numpy as np

    from tfdecouple.cli.run_images import drawn_indices
    from tfdecouple.data.labels import checked_labels

    indices = np.sort(drawn_indices(source, split, options.images or _IMAGES, options.seed))
    z, labels = opened.z_and_labels(source, split, indices, f"encoding images of {split}")
    numbers = np.zeros((len(indices), 0))
    if attributes is not None:
        if source.skipped:
            raise DataError(
                f"{source.skipped} images of {source.title} cannot be read, and which number is whose is not known "
                "then; mend or remove them"
            )
        numbers = attributes.of([source.key(split, index) for index in indices.tolist()])
        if np.isnan(numbers).all():
            example = source.key(split, int(indices[0]))
            raise DataError(
                f"{attributes.path} has no row for any of {len(indices)} images of {split}, such as {example}; "
                "its first column must name the files"
            )
    return _Read(z, checked_labels(source, labels), numbers)


def _of_labels(source: Source, options: argparse.Namespace) -> dict[str, _Values]:
    """Returns by name what is wanted of labels.

    Raises:
        DataError: for a source without labels.
        UserError: for a label that is none, or too many pairs.
    """
    import numpy as np

    if len(source.label_names) < 2:
        raise DataError(
            f"{source.title} has {len(source.label_names)} labels, and directions need two or more, as sub-folders "
            "give; or give numbers by file name with --attributes"
        )
    number = {name: label for label, name in enumerate(source.label_names)}
    chosen = list(dict.fromkeys(options.labels or source.label_names))
    for name in chosen:
        if name not in number:
            raise UserError(f"--labels has {name!r}, which no image has{nearest(name, source.label_names)}")
    if not options.label_pairs:

        def among_all(label: int) -> _Values:
            return lambda read: np.where(read.labels < 0, math.nan, read.labels == label)

        return {name: among_all(number[name]) for name in _few(chosen, len(chosen))}
    pairs = _few(itertools.combinations(chosen, 2), math.comb(len(chosen), 2))
    if not pairs:
        raise UserError("--label-pairs needs two labels; name more with --labels")

    def between(first: int, second: int) -> _Values:
        return lambda read: np.where(
            np.isin(read.labels, (first, second)), np.where(read.labels == second, 1.0, 0.0), math.nan
        )

    return {f"{first} to {second}": between(number[first], number[second]) for first, second in pairs}


def _of_numbers(attributes: Attributes) -> dict[str, _Values]:
    def column(place: int) -> _Values:
        return lambda read: read.numbers[:, place]

    return {name: column(place) for place, name in enumerate(_few(attributes.names, len(attributes.names)))}


def _few(things: Any, count: int) -> list[Any]:
    if count > _MOST_DIRECTIONS:
        raise UserError(
            f"these are {count:,} directions, and at most {_MOST_DIRECTIONS:,} are found at once; name fewer labels"
        )
    return list(things)


def _found(
    wanted: dict[str, _Values], training: _Read, held_out: _Read, seed: int, about: dict[str, Any]
) -> list[Direction]:
    """Finds the directions that the images allow; tells which they do not.

    Raises:
        DataError: where they allow none.
    """
    import dataclasses

    import numpy as np

    from tfdecouple.metrics.base import say
    from tfdecouple.metrics.direction_finding import LEAST, direction_of_a_label, direction_of_a_number
    from tfdecouple.runtime.progress import Counter

    found: list[Direction] = []
    with Counter("finding directions", len(wanted), unit="directions") as counter:
        for number, (name, values) in enumerate(wanted.items(), 1):
            of_training, of_held_out = values(training), values(held_out)
            known, held = ~np.isnan(of_training), ~np.isnan(of_held_out)
            z, of_training = training.z[known], of_training[known]
            held_z, of_held_out = held_out.z[held], of_held_out[held]
            kinds, counts = np.unique(of_training, return_counts=True)
            if len(kinds) < 2 or counts.sum() < 2 * LEAST or (len(kinds) == 2 and counts.min() < LEAST):
                say(f"no direction {name}: it needs {LEAST} images of two kinds, and there are {counts.tolist()}")
            elif len(kinds) == 2:
                has, held_has = of_training == kinds[1], of_held_out == kinds[1]
                found += direction_of_a_label(name, z, has, held_z, held_has, seed)
            else:
                found += direction_of_a_number(name, z, of_training, held_z, of_held_out)
            counter(number)
    if not found:
        raise DataError("the images allow no direction: take more of them, or others with --data")
    return [dataclasses.replace(one, figures={**one.figures, **about}) for one in found]


def _merged(found: Any, opened: OpenedRun) -> Any:
    """Returns the directions with those of other names that the run has of the same weights.

    Raises:
        UserError: where these are too many for one file.
    """
    import dataclasses

    from tfdecouple.errors import RunError
    from tfdecouple.metrics.base import say
    from tfdecouple.runs.latent_directions import MOST

    try:
        before = opened.directions()
    except RunError as error:
        # Of other weights or damaged: these are of no use any more.
        say(f"directions.json is written anew: {error}")
        before = None
    kept = () if before is None else tuple(one for one in before if one.name not in found.names)
    if len(kept) + len(found) > MOST:
        raise UserError(
            f"directions.json of {opened.path} has {len(kept):,} directions of other names already, and may have "
            f"{MOST:,} in all; move it away to begin anew"
        )
    return dataclasses.replace(found, directions=(*kept, *found.directions))


def _table(found: Sequence[Direction]) -> list[str]:
    width = max(len(one.name) for one in found)
    lines = [f"{'direction':{max(width, 9)}}  method      on held-out images"]
    for one in found:
        figures = one.figures
        if figures["kind"] == "number":
            told = "no figure: all of one number" if figures["r2"] is None else f"R^2 {figures['r2']:.3f}"
            told += f", {figures['held_out']:,} images"
        elif figures["accuracy"] is None:
            told = "no figure: all of one kind"
        else:
            told = (
                f"accuracy {100 * figures['accuracy']:.1f} % +- {100 * figures['standard_error']:.1f}, AUROC "
                f"{figures['auroc']:.3f}, {figures['held_out_with']:,} and {figures['held_out_without']:,} images"
            )
        lines.append(f"{one.name:{max(width, 9)}}  {one.method:10}  {told}")
    lines.append("accuracy: mean of the shares told right of images with it and without it; chance is 50 %")
    return lines


def _show(
    opened: OpenedRun, source: Source, options: argparse.Namespace, amounts: list[float], found: Sequence[Direction]
) -> None:
    """Writes a picture for each name: rows of images, each by both methods."""
    import numpy as np

    from tfdecouple.cli.output import save_picture
    from tfdecouple.cli.run_images import drawn_indices, label_names, load_chosen
    from tfdecouple.runtime.progress import Counter
    from tfdecouple.visualization.grids import edit_grid

    indices = drawn_indices(source, options.split, options.count, options.seed)
    pixels, labels = load_chosen(source, options.split, indices)
    pixels = np.asarray(opened.model.quantize_images(pixels))
    facts = {
        "data": source.title,
        "split": options.split,
        "indices": indices.tolist(),
        "labels": label_names(source, labels),
        "seed": options.seed,
        "amounts": amounts,
    }
    names = list(dict.fromkeys(one.name for one in found))
    done = 0
    with Counter("pictures", len(found) * len(pixels) * len(amounts)) as counter:
        for name, file in zip(names, _file_names(names), strict=True):
            mine = [one for one in found if one.name == name]
            note = f"Images: {source.title}, {options.split}. {opened.note()}"
            vectors = {one.method: one.vector for one in mine}
            picture = edit_grid(opened.model, pixels, vectors, amounts, name, note)
            says = f"steps along {name} of {len(pixels)} images"
            figures = {one.method: dict(one.figures) for one in mine}
            save_picture(opened, options, f"direction-{file}", picture, says, **facts, direction=name, found=figures)
            counter(done := done + len(mine) * len(pixels) * len(amounts))


def _file_names(names: Sequence[str]) -> list[str]:
    """Returns a plain name of a file for each direction, no two alike whatever the system holds for the same.

    >>> _file_names(["rocket", "a/b", "A b", "..."])
    ['rocket', 'a-b', 'A-b-2', 'direction']
    """
    made: list[str] = []
    taken: set[str] = set()
    for name in names:
        plain = re.sub(r"[^\w.-]+", "-", name)[:80].strip("-.") or "direction"
        number = 1
        while (file := plain if number == 1 else f"{plain}-{number}").lower() in taken:
            number += 1
        taken.add(file.lower())
        made.append(file)
    return made
