"""`python -m tfdecouple neighbours`: samples beside the training images nearest to them."""

from __future__ import annotations

import argparse
import math
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.errors import UserError
from tfdecouple.runtime.process import start_tensorflow

_NEIGHBOURS = 5
# Pixels of a batch of the search: in float64 they take 32 MB.
_BATCH_VALUES = 4_000_000


def add_parser(commands: Any) -> None:
    """Describes the arguments."""
    parser = arguments.command(
        commands,
        "neighbours",
        "show the training images nearest to samples",
        "Nearest in the Euclidean distance of pixels, and of z where the model has one. A model that repeats what it "
        "was trained on gives samples equal to their neighbours.",
    )
    arguments.add_run(parser)
    arguments.add_data(parser, split="train")
    arguments.add_drawing(parser, 6, "samples")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T", help="factor of v (default 0.8)")
    parser.add_argument(
        "--search", type=int, default=10_000, metavar="N", help="images to search, drawn; 0 for all (default 10000)"
    )


def run(options: argparse.Namespace) -> int:
    """Writes neighbours.png and neighbours.json.

    Raises:
        UserError: for impossible arguments, a run without weights, or missing or unreadable images.
    """
    arguments.check(options)
    arguments.at_least(options, "search", 0)
    if not 0 <= options.temperature < math.inf:
        raise UserError(f"--temperature is {options.temperature}; it must be at least 0 and finite")
    start_tensorflow()
    import numpy as np

    from tfdecouple.cli.opening import drawn_indices, load_chosen, open_data, open_run
    from tfdecouple.cli.output import save_picture
    from tfdecouple.data import chosen_batches
    from tfdecouple.metrics.neighbours import NearestNeighbours
    from tfdecouple.runtime.progress import Counter
    from tfdecouple.visualization.grids import neighbour_grid

    opened = open_run(options)
    source = open_data(opened, options)
    model, has_z = opened.model, opened.config.model.has_encoder
    samples = np.asarray(model.sample(options.count, options.temperature, seed=options.seed))
    searched = drawn_indices(source, options.split, options.search or source.sizes[options.split], options.seed)
    count = min(_NEIGHBOURS, len(searched))

    searches = {"pixels": NearestNeighbours(samples, count)}
    if has_z:
        searches["z"] = NearestNeighbours(opened.z_of(samples), count)
    batch_size = max(16, min(256, _BATCH_VALUES // math.prod(opened.config.model.image_shape)))
    batches = chosen_batches(source, options.split, searched, batch_size=batch_size)
    done = 0
    with Counter("searching", len(searched)) as counter:
        for batch in batches:
            images = np.asarray(model.quantize_images(batch["image"]))
            searches["pixels"].add(images, batch["index"])
            if has_z:
                searches["z"].add(opened.z_of(images), batch["index"])
            counter(done := done + len(images))

    found = {}
    for name, search in searches.items():
        images, _ = load_chosen(source, options.split, search.indices.ravel())
        images = np.asarray(model.quantize_images(images))
        found[name] = images.reshape(*search.indices.shape, *images.shape[1:])
    copies = int((searches["pixels"].distances[:, 0] == 0).sum())
    caption = (
        f"Samples at temperature {options.temperature} and the {count} images nearest to each, by pixels"
        f"{' and by z' if has_z else ''}, among {len(searched):,} images ({source.title}, {options.split}). "
        f"{copies} of {options.count} samples equal one of them.\n{opened.note()}"
    )
    facts = {
        "data": source.title,
        "split": options.split,
        "searched": len(searched),
        "seed": options.seed,
        "count": options.count,
        "temperature": options.temperature,
        "copies": copies,
        "nearest": {
            name: {"indices": search.indices.tolist(), "distances": search.distances.tolist()}
            for name, search in searches.items()
        },
    }
    picture = neighbour_grid(samples, found, "sample", caption)
    says = f"{options.count} samples beside their nearest of {len(searched):,} images; {copies} equal one"
    save_picture(opened, options, "neighbours", picture, says, **facts)
    return 0
