"""The command `directions`, which finds directions in z."""

import dataclasses
import sys
from typing import Annotated

from tfdecouple.cli.options import Amounts, Count, DataSet, Out, Seed, within
from tfdecouple.cli.picture_commands import make_file_name
from tfdecouple.cli.results import choose_images, open_data, open_run
from tfdecouple.errors import DataError, RunError, UserError, make_printable, nearest

# The most training images, and the most held-out images, without --images; with --statistics they are also decoded.
_MOST_IMAGES, _MOST_DECODED = 10_000, 500


def directions(
    *,
    run: str,
    out: Out = None,
    source: DataSet = DataSet(),
    labels: tuple[str, ...] = (),
    attributes: str | None = None,
    statistics: bool = False,
    images: Annotated[int, within(0)] = 0,
    amounts: Amounts = (-1, -0.5, 0, 0.5, 1),
    count: Annotated[int, Count] = 3,
    seed: Seed = 0,
) -> None:
    """Find directions in z for labels, for numbers such as an age, or for brightness and colour.

    Each direction is found in training images and measured on those of --split, by default validation; the result is
    printed. The file directions.json in the run folder keeps all directions, for `edit` and the exported web page. A
    picture shows steps along each direction.

    Args:
        run: run folder, into which directions.json is written.
        labels: use these labels only.
        attributes: find a direction for each column of this CSV file instead (docs/understanding.md).
        statistics: find the directions brighter, warmer, more contrast and more saturated, which need no labels.
        images: number of training images and of held-out images; 0: at most 10,000, or 500 with --statistics.
        count: images in a picture, of --split.
    """
    if bool(labels) + bool(attributes) + statistics > 1:
        raise UserError("--labels, --attributes and --statistics are alternatives; give one of them")
    opened, results = open_run("directions", run, out, needs_z=True)
    from tfdecouple import direction_finding
    from tfdecouple.config.shapes import RGB_CHANNELS
    from tfdecouple.data.drawn_images import draw_image_indices, read_drawn_images
    from tfdecouple.data.labels import read_attributes
    from tfdecouple.runs.latent_directions import Direction, Directions
    from tfdecouple.runs.opened_run import hash_weights
    from tfdecouple.system.progress import Counter
    from tfdecouple.visualization import grids

    if not opened.folder.is_folder:
        advice = f"tfdecouple publish --run {run} --to DIR"
        raise UserError(f"directions are kept in a run folder, and {run} is none; first make one: {advice}")
    if statistics and opened.config.model.image_shape[-1] != RGB_CHANNELS:
        raise UserError(f"--statistics takes RGB images, and those of {run} are not; find --labels instead")
    columns = read_attributes(attributes) if attributes else None
    (data, split), model = open_data(opened, source, "validation"), opened.model
    if statistics:
        training, held_out = (
            read_drawn_images(model, data, part, draw_image_indices(data, part, images or _MOST_DECODED, seed))[0]
            for part in ("train", split)
        )
        found = direction_finding.find_statistic_directions(model, training, held_out, seed=seed)
    else:
        if columns is None and len(data.label_names) < 2:
            raise DataError(
                f"{data.title} has {len(data.label_names)} labels, and directions need two or more, such as "
                "sub-folders; or give numbers by file name with --attributes, or --statistics, which needs no labels"
            )
        for name in labels:
            if name not in data.label_names:
                raise UserError(f"--labels has {name!r}, which no image has{nearest(name, data.label_names)}")
        names = list(columns.names if columns else dict.fromkeys(labels or data.label_names))
        chosen = (images or _MOST_IMAGES, seed, names, columns)
        examples = [direction_finding.encode_examples(opened, data, part, *chosen) for part in ("train", split)]
        found, missing = direction_finding.find_directions(names, examples[0], examples[1], seed)
        for name, counts in missing.items():
            needs = f"it needs {direction_finding.LEAST} images of two kinds, and there are {counts}"
            print(f"no direction {name}: {needs}", file=sys.stderr)
    about = {"data": data.title, "source": data.name, "split": split, "seed": seed}
    found = [dataclasses.replace(direction, figures={**direction.figures, **about}) for direction in found]
    try:
        earlier = tuple(opened.directions() or ())
    except RunError as error:
        # Earlier directions are dropped if their file is damaged or they belong to other weights; else they are kept.
        print(f"directions.json is written anew: {error}", file=sys.stderr, flush=True)
        earlier = ()
    by_name: dict[str, list[Direction]] = {}
    for direction in found:
        by_name.setdefault(direction.name, []).append(direction)
    kept = (direction for direction in earlier if direction.name not in by_name)
    path = Directions(hash_weights(model), opened.facts(), (*kept, *found)).write(opened.folder.path)
    for direction in found:
        accuracy = direction.describe_accuracy() or "not measured: all held-out images are of one kind"
        print(f"{make_printable(direction.name, 100):{max(map(len, by_name))}}  {direction.method:10}  {accuracy}")
    print(f"{path}: {len(found)} directions in z", flush=True)
    shown = choose_images(opened, data, split, count, seed)
    with Counter("pictures", len(by_name), unit="pictures") as counter:
        for number, (name, alike) in enumerate(by_name.items(), 1):
            methods = {direction.method: direction.vector for direction in alike}
            edited = grids.edit_images(model, shown.pixels, methods, amounts)
            picture = grids.draw_edit_grid(edited, list(methods), amounts, name, shown.note)
            facts = {**shown.facts, "seed": seed, "amounts": amounts, "direction": name}
            facts["found"] = {direction.method: dict(direction.figures) for direction in alike}
            summary = f"steps along {name} of {len(shown.pixels)} images"
            results.write(f"direction-{make_file_name(name)}", picture, summary, facts)
            counter(number)
