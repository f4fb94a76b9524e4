"""Commands that draw pictures: of samples, images and directions in z of a run, and of its training."""

import dataclasses
import pathlib
import re
import sys
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from tfdecouple.cli.options import Amounts, Count, DataSet, Out, PairOptions, Photograph, RunName, Seed, Sizes, within
from tfdecouple.cli.results import (
    Results,
    choose_pairs,
    get_label_names,
    open_data,
    open_run,
    read_images,
    read_photographs,
)
from tfdecouple.errors import DataError, RunError, UserError, make_printable, nearest
from tfdecouple.storage.files import Facts
from tfdecouple.system import process
from tfdecouple.system.progress import format_count
from tfdecouple.system.requirements import require_packages


def sample(
    *,
    run: RunName = "photographs",
    out: Out = None,
    count: Annotated[int, Count] = 10,
    seed: Seed = 0,
    temperatures: Annotated[tuple[float, ...], within(0, 1000)] = (0.5, 0.7, 0.8, 0.9, 1.0),
    labels: tuple[str, ...] = (),
) -> None:
    """Draw new images at several temperatures.

    The temperature multiplies v: below 1 samples are smoother. A column shares z and the direction of v.

    Args:
        count: number of samples in a row.
        temperatures: one or several temperatures.
        labels: draw a row of samples for each of these labels of the model, or for all.
    """
    opened, results = open_run("sample", run, out)
    from tfdecouple.visualization.grids import draw_sample_grid

    names = opened.label_names
    for label in labels:
        if label not in names and not (names and label == "all"):
            listed = ", ".join(names[:20]) or "none"
            raise UserError(f"--labels has {label!r}, and the labels of {run} are: {listed}{nearest(label, names)}")
    rows: dict[str, Facts] = {f"{temperature:g}": {"temperature": temperature} for temperature in temperatures}
    pictures = {"sample": ("the temperature of v", rows)}
    if labels:
        chosen = [name for name in names if name in labels or "all" in labels]
        pictures = {
            f"sample-{temperature}": (
                f"a label; the temperature of v is {temperature}",
                {name: {**arguments, "labels": names.index(name)} for name in chosen},
            )
            for temperature, arguments in rows.items()
        }
    for file, (what, rows) in pictures.items():
        picture = draw_sample_grid(opened.model, rows, what, count=count, seed=seed, note=f"\n{opened.note()}")
        facts = {"seed": seed, "count": count, "rows": rows}
        results.write(file, picture, f"{count} samples for each of {', '.join(rows)} ({what})", facts)


def reconstruct(
    *,
    run: RunName = "photographs",
    out: Out = None,
    source: DataSet = DataSet(),
    count: Annotated[int, Count] = 20,
    seed: Seed = 0,
    own_size: bool = False,
) -> None:
    """Encode images, decode their codes and count the images that are equal to the last pixel.

    Args:
        count: number of images.
        own_size: write each image at its own size, uncropped (only data sets folder and photographs).
    """
    opened, results = open_run("reconstruct", run, out)
    import numpy as np

    from tfdecouple.data.drawn_images import draw_image_indices, draw_uncropped_images
    from tfdecouple.visualization import grids

    data, part = open_data(opened, source)
    if not own_size:
        images = read_images(opened, data, part, draw_image_indices(data, part, count, seed))
        decoded, exact = grids.reconstruct_images(opened.model, images.pixels, images.labels)
        picture = grids.draw_reconstruction_grid(images.pixels, decoded, exact, f"\n{images.note}")
        facts = {**images.facts, "seed": seed, "count": (count := len(decoded)), "exact": exact}
        results.write("reconstruct", picture, f"{exact} of {count} images are equal to the last pixel", facts)
        return
    for name, read in draw_uncropped_images(data, part, count, seed).items():
        image = opened.model.quantizer.quantize_pixels(read()[None]).numpy()
        codes = opened.model.encode(image)
        decoded = opened.model.decode(*codes, codes.size).numpy()
        lost, (height, width) = int((decoded != image).sum()), image.shape[1:3]
        summary = f"{width} x {height} pixels, {lost} of {image.size:,} subpixels differ"
        caption = f"Image and decode(encode(image)): {summary}. {opened.note()}"
        facts = {"data": data.title, "split": part, "image": name, "height": height, "width": width}
        file = pathlib.PurePath(name).with_suffix("").as_posix().replace("/", "-")
        picture = grids.draw_grid(np.stack([image, decoded], 1), caption)
        results.write(f"reconstruct-{file}", picture, summary, {**facts, "lost_subpixels": lost})


