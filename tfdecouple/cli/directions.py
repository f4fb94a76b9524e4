"""`python -m tfdecouple directions`: finds directions in z for labels, numbers such as an age, or image statistics."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tfdecouple.cli.options import make_file_name
from tfdecouple.config.shapes import RGB_CHANNELS
from tfdecouple.errors import DataError, RunError, UserError, make_printable, nearest

if TYPE_CHECKING:
    import numpy as np

    from tfdecouple.data import Source
    from tfdecouple.data.labels import Attributes
    from tfdecouple.runs.latent_directions import Direction
    from tfdecouple.runs.opened_run import Run

# Without --images, at most this many training images and this many held-out images are encoded.
_MOST_IMAGES = 10_000
# The same with --statistics, which also decodes images.
_MOST_DECODED = 500


def require_held_out_split(options: argparse.Namespace) -> None:
    """Raises UserError if --split of the command `directions` is "train"."""
    if options.split == "train":
        raise UserError("--split is 'train', which directions are found in; take validation or test")


def run(options: argparse.Namespace) -> int:
    """Runs the command `directions`: finds directions in z, writes directions.json and pictures; returns 0."""
    from tfdecouple.cli.run_images import open_data
    from tfdecouple.data.labels import read_attributes
    from tfdecouple.metrics.direction_finding import find_statistic_directions
    from tfdecouple.metrics.drawn_images import draw_image_indices, read_drawn_images
    from tfdecouple.runs.latent_directions import Directions
    from tfdecouple.runs.opened_run import Run, hash_weights
    from tfdecouple.runs.run_folder import RunFolder

    if not RunFolder(options.run).is_folder:
        raise UserError(
            f"directions are kept in a run folder, and {options.run} is none; make one of it first, with "
            f"python -m tfdecouple publish --run {options.run} --to DIR"
        )
    attributes = read_attributes(options.attributes) if options.attributes else None
    opened = Run.open(options.run, z_for="directions")
    if options.statistics and opened.config.model.image_shape[-1] != RGB_CHANNELS:
        raise UserError(f"--statistics takes RGB images, and those of {options.run} are not; find --labels instead")
    source = open_data(opened, options)
    splits = ("train", options.split)
    if options.statistics:
        count, images = options.images or _MOST_DECODED, []
        for split in splits:
            indices = draw_image_indices(source, split, count, options.seed)
            images.append(read_drawn_images(opened.model, source, split, indices)[0])
        directions = find_statistic_directions(opened.model, images[0], images[1], seed=options.seed)
    else:
        names = choose_direction_labels(source, options.labels) if attributes is None else list(attributes.names)
        examples = [encode_examples(opened, source, split, options, names, attributes) for split in splits]
        directions = find_directions(names, examples[0], examples[1], options.seed)
    about = {"data": source.title, "source": source.name, "split": options.split, "seed": options.seed}
    directions = [dataclasses.replace(direction, figures={**direction.figures, **about}) for direction in directions]
    earlier: Iterable[Direction] = ()
    try:
        earlier = opened.directions() or ()
    except RunError as error:
        # Earlier directions are dropped if their file is damaged or they belong to other weights; else they are kept.
        print(f"directions.json is written anew: {error}", file=sys.stderr, flush=True)
    new_names = {direction.name for direction in directions}
    kept = (direction for direction in earlier if direction.name not in new_names)
    new = Directions(hash_weights(opened.model), opened.facts(), (*kept, *directions))
    path = new.write(pathlib.Path(opened.path))
    width = max(len(direction.name) for direction in directions)
    for direction in directions:
        name = make_printable(direction.name, 100)
        accuracy = direction.describe_accuracy() or "not measured: all held-out images are of one kind"
        print(f"{name:{width}}  {direction.method:10}  {accuracy}")
    print(f"{path}: {len(directions)} directions in z", flush=True)
    save_direction_pictures(opened, source, options, directions)
    return 0


def choose_direction_labels(source: Source, labels: Sequence[str] | None) -> list[str]:
    """Returns `labels` without repetitions, or all of the data set; raises DataError or UserError if it lacks them."""
    if len(source.label_names) < 2:
        raise DataError(
            f"{source.title} has {len(source.label_names)} labels, and directions need two or more, such as "
            "sub-folders; or give numbers by file name with --attributes, or --statistics, which needs no labels"
        )
    for name in labels or ():
        if name not in source.label_names:
            raise UserError(f"--labels has {name!r}, which no image has{nearest(name, source.label_names)}")
    return list(dict.fromkeys(labels or source.label_names))


def encode_examples(
    opened: Run,
    source: Source,
    split: str,
    options: argparse.Namespace,
    names: Sequence[str],
    attributes: Attributes | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes images drawn from a split: returns z, float32 `[n, d_z]`, and the images' values, float64 `[n, names]`.

    `names` are labels, or columns of the CSV file `attributes`. The value for a label is 1 if the image has it, else 0;
    for a column, the number in the file. An image whose value is NaN is not used for the direction of that name.
    """
    import numpy as np

    from tfdecouple.data.labels import check_labels
    from tfdecouple.metrics.drawn_images import draw_image_indices

    indices = np.sort(draw_image_indices(source, split, options.images or _MOST_IMAGES, options.seed))
    z, label = opened.encode_split(source, split, indices, f"encoding images of {split}")
    label = check_labels(source, label)
    if attributes is None:
        numbers = [source.label_names.index(name) for name in names]
        return z, np.where(label[:, None] >= 0, label[:, None] == numbers, np.nan)
    if source.skipped:
        raise DataError(f"{source.skipped} images of {source.title} cannot be read; mend or remove them")
    values = attributes.look_up_attributes([source.find_image_key(split, index) for index in indices.tolist()])
    if np.isnan(values).all():
        raise DataError(
            f"{attributes.path} has no row for any of {len(indices)} images of {split}, such as "
            f"{source.find_image_key(split, int(indices[0]))}; its first column must name the files"
        )
    return z, values


