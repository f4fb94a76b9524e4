"""Functions that draw the pictures of the commands in `command_table`, from an opened run and the command's options."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from tfdecouple.cli import run_images
from tfdecouple.cli.options import make_file_name
from tfdecouple.config.shapes import RGB_CHANNELS
from tfdecouple.data.batches import read_chosen_batches
from tfdecouple.data.labels import read_attributes
from tfdecouple.data.splits import Source
from tfdecouple.errors import DataError, RunError, UserError, make_printable, nearest
from tfdecouple.metrics.drawn_images import draw_image_indices, draw_uncropped_images, read_drawn_images
from tfdecouple.metrics.metric import format_count
from tfdecouple.model.codes import interpolate_codes
from tfdecouple.runs.latent_directions import Direction, Directions
from tfdecouple.runs.opened_run import Run, hash_weights, load_directions
from tfdecouple.runs.run_folder import PICTURES, RunFolder
from tfdecouple.runtime.progress import Counter
from tfdecouple.visualization import grids
from tfdecouple.visualization.full_size import OwnSizeResults
from tfdecouple.visualization.photograph_folder import switch_folder

# A file name without ending, a picture, a summary in a few words, and facts for the JSON file beside the picture.
Drawing = tuple[str, Image.Image, str, dict[str, Any]]

# Number of nearest images that `neighbours` shows beside a sample.
_NEAREST = 5
# The most training images, and the most held-out images, of `directions` without --images; with --statistics they are
# also decoded.
_MOST_IMAGES, _MOST_DECODED = 10_000, 500


def draw_sample(opened: Run, options: argparse.Namespace) -> Iterator[Drawing]:
    """Yields samples at all temperatures, or with --labels a drawing of samples of each label per temperature."""
    count, temperatures, names = options.count, options.temperatures, opened.label_names
    facts = {"seed": options.seed, "count": count}
    shared = {**facts, "note": f"\n{opened.note()}"}
    if not options.labels:
        rows = {str(temperature): {"temperature": temperature} for temperature in temperatures}
        with Counter("sampling", count * len(rows)) as counter:
            picture = grids.draw_sample_grid(opened.model, rows, "the temperature of v", on_images=counter, **shared)
        summary = f"{count} samples at temperature {', '.join(rows)}"
        yield "sample", picture, summary, {**facts, "temperatures": temperatures}
        return
    if not names:
        raise UserError(f"--labels needs a model with labels, and that of {options.run} has none")
    labels = list(names) if "all" in options.labels else options.labels
    for label in labels:
        if label not in names:
            raise UserError(f"--labels has {label!r}, which is no label of {options.run}{nearest(label, names)}")
    for temperature in temperatures:
        rows = {label: {"temperature": temperature, "labels": names.index(label)} for label in labels}
        what = f"a class; the temperature of v is {temperature:g}"
        with Counter("sampling", count * len(labels)) as counter:
            picture = grids.draw_sample_grid(opened.model, rows, what, on_images=counter, **shared)
        summary = f"{count} samples of each of {len(labels)} labels at temperature {temperature}"
        yield f"sample-{temperature:g}", picture, summary, {**facts, "temperature": temperature, "labels": labels}


def draw_reconstruct(opened: Run, options: argparse.Namespace) -> Iterator[Drawing]:
    """Yields images beside their reconstructions; with --own-size a drawing for each image at its own size."""
    if options.own_size:
        yield from _draw_reconstruction_at_own_size(opened, options)
        return
    images = run_images.choose_images(opened, options)
    count = len(images.pixels)
    with Counter("reconstructing", count) as counter:
        decoded, exact = grids.reconstruct_images(opened.model, images.pixels, counter, images.labels)
    picture = grids.draw_reconstruction_grid(images.pixels, decoded, exact, f"\n{images.note}")
    facts = {**images.facts, "seed": options.seed, "count": count, "exact": exact}
    yield "reconstruct", picture, f"{exact} of {count} images are equal to the last pixel", facts


def _draw_reconstruction_at_own_size(opened: Run, options: argparse.Namespace) -> Iterator[Drawing]:
    model, source = opened.model, run_images.open_data(opened, options)
    for name, read in draw_uncropped_images(source, options.split, options.count, options.seed).items():
        image = model.quantizer.quantize_pixels(read()[None]).numpy()
        decoded = model.decode(*model.encode(image), size=image.shape[1:3]).numpy()
        lost, (height, width) = int((decoded != image).sum()), image.shape[1:3]
        summary = f"{width} x {height} pixels, {lost} of {image.size:,} subpixels differ"
        caption = f"Image and decode(encode(image)): {summary}. {opened.note()}"
        picture = grids.draw_grid(np.stack([image, decoded], 1), caption)
        facts = {"data": source.title, "split": options.split, "image": name, "height": height, "width": width}
        name = pathlib.PurePath(name).with_suffix("").as_posix().replace("/", "-")
        yield f"reconstruct-{name}", picture, summary, {**facts, "lost_subpixels": lost}


def draw_switch(opened: Run, options: argparse.Namespace) -> Iterator[Drawing]:
    """Yields pairs of images with exchanged z, one drawing for each pairing; writes the user's photographs likewise.

    The pairing is "within" a label, "across" labels or "any"; for the user's photographs it is called "pairs".
    """
    results = _open_photographs(opened, options)
    for pairing, (a, b) in run_images.choose_pairs(opened, options, ("within", "across")).items():
        title = {"within": "Switch within a class", "across": "Switch across classes"}.get(pairing, "Switch")
        count, labels, note = len(a.pixels), _get_pair_labels(a, b), f"\n{a.note}"
        with Counter("switching", 2 * count) as counter:
            picture = grids.draw_switch_grid(
                opened.model, a.pixels, b.pixels, what=title, note=note, on_images=counter, labels=labels
            )
        facts = {"pairing": pairing, "first": a.facts, "second": b.facts, "seed": options.seed, "count": count}
        facts |= {"strength": options.strength} if results else {}
        yield f"switch-{pairing}", picture, f"{title.lower()}, {format_count(count, 'pair')}", facts
    if results is not None:
        # The other photograph of the pair of photograph i is i + 1 for an even i, and i - 1 for an odd one.
        codes, others = opened.model.encode(results.small), np.arange(len(results.small)) ^ 1
        z = interpolate_codes(codes.z, np.asarray(codes.z)[others], [options.strength])[:, 0]
        for index, image in enumerate(np.asarray(opened.model.decode(z, codes.v))):
            results.save_photograph(index, image, f"z-of-{results.names[others[index]]}")


def switch(opened: Run, options: argparse.Namespace) -> int | Iterator[Drawing]:
    """Returns `draw_switch`'s drawings; with --reference writes a folder; returns 1 if it skips an image, else 0."""
    if options.reference is None:
        return draw_switch(opened, options)
    with run_images.name_unwritable_path(options.out):
        (folder,) = options.files
        arguments = (options.out, options.strength, options.max_side, options.unlimited)
        result = switch_folder(opened.model, options.reference, folder, *arguments)
    for line in (*(f"skipped: {error}" for error in result.errors), *result.notes):
        print(line, file=sys.stderr)
    counts = f"{len(result.kept)} there already, {len(result.errors)} skipped"
    print(f"{options.out}: {len(result.written)} photographs with z of {options.reference} written, {counts}")
    return 1 if result.errors else 0