def switch(
    *files: Photograph,
    run: RunName = "photographs",
    out: Annotated[Out, Parameter(alias="--to")] = None,
    reference: Photograph | None = None,
    strength: Annotated[float | None, within(0, 1)] = None,
    pairing: PairOptions = PairOptions(),
) -> int:
    """Exchange the global codes z of pairs of images (paper Figure 1).

    With your own photographs: `tfdecouple switch a.jpg b.jpg`, or, for z of one image in a folder of photographs,
    `tfdecouple switch --reference R.jpg FOLDER --to OUT`. Without files, pairs come from the data set; where it has
    labels, one picture shows pairs within labels and another pairs across labels.

    Args:
        files: your own pairs, not the data set's, of any size: a.png b.png c.png d.png.
        reference: decode all photographs of the folder FILES with z of this image, at their own size, into --to.
        strength: z of a result, from 0, its own, to 1, that of the other image; default 0.9, 1 for a data set.
    """
    pairing.require_pairs("switch", files, reference)
    strength = (0.9 if files else 1.0) if strength is None else strength
    if reference is not None and (len(files) != 1 or out is None or pairing.size != "own"):
        needs = f"--reference needs one folder of photographs, got {len(files)}, and --to OUT"
        raise UserError(f"{needs}; it takes no --size, as each photograph is written at its own size")
    opened, results = open_run("switch", run, out, needs_z=True)
    import numpy as np

    from tfdecouple.visualization import grids
    from tfdecouple.visualization.photograph_folder import switch_folder

    if reference is not None:
        options = strength, pairing.max_side, pairing.unlimited
        result = switch_folder(opened.model, reference, files[0], results.path, *options)
        for line in (*(f"skipped: {error}" for error in result.errors), *result.notes):
            print(line, file=sys.stderr)
        counts = f"{len(result.kept)} there already, {len(result.errors)} skipped"
        print(f"{out}: {len(result.written)} photographs with z of {reference} written, {counts}")
        return 1 if result.errors else 0
    for pairs in choose_pairs(opened, files, pairing, ("within", "across"), 10):
        how, tiles = pairs.facts["pairing"], []
        for a, b, labels, photographs in pairs.parts:
            switched = grids.switch_images(opened.model, a, b, strength, labels, bool(photographs))
            tiles.append((a, b, *switched))
            for number, photograph in enumerate(photographs):
                change = f"z-of-{pathlib.PurePath(photographs[1 - number].path).stem}"
                small, changed = (a, b)[number][0], switched[number][0]
                results.write_photograph(photograph, small, changed, change, pairing.unlimited)
        title = {"within": "Switch, equal labels", "across": "Switch, different labels"}.get(how, "Switch")
        a, b, ba, ab = map(np.concatenate, zip(*tiles, strict=True))
        picture = grids.draw_switch_grid(a, b, ba, ab, what=title, note=f"\n{pairs.note}")
        summary = f"{title.lower()}, {format_count(len(a), 'pair')}"
        results.write(f"switch-{how}", picture, summary, {**pairs.facts, "strength": strength})
    return 0


