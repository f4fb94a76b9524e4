"""Runs trials of training options: short training runs, compared on validation images in one table.

    python benchmarks/trials.py --data-dir DIR                 # runs all trials without a result; SIGTERM interrupts
    python benchmarks/trials.py --data-dir DIR --only alpha-0.5  # runs one trial with all its seeds
    python benchmarks/trials.py --list
    python benchmarks/trials.py --docs docs/results/trials.md      # makes the table from the results

`benchmarks/trials.json` has the options that all trials share, and the name, options and seeds of each trial. A trial
with `from` begins with the options of the trial of that name. Seed 0 of all trials comes first, then seed 1.

Each trial is `python train.py` with a run folder in --workdir. The test images are not used
(`training.evaluation_samples=0`). Then logistic regression predicts the class from z (the posterior mean). It is fitted
on 10,000 training images, with C chosen on a fifth of them, and tested on 10,000 other training images, because 1,000
validation images are too few to distinguish trials; the model has seen these images without labels. After each trial
the program writes a row with the command and the metrics to --json. A trial that has a row is not run again, and an
interrupted trial resumes from its last checkpoint.
"""

import argparse
import json
import pathlib
import shlex
import signal
import subprocess
import sys
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, make_table, run_json, update_page
from tfdecouple.errors import DivergedError, UserError
from tfdecouple.loggers import read_metrics
from tfdecouple.storage.files import read_json, write_json
from tfdecouple.system.process import run_program, start_tensorflow
from tfdecouple.system.signals import InterruptedRunError

PLAN, ROWS = ROOT / "benchmarks" / "trials.json", ROOT / "docs" / "results" / "trials.json"
# Number of training images on which the classifier of z is fitted; the test has as many other training images.
PROBED = 10_000