def draw_interpolate(opened: Run, options: argparse.Namespace) -> Iterator[Drawing]:
    """Yields interpolations of pairs of images, z downwards and v to the right; writes the user's photographs, too.

    The file A-z-X-of-B is photograph A with v of A, and z at the fraction X of the way from z of A to z of B. In these
    files, at full size, v is not interpolated, because each photograph keeps its own fine detail.
    """
    has_z = opened.config.model.has_latent
    results = _open_photographs(opened, options) if has_z else None
    ((pairing, (a, b)),) = run_images.choose_pairs(opened, options, ("across",)).items()
    count, places = len(a.pixels), [step / (options.steps - 1) for step in range(options.steps)]
    paths = ("lerp", "slerp") if options.path == "both" else (options.path,)
    with Counter("interpolating", count * len(paths) * (len(places) if has_z else 1) * len(places)) as counter:
        labels = _get_pair_labels(a, b)
        tiles = grids.interpolate_pairs(opened.model, a.pixels, b.pixels, places, paths, counter, labels)
    picture = grids.draw_interpolation_grid(tiles, places, paths, f"\n{a.note}")
    facts = {"pairing": pairing, "first": a.facts, "second": b.facts, "seed": options.seed, "count": count}
    what = "z downwards, v to the right" if has_z else "v from left to right, no z"
    facts |= {"places": places, "path": options.path}
    yield "interpolate", picture, f"{format_count(count, 'pair')} of images, {what}", facts
    if results is not None:
        made = np.asarray(opened.model.interpolate(results.small[::2], results.small[1::2], places, [0, 1]))
        for pair, images in enumerate(made):
            first, second = results.names[2 * pair : 2 * pair + 2]
            for step, place in enumerate(places[1:], 1):
                results.save_photograph(2 * pair, images[step, 0], f"z-{place:.2g}-of-{second}")
                results.save_photograph(2 * pair + 1, images[-1 - step, 1], f"z-{place:.2g}-of-{first}")