def interpolate(
    *files: Photograph,
    run: RunName = "photographs",
    out: Out = None,
    steps: Annotated[int, within(2)] = 6,
    path: Literal["lerp", "slerp", "both"] = "lerp",
    pairing: PairOptions = PairOptions(),
) -> None:
    """Go from one image to another in z and v apart (paper Figure 5).

    In the picture z changes downwards and v to the right; two corners have the images themselves. Of your own
    photographs, the file A-z-X-of-B is photograph A with its own v, and z at the fraction X of the way to z of B.

    Args:
        files: your own pairs, not the data set's, of any size: a.png b.png c.png d.png.
        steps: images in a row and in a column.
        path: path of v: lerp, a line as in the paper; slerp, an arc; both.
    """
    pairing.require_pairs("interpolate", files)
    opened, results = open_run("interpolate", run, out)
    import numpy as np

    from tfdecouple.visualization import grids

    has_z, places = opened.config.model.has_latent, [step / (steps - 1) for step in range(steps)]
    paths, bands = ("lerp", "slerp") if path == "both" else (path,), []
    (pairs,) = choose_pairs(opened, files, pairing, ["across"], 1)
    for a, b, labels, photographs in pairs.parts:
        bands.append(grids.interpolate_pairs(opened.model, a, b, places, paths, labels))
        # Without z the model changes only v, and photographs at their own size keep their own v.
        for step, place in enumerate(places[1:] if photographs and has_z else (), 1):
            # The first column of the picture has v of the first image, and the last column v of the second.
            of_a, of_b = bands[-1][0, 0, step, 0], bands[-1][0, 0, -1 - step, -1]
            first, second = (pathlib.PurePath(photograph.path).stem for photograph in photographs)
            change, unlimited = f"z-{place:.2g}-of", pairing.unlimited
            results.write_photograph(photographs[0], a[0], of_a, f"{change}-{second}", unlimited)
            results.write_photograph(photographs[1], b[0], of_b, f"{change}-{first}", unlimited)
    tiles = np.concatenate(bands)
    picture = grids.draw_interpolation_grid(tiles, places, paths, f"\n{pairs.note}")
    what = "z downwards, v to the right" if has_z else "v from left to right, no z"
    summary = f"{format_count(len(tiles), 'pair')} of images, {what}"
    results.write("interpolate", picture, summary, {**pairs.facts, "places": places, "path": path})


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
    from tfdecouple.runs.latent_directions import Directions
    from tfdecouple.runs.opened_run import hash_weights
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
            read_drawn_images(model, data, part, draw_image_indices(data, part, images or 500, seed))[0]
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
        chosen = (images or 10_000, seed, names, columns)
        examples = [direction_finding.encode_examples(opened, data, part, *chosen) for part in ("train", split)]
        found, missing = direction_finding.find_directions(names, examples[0], examples[1], seed)
        for text in missing:
            print(text, file=sys.stderr)
    about = {"data": data.title, "source": data.name, "split": split, "seed": seed}
    found = [dataclasses.replace(direction, figures={**direction.figures, **about}) for direction in found]
    try:
        earlier = tuple(opened.directions() or ())
    except RunError as error:
        # Earlier directions are dropped if their file is damaged or they belong to other weights; else they are kept.
        print(f"directions.json is written anew: {error}", file=sys.stderr, flush=True)
        earlier = ()
    names = list(dict.fromkeys(direction.name for direction in found))
    kept = (direction for direction in earlier if direction.name not in names)
    path = Directions(hash_weights(model), opened.facts(), (*kept, *found)).write(opened.folder.path)
    for direction in found:
        accuracy = direction.describe_accuracy() or "not measured: all held-out images are of one kind"
        print(f"{make_printable(direction.name, 100):{max(map(len, names))}}  {direction.method:10}  {accuracy}")
    print(f"{path}: {len(found)} directions in z", flush=True)
    shown = read_images(opened, data, split, draw_image_indices(data, split, count, seed))
    for name in names:
        methods = {direction.method: direction for direction in found if direction.name == name}
        edited = grids.edit_images(model, shown.pixels, [method.vector for method in methods.values()], amounts)
        picture = grids.draw_edit_grid(edited, list(methods), amounts, name, shown.note)
        facts = {**shown.facts, "seed": seed, "amounts": amounts, "direction": name}
        facts["found"] = {method: dict(direction.figures) for method, direction in methods.items()}
        summary = f"steps along {name} of {len(shown.pixels)} images"
        results.write(f"direction-{make_file_name(name)}", picture, summary, facts)


