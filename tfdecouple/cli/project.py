"""`python -m tfdecouple project`: shows the global codes z of images as points in a plane, by PCA or t-SNE."""

import argparse
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.errors import DataError
from tfdecouple.runtime.process import start_tensorflow
from tfdecouple.runtime.requirements import require_packages


def add_parser(commands: Any) -> None:
    """Adds the command `project` and its options to `commands`, the argparse sub-parsers of `tfdecouple`."""
    parser = arguments.add_command(
        commands,
        "project",
        "show the global codes z of images in the plane, coloured by label",
        "Images with similar z lie close together.",
    )
    arguments.add_run(parser)
    arguments.add_data(parser)
    arguments.add_drawing(parser, 1000, "images")
    arguments.add_choice(parser, "--method", ("pca", "tsne"), "pca, principal components, or tsne, t-SNE")


def run(options: argparse.Namespace) -> int:
    """Runs the command `project`: projects z of images to a plane, writes project-pca.png or -tsne.png; returns 0."""
    require_packages("matplotlib", what="the command project")
    start_tensorflow()
    import numpy as np

    from tfdecouple.cli.run_images import get_label_names, open_data, save_picture
    from tfdecouple.metrics.drawn_images import draw_image_indices
    from tfdecouple.runs.opened_run import Run
    from tfdecouple.visualization.plots import (
        plot_projection,
        project_by_t_sne,
        project_to_components,
        render_figure,
    )

    opened = Run.open(options.run, z_for="project")
    source = open_data(opened, options)
    indices = np.sort(draw_image_indices(source, options.split, options.count, options.seed))
    count = len(indices)
    if count < 4:
        raise DataError(f"project got {count} images; it needs at least 4")
    codes, labels = opened.encode_split(source, options.split, indices, "encoding")
    facts: dict[str, Any] = {"data": source.title, "split": options.split, "seed": options.seed, "count": count}
    facts["method"] = options.method
    if options.method == "pca":
        points, shares = project_to_components(codes)
        facts["explained_variance"] = shares.tolist()
        axes = tuple(f"principal component {n} ({share:.0%} of the variance)" for n, share in enumerate(shares, 1))
    else:
        points = project_by_t_sne(codes, options.seed)
        axes = ("t-SNE 1", "t-SNE 2")
    facts |= {"indices": indices.tolist(), "labels": get_label_names(source, labels), "points": points.tolist()}
    title = f"z of {count:,} images: {source.title}, {options.split}\n{opened.note()}"
    picture = render_figure(plot_projection(points, labels, source.label_names, axes, title))
    summary = f"z of {count:,} images by {'PCA' if options.method == 'pca' else 't-SNE'}"
    save_picture(opened, options, f"project-{options.method}", picture, summary, **facts)
    return 0