class Trial(NamedTuple):
    """One training run: the options of a trial (an experiment of trials.json) and one seed."""

    name: str
    seed: int
    # Arguments of train.py, except for the run folder and the data folder, and those that the table shows.
    arguments: tuple[str, ...]
    shown: tuple[str, ...]

    @property
    def key(self) -> str:
        """The name of the run folder of this trial: the trial's name and seed, such as "alpha-0.5-0"."""
        return f"{self.name}-{self.seed}"

    @property
    def command(self) -> str:
        """The command line that trains this trial, a text without the run folder and the data folder."""
        return f"python train.py {shlex.join(self.arguments)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", nargs="+", default=[], help="names of trials (default all)")
    runs = pathlib.Path("runs/trials")
    parser.add_argument("--workdir", type=pathlib.Path, default=runs, help="folder of the run folders")
    parser.add_argument("--data-dir", help="folder of TensorFlow Datasets")
    parser.add_argument("--json", type=pathlib.Path, default=ROWS, help=f"rows (default {ROWS.relative_to(ROOT)})")
    parser.add_argument("--docs", type=pathlib.Path, help="put the table into this file, at <!-- trials -->, and end")
    parser.add_argument("--list", action="store_true", help="print the commands of the trials without a row, and end")
    parser.add_argument("--measure", type=pathlib.Path, metavar="RUN", help="print the accuracy of z of a run, and end")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure_probe(options.measure, options.data_dir)))
        return 0
    rows = read_rows(options.json)
    if options.docs:
        return update_page(options.docs, {"trials": render_trials(rows)})
    waiting = [trial for trial in list_trials(options.only) if find_row(trial, rows) is None]
    if options.list:
        for trial in waiting:
            print(f"{trial.key}: {trial.command}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(InterruptedRunError.status))
    for trial in waiting:
        others = [row for row in rows if (row["name"], row["seed"]) != (trial.name, trial.seed)]
        rows = [*others, run_trial(trial, options)]
        write_json(options.json, {"rows": rows})
    return 0


def list_trials(only: list[str] | None = None) -> list[Trial]:
    """Returns a `Trial` for each trial in trials.json (or each named in `only`) and seed, all with seed 0 first."""
    plan = read_json(PLAN)
    trials = plan["trials"]
    options = {trial["name"]: trial.get("set", []) for trial in trials}
    for name in only or []:
        if name not in options:
            raise UserError(f"--only: there is no trial {name!r}; there are {', '.join(options)}")
    listed = []
    for seed in range(1 + max(max(trial.get("seeds", [0])) for trial in trials)):
        for trial in trials:
            if seed in trial.get("seeds", [0]) and (not only or trial["name"] in only):
                start = options[trial["from"]] if "from" in trial else []
                listed.append(_make_trial(plan, trial, [*start, *options[trial["name"]]], seed))
    return listed


def _make_trial(plan: dict[str, Any], trial: dict[str, Any], changes: list[str], seed: int) -> Trial:
    shown = [f"--{name} {trial[name]}" for name in ("preset", "steps") if name in trial]
    words = [word for name in ("preset", "steps") for word in (f"--{name}", str(trial.get(name, plan[name])))]
    words += [word for text in (*plan["set"], f"training.seed={seed}", *changes) for word in ("--set", text)]
    return Trial(trial["name"], seed, tuple(words), (*shown, *changes))


def find_row(trial: Trial, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the dict of metrics in `rows` with this trial's name, seed and command, or None if there is none."""
    key = (trial.name, trial.seed, trial.command)
    return next((row for row in rows if (row["name"], row["seed"], row["command"]) == key), None)


def run_trial(trial: Trial, options: argparse.Namespace) -> dict[str, Any]:
    """Runs train.py for a trial and measures z; returns a dict of metrics, or of the step where training diverged."""
    run = options.workdir.resolve() / trial.key
    data = ["--data-dir", options.data_dir] if options.data_dir else []
    command = [sys.executable, "train.py", *trial.arguments, "--workdir", str(run), *data]
    print(f"{trial.key}: {trial.command}", flush=True)
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            status = process.wait()
        except (SystemExit, KeyboardInterrupt):
            # On SIGTERM, the program train.py saves a checkpoint before it ends.
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    if status == InterruptedRunError.status:
        raise SystemExit(InterruptedRunError.status)
    if status not in (0, DivergedError.status):
        raise UserError(f"{trial.key}: train.py ended with status {status}; the run is in {run}")
    row: dict[str, Any] = {"name": trial.name, "seed": trial.seed, "command": trial.command}
    metrics = [*read_metrics(run / "metrics.jsonl")]
    if status == DivergedError.status:
        row["diverged_after"] = metrics[-1]["step"]
    else:
        summary = read_json(run / "summary.json")
        (best,) = [row for row in metrics if (row["kind"], row["step"]) == ("validation", summary["best_step"])]
        row |= {
            "data": summary["data"],
            "parameters": summary["parameters"]["total"],
            "step": summary["best_step"],
            **{f"validation_{name}": best[name] for name in ("bits_per_dim", "standard_error", "kl", "images")},
            **run_json([sys.executable, str(ROOT / "benchmarks" / "trials.py"), "--measure", str(run), *data]),
        }
    print(f"{trial.key}: {json.dumps(row)}", flush=True)
    return row


def measure_probe(run: pathlib.Path, data_dir: str | None) -> dict[str, Any]:
    """Returns a dict: accuracy of logistic regression that predicts classes from z; {} for a run without z."""
    start_tensorflow()
    import numpy as np

    from tfdecouple.metrics.classification import fit_classifier, read_labelled_images, standardize_features
    from tfdecouple.runs.opened_run import Run

    opened = Run.open(run)
    if not opened.config.model.has_latent:
        return {}
    source, model, size = opened.open_source(data_dir=data_dir), opened.model, 250
    half = min(PROBED, source.sizes["train"] // 2)
    images, labels = read_labelled_images(model, source, "train", 2 * half, seed=0, batch_size=size)
    means = [model.posterior(images[start : start + size]).mean() for start in range(0, 2 * half, size)]
    z = np.concatenate(means)
    fitted_on, held_out = standardize_features(z[:half], z[half:])
    classifier, choice = fit_classifier("logistic regression", fitted_on, labels[:half])
    accuracy = float(np.mean(classifier.predict(held_out) == labels[half:]))
    return {
        "step": opened.step,
        "probe_images": half,
        "probe_C": choice["C"],
        "probe_accuracy": accuracy,
        "probe_standard_error": float(np.sqrt(accuracy * (1 - accuracy) / half)),
    }


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the trials' metrics in a JSON file, a list with a dict for each trial and seed; [] without the file."""
    return read_json(path)["rows"] if path.is_file() else []


def render_trials(rows: list[dict[str, Any]]) -> str:
    """Returns a Markdown table of `rows`, metrics of trials, with a line for each trial whose options still exist."""
    seeds: dict[str, tuple[Trial, list[list[str]]]] = {}
    for trial in list_trials():
        if row := find_row(trial, rows):
            seeds.setdefault(trial.name, (trial, []))[1].append(_format_metrics(row))
    lines = []
    for name, (trial, metrics) in seeds.items():
        cells = [", ".join(values).strip(", ") for values in zip(*metrics, strict=True)]
        lines.append([name, f"`{' '.join(trial.shown)}`" if trial.shown else "", *cells])
    header = ["trial", "options", "bits/dim, seeds 0, 1, 2", "KL of z, nats", "accuracy of z, %"]
    return make_table(header, lines) if lines else "No trial has been run yet."


def _format_metrics(row: dict[str, Any]) -> list[str]:
    if "diverged_after" in row:
        return [f"diverged after {row['diverged_after']} updates", "", ""]
    bits = f"{row['validation_bits_per_dim']:.4f}"
    if "probe_accuracy" not in row:
        return [bits, "", ""]
    return [bits, f"{row['validation_kl']:.1f}", f"{100 * row['probe_accuracy']:.1f}"]


if __name__ == "__main__":
    sys.exit(run_program(main))