def edit(
    *files: Annotated[Photograph, Parameter(required=True)],
    direction: str,
    run: RunName = "photographs",
    out: Out = None,
    method: Literal["means", "classifier", "decoded"] | None = None,
    amounts: Amounts = (-1, -0.5, 0, 0.5, 1),
    sizes: Sizes = Sizes(),
) -> None:
    """Change images along a direction in z.

    v of each image does not change. The command `directions` finds the directions of a run.

    Args:
        files: images of any size.
        direction: name of the direction.
        method: how the direction was found; default the first that the run has.
    """
    opened, results = open_run("edit", run, out, needs_z=True)
    import numpy as np

    from tfdecouple.runs.opened_run import load_directions
    from tfdecouple.visualization import grids

    # For a run without directions, `opened.directions()` is None, and `load_directions` raises an error with advice.
    chosen = (opened.directions() or load_directions(run)).find(direction, method)
    rows, name = [], make_printable(chosen.name, 100)
    for file in files:
        photographs, small = read_photographs(opened, [file], sizes)
        rows.append(grids.edit_images(opened.model, small, [chosen.vector], amounts))
        for photograph in photographs:
            for amount, edited in zip(amounts, rows[-1][0, 0], strict=True):
                if amount:
                    change = f"{make_file_name(chosen.name)}{amount:+g}"
                    results.write_photograph(photograph, small[0], edited, change, sizes.unlimited)
    picture = grids.draw_edit_grid(np.concatenate(rows), [""], amounts, name, f"Own images. {opened.note()}")
    facts = {"files": list(map(str, files)), "direction": chosen.name, "method": chosen.method, "amounts": amounts}
    results.write("edit", picture, f"{format_count(len(files), 'image')} along {name}, {chosen.method}", facts)


def make_file_name(name: str) -> str:
    """Returns `name` as part of a file's name: its first 80 characters, with `_` for all but letters, digits and `_.-`.

    >>> make_file_name("a/b c")
    'a_b_c'
    """
    return re.sub(r"[^\w.-]", "_", name)[:80]