def find_directions(
    names: Sequence[str], training: tuple[np.ndarray, np.ndarray], held_out: tuple[np.ndarray, np.ndarray], seed: int
) -> list[Direction]:
    """Finds directions in z for `names`, labels or CSV columns; prints the names for which there are too few images.

    `training` and `held_out` are results of `encode_examples`. A direction is found in `training`, and its accuracy is
    measured on `held_out`. DataError is raised if no direction is found.
    """
    import numpy as np

    from tfdecouple.metrics.direction_finding import LEAST, find_label_directions, find_number_directions
    from tfdecouple.runtime.progress import Counter

    directions: list[Direction] = []
    with Counter("finding directions", len(names), unit="directions") as counter:
        for number, name in enumerate(names):
            counted, held = ~np.isnan(training[1][:, number]), ~np.isnan(held_out[1][:, number])
            z, values = training[0][counted], training[1][counted, number]
            held_z, held_values = held_out[0][held], held_out[1][held, number]
            kinds, counts = np.unique(values, return_counts=True)
            if len(kinds) < 2 or len(values) < 2 * LEAST or (len(kinds) == 2 and counts.min() < LEAST):
                text = f"no direction {name}: it needs {LEAST} images of two kinds, and there are {counts.tolist()}"
                print(text, file=sys.stderr, flush=True)
            elif len(kinds) == 2:
                has, held_has = values == kinds[1], held_values == kinds[1]
                directions += find_label_directions(name, z, has, held_z, held_has, seed)
            else:
                directions += find_number_directions(name, z, values, held_z, held_values)
            counter(number + 1)
    if not directions:
        raise DataError("the images allow no direction: take more of them, or others with --data")
    return directions


def save_direction_pictures(
    opened: Run, source: Source, options: argparse.Namespace, directions: Sequence[Direction]
) -> None:
    """Writes a picture and a JSON file for each label or CSV column: images changed along its directions in z."""
    from tfdecouple.cli.run_images import choose_images, save_picture
    from tfdecouple.runtime.progress import Counter
    from tfdecouple.visualization.grids import draw_edit_grid

    images, amounts = choose_images(opened, options, source), options.amounts
    methods: dict[str, list[Direction]] = {}
    for direction in directions:
        methods.setdefault(direction.name, []).append(direction)
    facts = {**images.facts, "seed": options.seed, "amounts": amounts}
    note, done = f"{images.note} {opened.note()}", 0
    with Counter("pictures", len(directions) * len(images.pixels) * len(amounts)) as counter:
        for name, same_name in methods.items():
            vectors = {direction.method if len(same_name) > 1 else "": direction.vector for direction in same_name}
            picture = draw_edit_grid(opened.model, images.pixels, vectors, amounts, name, note)
            facts["direction"] = name
            facts["found"] = {direction.method: dict(direction.figures) for direction in same_name}
            summary = f"steps along {name} of {len(images.pixels)} images"
            save_picture(opened, options, f"direction-{make_file_name(name)}", picture, summary, **facts)
            counter(done := done + len(same_name) * len(images.pixels) * len(amounts))
