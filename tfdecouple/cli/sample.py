"""`python -m tfdecouple sample`: draws new images at several temperatures."""

import argparse
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.errors import UserError, nearest
from tfdecouple.runtime.option_types import make_number_type
from tfdecouple.runtime.process import start_tensorflow


def add_parser(commands: Any) -> None:
    """Adds the command `sample` and its options to `commands`, the argparse sub-parsers of `tfdecouple`."""
    parser = arguments.add_command(
        commands,
        "sample",
        "draw new images at several temperatures",
        "The temperature multiplies v: below 1 samples are smoother. A column shares z and the direction of v.",
    )
    arguments.add_run(parser)
    arguments.add_drawing(parser, 10, "samples at each temperature")
    number, default = make_number_type(float, 0, arguments.MOST_TEMPERATURE), (0.5, 0.7, 0.8, 0.9, 1.0)
    text = f"temperatures (default {' '.join(map(str, default))})"
    parser.add_argument("--temperatures", nargs="+", type=number, default=default, metavar="T", help=text)
    text = "draw a row of samples for each of these labels, or for all; needs a model with labels"
    parser.add_argument("--labels", nargs="+", metavar="NAME", help=text)


def run(options: argparse.Namespace) -> int:
    """Runs the command `sample`: writes samples as sample.png, or with --labels a PNG per temperature; returns 0."""
    start_tensorflow()
    from tfdecouple.cli.run_images import save_picture
    from tfdecouple.runs.opened_run import Run
    from tfdecouple.runtime.progress import Counter
    from tfdecouple.visualization.grids import draw_class_grid, draw_sample_grid

    opened = Run.open(options.run)
    facts = {"seed": options.seed, "count": options.count}
    drawing: dict[str, Any] = {"seed": options.seed, "note": f"\n{opened.note()}"}
    if not options.labels:
        drawing |= {"count": options.count, "temperatures": options.temperatures}
        with Counter("sampling", options.count * len(options.temperatures)) as counter:
            picture = draw_sample_grid(opened.model, on_images=counter, **drawing)
        summary = f"{options.count} samples at temperature {', '.join(map(str, options.temperatures))}"
        save_picture(opened, options, "sample", picture, summary, **facts, temperatures=options.temperatures)
        return 0
    names = opened.label_names
    if not names:
        raise UserError(f"--labels needs a model that knows labels, and that of {options.run} knows none")
    labels = list(names) if "all" in options.labels else options.labels
    for label in labels:
        if label not in names:
            raise UserError(f"--labels has {label!r}, which is no label of {options.run}{nearest(label, names)}")
    rows = [names.index(label) for label in labels]
    for temperature in options.temperatures:
        drawing |= {"columns": options.count, "temperature": temperature}
        with Counter("sampling", options.count * len(labels)) as counter:
            picture = draw_class_grid(opened.model, rows, names, on_images=counter, **drawing)
        summary = f"{options.count} samples of each of {len(labels)} labels at temperature {temperature}"
        facts |= {"temperature": temperature, "labels": labels}
        save_picture(opened, options, f"sample-{temperature:g}", picture, summary, **facts)
    return 0
