"""`python -m tfdecouple sample`: new images at several temperatures."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from tfdecouple.cli import options as arguments
from tfdecouple.errors import UserError, nearest
from tfdecouple.runtime.process import start_tensorflow

if TYPE_CHECKING:
    from tfdecouple.cli.run_images import OpenedRun

TEMPERATURES = (0.5, 0.7, 0.8, 0.9, 1.0)


def add_parser(commands: Any) -> None:
    """Describes the arguments."""
    parser = arguments.command(
        commands,
        "sample",
        "draw new images at several temperatures",
        "A column shares its z and the direction of its v over all temperatures.",
    )
    arguments.add_run(parser)
    arguments.add_drawing(parser, 10, "samples at each temperature")
    parser.add_argument(
        "--temperatures",
        nargs="+",
        type=float,
        default=list(TEMPERATURES),
        metavar="T",
        help=f"factors of v (default {' '.join(map(str, TEMPERATURES))})",
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        metavar="NAME",
        help="of these labels, a row each, or of all; in a picture for each temperature. The model must know labels",
    )


def run(options: argparse.Namespace) -> int:
    """Writes sample.png and sample.json; with --labels such a pair for each temperature.

    Raises:
        UserError: for impossible arguments, a run without weights, unknown labels or samples that are not finite.
    """
    arguments.check(options)
    for temperature in options.temperatures:
        if not 0 <= temperature < math.inf:
            raise UserError(f"--temperatures has {temperature}; each must be at least 0 and finite")
    start_tensorflow()
    from tfdecouple.cli.output import save_picture
    from tfdecouple.cli.run_images import open_run
    from tfdecouple.runtime.progress import Counter
    from tfdecouple.visualization.grids import sample_grid

    opened = open_run(options)
    if options.labels:
        return _of_labels(opened, options)
    with Counter("sampling", options.count * len(options.temperatures)) as counter:
        picture = sample_grid(
            opened.model,
            count=options.count,
            seed=options.seed,
            temperatures=options.temperatures,
            note=f"\n{opened.note()}",
            on_images=counter,
        )
    facts = {"seed": options.seed, "count": options.count, "temperatures": options.temperatures}
    listed = ", ".join(map(str, options.temperatures))
    save_picture(opened, options, "sample", picture, f"{options.count} samples at temperature {listed}", **facts)
    return 0


def _of_labels(opened: OpenedRun, options: argparse.Namespace) -> int:
    """Writes sample-TEMPERATURE.png and .json for each temperature, with a row for each label."""
    from tfdecouple.cli.output import save_picture
    from tfdecouple.runtime.progress import Counter
    from tfdecouple.visualization.grids import class_grid

    names = opened.label_names
    if not names:
        raise UserError(f"--labels needs a model that knows labels, and that of {options.run} knows none")
    if unknown := [name for name in options.labels if name not in (*names, "all")]:
        raise UserError(
            f"--labels has {unknown[0]!r}, which is no label of {options.run}{nearest(unknown[0], names)}; it has "
            f"{', '.join(names[:20])}, and all stands for all"
        )
    wanted = names if "all" in options.labels else options.labels
    for temperature in options.temperatures:
        with Counter("sampling", options.count * len(wanted)) as counter:
            picture = class_grid(
                opened.model,
                [names.index(name) for name in wanted],
                names,
                columns=options.count,
                temperature=temperature,
                seed=options.seed,
                note=f"\n{opened.note()}",
                on_images=counter,
            )
        facts = {"seed": options.seed, "count": options.count, "temperature": temperature, "labels": list(wanted)}
        says = f"{options.count} samples of each of {len(wanted)} labels at temperature {temperature}"
        save_picture(opened, options, f"sample-{temperature:g}", picture, says, **facts)
    return 0
