"""`python -m tfdecouple curves`: what metrics.jsonl says, drawn."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.errors import RunError
from tfdecouple.runtime.process import start_tensorflow

_FIGURES = ("bits_per_dim", "kl", "dequantization", "learning_rate")


def add_parser(commands: Any) -> None:
    """Describes the arguments."""
    parser = arguments.command(
        commands,
        "curves",
        "draw bits/dim, KL, log q(u|x) and learning rate over the updates of one or several runs",
    )
    parser.add_argument(
        "--run",
        required=True,
        action="append",
        metavar="RUN",
        help="run folder, or weights that come along; give it again to compare runs",
    )
    arguments.add_out(parser)


def run(options: argparse.Namespace) -> int:
    """Writes curves.png and curves.json, for several runs into the folder of the first.

    Raises:
        UserError: for a run that does not exist or has no figures yet, or weights on the Hub.
    """
    for path in options.run:
        if path.startswith(arguments.HUB):
            raise RunError(
                f"the figures of {path} are not fetched with its weights; fetch all of the repository, such as with "
                "hf download OWNER/NAME --local-dir DIR, and take --run DIR"
            )
    # Only metrics are read, but what reads them lies in modules that need TensorFlow.
    start_tensorflow()
    from tfdecouple.cli.output import save
    from tfdecouple.runs import load_config, run_name
    from tfdecouple.visualization.plots import curves_figure, png

    names = [run_name(path) for path in options.run]
    logs = []
    for path, name in zip(options.run, names, strict=True):
        config = load_config(path)
        # Runs of one name are told apart by what the user wrote.
        shown = name if names.count(name) == 1 else path
        # The log has every term; of a model that lacks one it is 0 all along.
        absent = {"kl": not config.model.has_encoder, "dequantization": not config.model.has_dequantizer}
        figures = [figure for figure in _FIGURES if not absent.get(figure)]
        logs.append(_read(path, shown, figures, config.training.noise_steps))
    facts = {"command": "curves", "runs": [_summary(path, log) for path, log in zip(options.run, logs, strict=True)]}
    says = "; ".join(f"{log.name} to update {_last(log):,}" for log in logs)
    save(options.run[0], options.out, "curves", png(curves_figure(logs)), facts, says)
    return 0


def _read(path: str, name: str, figures: Sequence[str], noise_steps: int) -> Any:
    from tfdecouple.runs import find_run
    from tfdecouple.training.log import read_metrics
    from tfdecouple.visualization.plots import Curves

    rows = read_metrics(find_run(path) / "metrics.jsonl")
    lines: dict[str, dict[str, tuple[list[float], list[float]]]] = {"train": {}, "validation": {}}
    for row in rows:
        for figure in figures:
            # A figure that was not finite is written as text.
            value = row.get(figure)
            if row["kind"] in lines and isinstance(value, int | float):
                steps, values = lines[row["kind"]].setdefault(figure, ([], []))
                steps.append(row["step"])
                values.append(value)
    if not any("bits_per_dim" in of_kind for of_kind in lines.values()):
        raise RunError(f"{path} has no figures in metrics.jsonl yet; wait for its first ones or train it")
    return Curves(name, lines["train"], lines["validation"], noise_steps)


def _summary(path: str, log: Any) -> dict[str, Any]:
    summary: dict[str, Any] = {"run": path, "name": log.name, "last_step": _last(log)}
    for kind, lines in (("train", log.train), ("validation", log.validation)):
        summary[kind] = {
            name: {"points": len(steps), "last": values[-1], "lowest": min(values)}
            for name, (steps, values) in lines.items()
        }
    return summary


def _last(log: Any) -> int:
    return max(steps[-1] for lines in (log.train, log.validation) for steps, _ in lines.values())
