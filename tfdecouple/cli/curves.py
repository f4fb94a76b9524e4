"""`python -m tfdecouple curves`: draws the metrics of training runs over the updates."""

import argparse
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.errors import RunError
from tfdecouple.runtime.process import start_tensorflow
from tfdecouple.runtime.requirements import require_packages

_METRICS = ("bits_per_dim", "kl", "dequantization", "learning_rate")


def add_parser(commands: Any) -> None:
    """Adds the command `curves` and its options to `commands`, the argparse sub-parsers of `tfdecouple`."""
    text = "draw bits/dim, KL, log q(u|x) and learning rate over the updates of one or several runs"
    parser = arguments.add_command(commands, "curves", text)
    text = "run folder, or bundled weights; give it again to compare runs"
    parser.add_argument("--run", required=True, action="append", metavar="RUN", help=text)
    arguments.add_out(parser)


def run(options: argparse.Namespace) -> int:
    """Runs the command `curves`: writes curves.png, the runs' metrics over the updates, and curves.json; returns 0."""
    require_packages("matplotlib", what="the command curves")
    start_tensorflow()
    from tfdecouple.cli.run_images import PICTURES, find_results_folder, write_picture
    from tfdecouple.runs.run_folder import RunFolder
    from tfdecouple.visualization.plots import plot_curves, render_figure

    names = [RunFolder(path).name for path in options.run]
    # In the legend, runs that share a name are called by their paths.
    shown = [name if names.count(name) == 1 else path for path, name in zip(options.run, names, strict=True)]
    curves = [read_training_curves(path, name) for path, name in zip(options.run, shown, strict=True)]
    runs = []
    for path, run in zip(options.run, curves, strict=True):
        last = max(steps[-1] for lines in (run.train, run.validation) for steps, _ in lines.values())
        runs.append({"run": path, "name": run.name, "last_step": last})
    summary = "; ".join(f"{run['name']} to update {run['last_step']:,}" for run in runs)
    path = find_results_folder(options.run[0], options.out, PICTURES) / "curves.png"
    write_picture(path, render_figure(plot_curves(curves)), {"command": "curves", "runs": runs})
    print(f"{path}: {summary}", flush=True)
    return 0


def read_training_curves(path: str, name: str) -> Any:
    """Returns the `Curves` of the run at `path`, called `name` in the legend; RunError without a log or bits/dim."""
    from tfdecouple.runs.run_folder import RunFolder
    from tfdecouple.visualization.plots import Curves

    config = RunFolder(path).read_config()
    # KL and log q(u|x) are 0 in the log of a model that lacks these terms, and are not drawn then.
    absent = {"kl": not config.model.has_encoder, "dequantization": not config.model.has_dequantizer}
    lines: dict[str, dict[str, tuple[list[float], list[float]]]] = {"train": {}, "validation": {}}
    for row in RunFolder(path).read_metrics():
        for metric in _METRICS:
            # The log has NaN and infinity as text, which cannot be drawn.
            value = row.get(metric)
            if row["kind"] in lines and isinstance(value, int | float) and not absent.get(metric):
                steps, values = lines[row["kind"]].setdefault(metric, ([], []))
                steps.append(row["step"])
                values.append(value)
    if not any("bits_per_dim" in curves for curves in lines.values()):
        raise RunError(f"{path} has no metrics: its metrics.jsonl is missing or has no rows yet")
    return Curves(name, lines["train"], lines["validation"])