def neighbours(
    *,
    run: RunName = "photographs",
    out: Out = None,
    source: DataSet = DataSet(),
    count: Annotated[int, Count] = 6,
    seed: Seed = 0,
    temperature: Annotated[float, within(0, 1000)] = 0.8,
    search: Annotated[int, within(0)] = 1000,
) -> None:
    """Show samples beside the training images, or those of --split, nearest to them.

    Distances are Euclidean, between pixels and, where the model has z, between z. A model that repeats its training
    images gives samples equal to their neighbours.

    Args:
        count: number of samples.
        temperature: factor of v.
        search: number of images to search, drawn at random; 0 for all.
    """
    opened, results = open_run("neighbours", run, out)
    import numpy as np
    from scipy.spatial.distance import cdist

    from tfdecouple.data.drawn_images import draw_image_indices, read_drawn_images
    from tfdecouple.visualization.grids import draw_neighbour_grid

    data, split = open_data(opened, source, "train")
    samples = np.asarray(opened.model.sample(count, temperature, seed=seed))
    searched = draw_image_indices(data, split, search or data.sizes[split], seed)
    images = read_drawn_images(opened.model, data, split, searched)[0]
    parts = np.array_split(images, -(-len(images) // 64))
    vectors: dict[str, Any] = {"pixels": lambda pixels: pixels.reshape(len(pixels), -1)}
    if opened.config.model.has_encoder:
        vectors["z"] = opened.encode_z
    nearest_images, found = {}, {}
    for name, encode in vectors.items():
        queries = encode(samples)
        distances = np.concatenate([cdist(queries, encode(part)) for part in parts], 1)
        order = np.argsort(distances, 1, kind="stable")[:, :5]
        nearest_images[name] = images[order]
        nearest_distances = np.take_along_axis(distances, order, 1)
        found[name] = {"indices": searched[order].tolist(), "distances": nearest_distances.tolist()}
    copies = sum(row[0] == 0 for row in found["pixels"]["distances"])
    facts = {"data": data.title, "split": split, "searched": len(searched), "copies": copies, "nearest": found}
    facts |= {"seed": seed, "count": count, "temperature": temperature}
    summary = f"{count} samples beside their nearest of {len(searched):,} images; {copies} equal one"
    caption = f"Temperature {temperature}: {summary} ({data.title}, {split}).\n{opened.note()}"
    results.write("neighbours", draw_neighbour_grid(samples, nearest_images, caption), summary, facts)


def project(
    *,
    run: RunName = "photographs",
    out: Out = None,
    source: DataSet = DataSet(),
    count: Annotated[int, Count] = 1000,
    seed: Seed = 0,
) -> None:
    """Show the two principal components of z of images, coloured by label.

    Images with similar z lie close together.

    Args:
        count: number of images.
    """
    require_packages("matplotlib", what="the command project")
    opened, results = open_run("project", run, out, needs_z=True)
    import numpy as np

    from tfdecouple.data.drawn_images import draw_image_indices
    from tfdecouple.visualization import plots

    data, part = open_data(opened, source)
    indices = np.sort(draw_image_indices(data, part, count, seed))
    if len(indices) < 2:
        raise DataError(f"project got {len(indices)} images; it needs at least 2")
    codes, labels = opened.encode_split(data, part, indices)
    points, shares = plots.project_to_components(codes)
    axes = [f"principal component {n} ({share:.0%} of the variance)" for n, share in enumerate(shares, 1)]
    title = f"z of {len(indices):,} images: {data.title}, {part}\n{opened.note()}"
    picture = plots.render_figure(plots.plot_projection(points, labels, data.label_names, axes, title))
    facts = {"data": data.title, "split": part, "seed": seed, "count": len(indices), "indices": indices.tolist()}
    facts |= {"labels": get_label_names(data, labels), "points": points.tolist()}
    summary = f"principal components of z of {len(indices):,} images"
    results.write("project", picture, summary, {**facts, "explained_variance": shares.tolist()})


def curves(
    *,
    run: Annotated[tuple[str, ...], Parameter(consume_multiple=False, required=True)],
    out: Out = None,
) -> None:
    """Draw bits/dim, KL, log q(u|x) and learning rate over the updates of one or several runs.

    Args:
        run: run folder, or bundled weights; give it again to compare runs.
    """
    require_packages("matplotlib", what="the command curves")
    process.start_tensorflow()
    from tfdecouple.runs.run_folder import PICTURES, RunFolder
    from tfdecouple.visualization.plots import plot_curves, render_figure

    names = [RunFolder(path).name for path in run]
    drawn, facts = {}, []
    for path, name in zip(run, names, strict=True):
        # In the legend, runs that share a name are called by their paths.
        shown = name if names.count(name) == 1 else path
        drawn[shown] = RunFolder(path).read_curves()
        last = max(steps[-1] for lines in drawn[shown].values() for steps, _ in lines.values())
        facts.append({"run": path, "name": shown, "last_step": last})
    results = Results(RunFolder(run[0]).find_results_folder(PICTURES, out), {"command": "curves"})
    summary = "; ".join(f"{entry['name']} to update {entry['last_step']:,}" for entry in facts)
    results.write("curves", render_figure(plot_curves(drawn)), summary, {"runs": facts})
