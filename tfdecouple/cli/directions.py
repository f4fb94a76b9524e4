"""The work of the command `directions`: finds directions in z for labels, numbers such as an age, or statistics."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence

from tfdecouple.cli.drawings import Drawing
from tfdecouple.cli.options import make_file_name
from tfdecouple.cli.run_images import choose_images, open_data
from tfdecouple.config.shapes import RGB_CHANNELS
from tfdecouple.data import Source
from tfdecouple.data.labels import read_attributes
from tfdecouple.errors import DataError, RunError, UserError, make_printable, nearest
from tfdecouple.metrics.direction_finding import LEAST, encode_examples, find_directions, find_statistic_directions
from tfdecouple.metrics.drawn_images import draw_image_indices, read_drawn_images
from tfdecouple.runs.latent_directions import Direction, Directions
from tfdecouple.runs.opened_run import Run, hash_weights
from tfdecouple.runs.run_folder import RunFolder
from tfdecouple.runtime.progress import Counter
from tfdecouple.visualization.grids import draw_edit_grid

# Without --images, the most training images and the most held-out images; with --statistics they are also decoded.
_MOST_IMAGES, _MOST_DECODED = 10_000, 500


def draw_directions(opened: Run, options: argparse.Namespace) -> Iterator[Drawing]:
    """Finds directions in z, writes and prints them; yields a drawing of images along the directions of each name."""
    if not RunFolder(options.run).is_folder:
        publish = f"python -m tfdecouple publish --run {options.run} --to DIR"
        raise UserError(f"directions are kept in a run folder, and {options.run} is none; first make one: {publish}")
    attributes = read_attributes(options.attributes) if options.attributes else None
    if options.statistics and opened.config.model.image_shape[-1] != RGB_CHANNELS:
        raise UserError(f"--statistics takes RGB images, and those of {options.run} are not; find --labels instead")
    source, splits = open_data(opened, options), ("train", options.split)
    if options.statistics:
        images = []
        for split in splits:
            indices = draw_image_indices(source, split, options.images or _MOST_DECODED, options.seed)
            images.append(read_drawn_images(opened.model, source, split, indices)[0])
        directions = find_statistic_directions(opened.model, images[0], images[1], seed=options.seed)
    else:
        names = choose_direction_labels(source, options.labels) if attributes is None else list(attributes.names)
        chosen = (options.images or _MOST_IMAGES, options.seed, names, attributes)
        training, held_out = (encode_examples(opened, source, split, *chosen) for split in splits)
        directions, missing = find_directions(names, training, held_out, options.seed)
        for name, counts in missing.items():
            print(f"no direction {name}: it needs {LEAST} images of two kinds, and there are {counts}", file=sys.stderr)
    about = {"data": source.title, "source": source.name, "split": options.split, "seed": options.seed}
    directions = [dataclasses.replace(direction, figures={**direction.figures, **about}) for direction in directions]
    earlier: Iterable[Direction] = ()
    try:
        earlier = opened.directions() or ()
    except RunError as error:
        # Earlier directions are dropped if their file is damaged or they belong to other weights; else they are kept.
        print(f"directions.json is written anew: {error}", file=sys.stderr, flush=True)
    by_name: dict[str, list[Direction]] = {}
    for direction in directions:
        by_name.setdefault(direction.name, []).append(direction)
    kept = (direction for direction in earlier if direction.name not in by_name)
    path = Directions(hash_weights(opened.model), opened.facts(), (*kept, *directions)).write(pathlib.Path(opened.path))
    width = max(map(len, by_name))
    for direction in directions:
        accuracy = direction.describe_accuracy() or "not measured: all held-out images are of one kind"
        print(f"{make_printable(direction.name, 100):{width}}  {direction.method:10}  {accuracy}")
    print(f"{path}: {len(directions)} directions in z", flush=True)
    shown, amounts = choose_images(opened, options, source), options.amounts
    done, count = 0, len(shown.pixels)
    with Counter("pictures", len(directions) * count * len(amounts)) as counter:
        for name, found in by_name.items():
            vectors = {direction.method if len(found) > 1 else "": direction.vector for direction in found}
            picture = draw_edit_grid(opened.model, shown.pixels, vectors, amounts, name, shown.note)
            facts = {**shown.facts, "seed": options.seed, "amounts": amounts, "direction": name}
            facts["found"] = {direction.method: dict(direction.figures) for direction in found}
            yield f"direction-{make_file_name(name)}", picture, f"steps along {name} of {count} images", facts
            counter(done := done + len(found) * count * len(amounts))


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
