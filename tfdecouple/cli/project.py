"""`python -m tfdecouple project`: the global codes of images in the plane."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.errors import DataError, UserError
from tfdecouple.runtime.process import start_tensorflow

_METHODS = ("pca", "tsne")
_LEAST = 4
_SLOW = 2000


def add_parser(commands: Any) -> None:
    """Describes the arguments."""
    parser = arguments.command(
        commands,
        "project",
        "show the global codes z of images in the plane, coloured by label",
        "What lies together is alike to z.",
    )
    arguments.add_run(parser)
    arguments.add_data(parser)
    arguments.add_drawing(parser, 1000, "images")
    parser.add_argument("--method", default="pca", metavar="NAME", help="pca or tsne (default pca)")


def run(options: argparse.Namespace) -> int:
    """Writes project-METHOD.png and project-METHOD.json.

    Raises:
        UserError: for impossible arguments, a run without weights or without z, or missing or unreadable images.
    """
    arguments.check(options)
    if options.method not in _METHODS:
        raise UserError(f"--method is {options.method!r}; it must be {' or '.join(_METHODS)}")
    start_tensorflow()
    import numpy as np

    from tfdecouple.cli.output import save_picture
    from tfdecouple.cli.run_images import drawn_indices, label_names, open_data, open_run
    from tfdecouple.visualization.plots import png, projection_figure
    from tfdecouple.visualization.projection import principal_components, t_sne

    opened = open_run(options, z_for="project")
    source = open_data(opened, options)
    indices = np.sort(drawn_indices(source, options.split, options.count, options.seed))
    if len(indices) < _LEAST:
        raise DataError(
            f"project got {len(indices)} images; it needs at least {_LEAST}: raise --count or take more data"
        )
    codes, labels = opened.z_and_labels(source, options.split, indices, "encoding")

    facts: dict[str, Any] = {
        "data": source.title,
        "split": options.split,
        "seed": options.seed,
        "count": len(indices),
        "method": options.method,
    }
    if options.method == "pca":
        points, shares = principal_components(codes)
        facts["explained_variance"] = shares.tolist()
        axes = tuple(f"principal component {n} ({share:.0%} of the variance)" for n, share in enumerate(shares, 1))
    else:
        if len(codes) > _SLOW:
            print(f"t-SNE of {len(codes):,} images; it takes some seconds for each thousand", file=sys.stderr)
        points = t_sne(codes, options.seed)
        axes = ("t-SNE 1", "t-SNE 2")
    facts |= {"indices": indices.tolist(), "labels": label_names(source, labels), "points": points.tolist()}
    title = f"z of {len(indices):,} images: {source.title}, {options.split}\n{opened.note()}"
    picture = png(projection_figure(points, labels, source.label_names, axes, title))
    says = f"z of {len(indices):,} images by {'PCA' if options.method == 'pca' else 't-SNE'}"
    save_picture(opened, options, f"project-{options.method}", picture, says, **facts)
    return 0
