"""`python -m tfdecouple neighbours`: shows samples beside their nearest training images, by pixels and by z."""

import argparse
from typing import Any

import numpy as np

from tfdecouple.cli import options as arguments
from tfdecouple.runtime.process import start_tensorflow


def add_parser(commands: Any) -> None:
    """Adds the command `neighbours` and its options to `commands`, the argparse sub-parsers of `tfdecouple`."""
    parser = arguments.add_command(
        commands,
        "neighbours",
        "show samples beside the training images nearest to them",
        "Distances are Euclidean, between pixels and, where the model has z, between z. A model that repeats its "
        "training images gives samples equal to their neighbours.",
    )
    arguments.add_run(parser)
    arguments.add_data(parser, split="train")
    arguments.add_drawing(parser, 6, "samples")
    arguments.add_number(parser, "--temperature", 0.8, "factor of v", 0, arguments.MOST_TEMPERATURE)
    arguments.add_number(parser, "--search", 1000, "number of images to search, drawn at random; 0 for all")


def run(options: argparse.Namespace) -> int:
    """Runs the command `neighbours`: draws samples, finds the nearest images, writes PNG and JSON; returns 0."""
    start_tensorflow()
    from scipy.spatial.distance import cdist

    from tfdecouple.cli.run_images import open_data, save_picture
    from tfdecouple.data import read_chosen_batches
    from tfdecouple.metrics.drawn_images import draw_image_indices, read_drawn_images
    from tfdecouple.runs.opened_run import Run
    from tfdecouple.runtime.progress import Counter
    from tfdecouple.visualization.grids import draw_neighbour_grid

    opened = Run.open(options.run)
    source, split = open_data(opened, options), options.split
    model, has_z = opened.model, opened.config.model.has_encoder
    samples = np.asarray(model.sample(options.count, options.temperature, seed=options.seed))
    drawn = draw_image_indices(source, split, options.search or source.sizes[split], options.seed)
    queries = {"pixels": samples} | ({"z": opened.encode_z(samples)} if has_z else {})
    columns: dict[str, list[np.ndarray]] = {name: [] for name in queries}
    searched = []
    with Counter("searching", len(drawn)) as counter:
        for batch in read_chosen_batches(source, split, drawn, batch_size=64):
            images = np.asarray(model.quantize_images(batch["image"]))
            for name, query in queries.items():
                vectors = opened.encode_z(images) if name == "z" else images
                columns[name].append(cdist(query.reshape(len(query), -1), vectors.reshape(len(vectors), -1)))
            searched += batch["index"].tolist()
            counter(len(searched))

    count = min(5, len(searched))
    nearest, results = {}, {}
    for name in queries:
        distances = np.concatenate(columns[name], 1)
        order = np.argsort(distances, 1, kind="stable")[:, :count]
        indices, distances = np.array(searched)[order], np.take_along_axis(distances, order, 1)
        # Each image is read once, even if it is a neighbour of several samples.
        different, rows = np.unique(indices, return_inverse=True)
        nearest[name] = read_drawn_images(model, source, split, different)[0][rows.reshape(indices.shape)]
        results[name] = {"indices": indices.tolist(), "distances": distances.tolist()}
    copies = sum(row[0] == 0 for row in results["pixels"]["distances"])
    caption = (
        f"Samples at temperature {options.temperature} and the {count} images nearest to each, by pixels"
        f"{' and by z' if has_z else ''}, among {len(searched):,} images ({source.title}, {split}). "
        f"{copies} of {options.count} samples equal one of them.\n{opened.note()}"
    )
    facts = {"data": source.title, "searched": len(searched), "copies": copies, "nearest": results}
    facts |= {name: getattr(options, name) for name in ("split", "seed", "count", "temperature")}
    summary = f"{options.count} samples beside their nearest of {len(searched):,} images; {copies} equal one"
    save_picture(opened, options, "neighbours", draw_neighbour_grid(samples, nearest, caption), summary, **facts)
    return 0