def draw_edit(opened: Run, options: argparse.Namespace) -> Iterator[Drawing]:
    """Yields the user's images along a direction in z; writes the changed photographs, too, with --size own."""
    # For a run without directions, `opened.directions()` is None, and `load_directions` raises an error with advice.
    directions = opened.directions() or load_directions(options.run)
    direction, amounts = directions.find(options.direction, options.method), options.amounts
    name, images = make_printable(direction.name, 100), run_images.read_image_files(opened, options.files)
    results = _open_photographs(opened, options)
    count, vectors = len(images.pixels), {"": direction.vector}
    with Counter("editing", count * len(amounts)) as counter:
        picture = grids.draw_edit_grid(opened.model, images.pixels, vectors, amounts, name, images.note, counter)
    facts = {**images.facts, "direction": direction.name, "method": direction.method, "amounts": amounts}
    yield "edit", picture, f"{format_count(count, 'image')} along {name}, {direction.method}", facts
    if results is not None:
        z, v = (np.asarray(code) for code in opened.model.encode(results.small)[:2])
        for amount in filter(None, amounts):
            edited = np.asarray(opened.model.decode(z + np.float32(amount) * direction.vector, v))
            for index, image in enumerate(edited):
                results.save_photograph(index, image, f"{make_file_name(direction.name)}{amount:+g}")


def draw_neighbours(opened: Run, options: argparse.Namespace) -> Iterator[Drawing]:
    """Yields samples beside the images that are nearest to them, by pixels and by z."""
    from scipy.spatial.distance import cdist

    source, split = run_images.open_data(opened, options), options.split
    model, has_z = opened.model, opened.config.model.has_encoder
    samples = np.asarray(model.sample(options.count, options.temperature, seed=options.seed))
    drawn = draw_image_indices(source, split, options.search or source.sizes[split], options.seed)
    queries = {"pixels": samples} | ({"z": opened.encode_z(samples)} if has_z else {})
    columns: dict[str, list[np.ndarray]] = {name: [] for name in queries}
    searched: list[int] = []
    for batch in read_chosen_batches(source, split, drawn, batch_size=64, title="searching"):
        images = np.asarray(model.quantizer.quantize_pixels(batch["image"]))
        for name, query in queries.items():
            vectors = opened.encode_z(images) if name == "z" else images
            columns[name].append(cdist(query.reshape(len(query), -1), vectors.reshape(len(vectors), -1)))
        searched += batch["index"].tolist()
    neighbours, results = {}, {}
    for name in queries:
        distances = np.concatenate(columns[name], 1)
        order = np.argsort(distances, 1, kind="stable")[:, :_NEAREST]
        indices, distances = np.array(searched)[order], np.take_along_axis(distances, order, 1)
        # Each image is read once, even if it is a neighbour of several samples.
        different, rows = np.unique(indices, return_inverse=True)
        neighbours[name] = read_drawn_images(model, source, split, different)[0][rows.reshape(indices.shape)]
        results[name] = {"indices": indices.tolist(), "distances": distances.tolist()}
    copies = sum(row[0] == 0 for row in results["pixels"]["distances"])
    caption = (
        f"Samples at temperature {options.temperature} and the {min(_NEAREST, len(searched))} images nearest to each, "
        f"by pixels{' and by z' if has_z else ''}, among {len(searched):,} images ({source.title}, {split}). "
        f"{copies} of {options.count} samples equal one of them.\n{opened.note()}"
    )
    facts = {"data": source.title, "searched": len(searched), "copies": copies, "nearest": results}
    facts |= {name: getattr(options, name) for name in ("split", "seed", "count", "temperature")}
    summary = f"{options.count} samples beside their nearest of {len(searched):,} images; {copies} equal one"
    yield "neighbours", grids.draw_neighbour_grid(samples, neighbours, caption), summary, facts


def draw_project(opened: Run, options: argparse.Namespace) -> Iterator[Drawing]:
    """Yields a plot of z of images, projected to a plane by PCA or t-SNE, coloured by label."""
    from tfdecouple.visualization import plots

    source = run_images.open_data(opened, options)
    indices = np.sort(draw_image_indices(source, options.split, options.count, options.seed))
    count = len(indices)
    if count < 4:
        raise DataError(f"project got {count} images; it needs at least 4")
    codes, labels = opened.encode_split(source, options.split, indices, "encoding")
    facts: dict[str, Any] = {"data": source.title, "split": options.split, "method": options.method}
    if options.method == "pca":
        points, shares = plots.project_to_components(codes)
        facts["explained_variance"] = shares.tolist()
        axes = tuple(f"principal component {n} ({share:.0%} of the variance)" for n, share in enumerate(shares, 1))
    else:
        points, axes = plots.project_by_t_sne(codes, options.seed), ("t-SNE 1", "t-SNE 2")
    facts |= {"seed": options.seed, "count": count, "indices": indices.tolist()}
    facts |= {"labels": run_images.get_label_names(source, labels), "points": points.tolist()}
    title = f"z of {count:,} images: {source.title}, {options.split}\n{opened.note()}"
    picture = plots.render_figure(plots.plot_projection(points, labels, source.label_names, axes, title))
    summary = f"z of {count:,} images by {'PCA' if options.method == 'pca' else 't-SNE'}"
    yield f"project-{options.method}", picture, summary, facts


def draw_directions(opened: Run, options: argparse.Namespace) -> Iterator[Drawing]:
    """Finds directions in z, writes and prints them; yields a drawing of images along the directions of each name."""
    # The module of directions imports scikit-learn, which the other drawings do not need.
    from tfdecouple.metrics.direction_finding import LEAST, encode_examples, find_directions, find_statistic_directions

    if not RunFolder(options.run).is_folder:
        publish = f"python -m tfdecouple publish --run {options.run} --to DIR"
        raise UserError(f"directions are kept in a run folder, and {options.run} is none; first make one: {publish}")
    attributes = read_attributes(options.attributes) if options.attributes else None
    if options.statistics and opened.config.model.image_shape[-1] != RGB_CHANNELS:
        raise UserError(f"--statistics takes RGB images, and those of {options.run} are not; find --labels instead")
    source, splits = run_images.open_data(opened, options), ("train", options.split)
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
    path = Directions(hash_weights(opened.model), opened.facts(), (*kept, *directions)).write(opened.folder.path)
    width = max(map(len, by_name))
    for direction in directions:
        accuracy = direction.describe_accuracy() or "not measured: all held-out images are of one kind"
        print(f"{make_printable(direction.name, 100):{width}}  {direction.method:10}  {accuracy}")
    print(f"{path}: {len(directions)} directions in z", flush=True)
    shown, amounts = run_images.choose_images(opened, options, source), options.amounts
    done, count = 0, len(shown.pixels)
    with Counter("pictures", len(directions) * count * len(amounts)) as counter:
        for name, found in by_name.items():
            vectors = {direction.method if len(found) > 1 else "": direction.vector for direction in found}
            picture = grids.draw_edit_grid(opened.model, shown.pixels, vectors, amounts, name, shown.note)
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


def _open_photographs(opened: Run, options: argparse.Namespace) -> OwnSizeResults | None:
    if not options.files or options.size != "own":
        return None
    folder = RunFolder(options.run).find_results_folder(PICTURES, options.out)
    return OwnSizeResults(options.files, folder, opened.model, options.max_side, options.unlimited)


def _get_pair_labels(a: run_images.Images, b: run_images.Images) -> tuple[np.ndarray, np.ndarray] | None:
    return None if a.labels is None or b.labels is None else (a.labels, b.labels)
