"""Makes the tables of docs/RESULTS.md and docs/results/details.md from JSON files, and measures the runs again.

    python benchmarks/results.py                              # makes the tables from docs/results, in seconds
    python benchmarks/results.py --check                      # checks that the tables agree with the files
    python benchmarks/results.py --measure --data-dir DIR --extractor FILE     # measures all again, which takes long
    python benchmarks/results.py --measure pictures exactness --data-dir DIR   # measures some; --list has the names

Every number in these tables is in a file in docs/results. Training wrote metrics.jsonl and summary.json. Commands
that --list shows wrote the other files from the weights in the repository, with these exceptions: benchmarks/trials.py
writes trials.json and `benchmarks/trials.py --measure RUN` prints probe.json, and the weights of conditional-kl0.03 are
in an earlier commit. The repository has no weights of the quickstart: the commands under "quickstart" train them first.
`make results` runs the third command above. In a page each table stands between its lines `<!-- NAME -->` and
`<!-- end NAME -->`.
"""

import argparse
import functools
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import paper
from benchmarks.common import ROOT, make_table, update_page
from tfdecouple.errors import UserError
from tfdecouple.loggers import read_metrics
from tfdecouple.metrics.metric import Estimate
from tfdecouple.storage.files import read_json
from tfdecouple.system.process import run_program

PAGE, FILES = ROOT / "docs" / "RESULTS.md", ROOT / "docs" / "results"
# The page of the tables that few readers need.
DETAILS = FILES / "details.md"
# The three compared models: {folder of the run in docs/results: name in the tables}.
RUNS = {"conditional": "ours", "base": "baseline", "glow": "Glow"}
# The part of each compared model that z conditions: {folder of the run in docs/results: part of the model}.
CONDITIONED = {
    "conditional": "every coupling",
    "base": "mean and scale of the Gaussian of v (the paper's Table 3)",
    "glow": "nothing (no z)",
}
# Our model with another KL weight, in the tables "bits" and "probe"; weights and log are in commit a09d8794.
SMALL_KL = "conditional-kl0.03"
TITLES = RUNS | {SMALL_KL: "ours, KL weight 0.03"}
# For each compared model, the preset of the larger model in the paper; the paper's images differ from ours, too.
PAPER_PRESETS = {"conditional": "cifar10", "base": "cifar10_base_conditioned", "glow": "cifar10_glow"}
PAPER_INFOMAX = "49.62"
# The short trainings in docs/results/seeds/NAME-UPDATES-SEED: {NAME: name in the table}, and their numbers of updates.
SHORT_RUNS = {
    "conditional-kl0.3": "ours",
    "conditional": "ours, KL weight 0.03",
    "conditional-kl1": "ours, KL weight rising to 1",
    "base": "baseline",
    "glow": "Glow",
}
SHORT_STEPS = (2000, 4000, 8000)
# The number of updates of the long runs, and the accuracy of z, in per cent, up to which `draw_budget` extrapolates.
LONG_STEPS, GOAL = 91000, 54
# This name in a command stands for the value of --extractor, the ONNX feature extractor of the Fréchet distance.
EXTRACTOR = "efficientnet_lite0_features.onnx"
# Commands of `tfdecouple` that read no images and therefore take no --data-dir.
WITHOUT_IMAGES = {"curves", "sample"}

_PROGRAM = "python -m tfdecouple"
_RUN = "docs/results"
_QUICKSTART = "runs/quickstart"


def list_commands() -> dict[str, list[str]]:
    """Returns {name for --measure, such as "bits": list of the command lines that write files in docs/results}."""
    runs = [f"{_RUN}/{run}" for run in RUNS]
    all_runs, ours = " ".join(f"--run {run}" for run in runs), runs[0]
    exactness, evaluate = "python benchmarks/exactness.py", f"{_PROGRAM} evaluate --run"
    outliers = "--outliers photographs noise constant permuted"
    return {
        "quickstart": [
            f"python train.py --workdir {_QUICKSTART}",
            f"{_PROGRAM} switch --run {_QUICKSTART} --out {_RUN}/quickstart/pictures --seed 1",
        ],
        "curves": [f"{_PROGRAM} curves {all_runs} --out {_RUN}", f"{_PROGRAM} curves --run {ours}"],
        "bits": [f"{evaluate} {run}" for run in runs],
        "importance": [
            f"{evaluate} {run} --importance 16 --images 1000 --out {run}/evaluation/importance" for run in runs
        ],
        "latent-use": [f"{evaluate} {run} --latent-use" for run in runs[:2]],
        "probe": [f"{evaluate} {ours} --probe --probe-images 10000 --out {ours}/evaluation/probe"],
        "statistics": [f"{evaluate} {ours} --image-statistics --images 500 --out {ours}/evaluation/statistics"],
        "frechet": [f"{evaluate} {run} --frechet {EXTRACTOR}" for run in runs],
        "outliers": [f"{evaluate} {ours} --images 1000 {outliers} --out {ours}/evaluation/outliers"],
        "pictures": [
            f"{_PROGRAM} sample --run {ours}",
            f"{_PROGRAM} neighbours --run {ours} --search 0",
            f"{_PROGRAM} project --run {ours}",
            f"{_PROGRAM} reconstruct --run {ours}",
            f"{_PROGRAM} switch --run {ours}",
            f"{_PROGRAM} interpolate --run {ours} --seed 4",
        ],
        "exactness": [
            f"{exactness} --count 256 --data photographs --data cifar10 --run {_QUICKSTART} {all_runs} "
            f"--json {_RUN}/exactness.json",
            f"{exactness} --every-image --data cifar10 {all_runs} --json {_RUN}/every_image.json",
        ],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="*", metavar="NAME", help="first run these commands (default all)")
    parser.add_argument("--data-dir", help="folder of TensorFlow Datasets, for --measure")
    parser.add_argument("--extractor", help=f"path of {EXTRACTOR}, for --measure frechet")
    text = "change nothing: print the lines of the page that differ from the files"
    parser.add_argument("--check", action="store_true", help=text)
    parser.add_argument("--list", action="store_true", help="print the commands, and end")
    options = parser.parse_args()
    commands = list_commands()
    if options.list:
        for name, lines in commands.items():
            print("\n".join([f"{name}:", *(f"    {line}" for line in lines)]))
        return 0
    if options.measure is not None:
        for name in options.measure:
            if name not in commands:
                raise UserError(f"--measure: there is no {name!r}; there are {', '.join(commands)}")
        lines = [line for name in options.measure or commands for line in commands[name]]
        # A missing --extractor raises an error before the first command runs, because the commands take long.
        if not options.extractor and any(EXTRACTOR in shlex.split(line) for line in lines):
            raise UserError(f"--extractor is missing: --measure frechet needs {EXTRACTOR}")
        for line in lines:
            run_command(line, options)
    return update_pages(options.check)


def update_pages(check: bool) -> int:
    """Makes tables and plot, or with `check` prints the lines that differ; returns 1 if there are any, else 0."""
    if not check:
        draw_budget().savefig(FILES / "budget.png")
    pages = {PAGE: TABLES, DETAILS: DETAIL_TABLES}
    return max(
        update_page(page, {name: render() for name, render in tables.items()}, check) for page, tables in pages.items()
    )


def run_command(line: str, options: argparse.Namespace) -> None:
    """Runs `line`, from `list_commands`, with the values of --extractor and --data-dir; UserError if it fails."""
    words = [options.extractor if word == EXTRACTOR else word for word in shlex.split(line)]
    if options.data_dir and words[3] not in WITHOUT_IMAGES and _QUICKSTART not in words[:6]:
        words += ["--data-dir", options.data_dir]
    print(line, flush=True)
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, check=False)
    if done.returncode:
        raise UserError(f"{line} ended with status {done.returncode}")


@functools.cache
def load_result(name: str) -> Any:
    """Returns the parsed content of the JSON file `name` in docs/results; each file is read only once."""
    return read_json(FILES / name)


# --- Each function below makes one table. ---


def _render_models() -> str:
    presets = {run: f"`{load_result(f'{run}/config.json')['name']}`" for run in RUNS}
    counts = {run: load_result(f"{run}/summary.json")["parameters"]["total"] for run in RUNS}
    rows = [[name, presets[run], counts[run], CONDITIONED[run]] for run, name in RUNS.items()]
    return make_table(["model", "preset", "parameters", "what z conditions"], rows)


def _render_bits() -> str:
    rows = []
    for run, name in RUNS.items():
        full = load_result(f"{run}/evaluation/bits_per_dim-test.json")
        subset = load_result(f"{run}/evaluation/importance/bits_per_dim-test.json")
        weighted = load_result(f"{run}/evaluation/importance/importance-test.json")
        rows.append(
            [
                name,
                f"{load_result(f'{run}/summary.json')['validation_bits_per_dim']:.4f}",
                _format_bits(full),
                f"{subset['bits_per_dim']:.4f}",
                _format_bits(weighted),
                paper.BITS[PAPER_PRESETS[run]],
            ]
        )
    validation = load_result(f"{SMALL_KL}/summary.json")["validation_bits_per_dim"]
    test = load_result(f"{SMALL_KL}/evaluation/probe/bits_per_dim-test.json")
    rows.append([TITLES[SMALL_KL], f"{validation:.4f}", _format_bits(test), "", "", ""])
    codecs = load_result("conditional/summary.json")
    images, bits = codecs["lossless_codecs_images"], codecs["lossless_codecs_bits_per_dim"]
    rows.append([f"lossless WebP files, {images:,} test images", "", f"{bits['webp']:.3f}", "", "", ""])
    rows.append([f"PNG files, {images:,} test images", "", f"{bits['png']:.3f}", "", "", ""])
    count, draws = weighted["images"], weighted["k"]
    header = ["bits/dim", "ELBO, validation images", "ELBO, test images", f"ELBO, {count:,} test images"]
    header.append(f"importance-weighted bound, {draws} draws, {count:,} test images")
    return make_table([*header, "in the paper"], rows)


def _format_bits(evaluation: dict[str, Any]) -> str:
    return Estimate(evaluation["bits_per_dim"], evaluation["standard_error"]).to_text(4)


def load_seeds() -> dict[tuple[str, int], dict[int, dict[str, float]]]:
    """Returns {(short training, its number of updates): {seed: metrics}} from docs/results/seeds.

    The metrics are "bits" (bits/dim of the validation images), and for some trainings "accuracy" (that of z, in %).
    """
    seeds: dict[tuple[str, int], dict[int, dict[str, float]]] = {}
    for folder in sorted((FILES / "seeds").iterdir()):
        name, steps, seed = folder.name.rsplit("-", 2)
        metrics = {"bits": dict(_read_validation(folder))[int(steps)]}
        if (folder / "probe.json").is_file():
            metrics["accuracy"] = 100 * load_result(f"seeds/{folder.name}/probe.json")["probe_accuracy"]
        seeds.setdefault((name, int(steps)), {})[int(seed)] = metrics
    return seeds


def _read_validation(run: pathlib.Path) -> list[tuple[int, float]]:
    """Returns (training step, bits/dim) of each evaluation on validation images, from metrics.jsonl in `run`."""
    rows = read_metrics(run / "metrics.jsonl")
    return [(row["step"], row["bits_per_dim"]) for row in rows if row["kind"] == "validation"]


def compare_with_glow(name: str, steps: int) -> list[float]:
    """Returns bits/dim of the short training `name` minus Glow's, for each seed of both, which see equal images."""
    seeds = load_seeds()
    ours, glow = seeds.get((name, steps), {}), seeds["glow", steps]
    return [ours[seed]["bits"] - glow[seed]["bits"] for seed in ours if seed in glow]


def _render_seeds() -> str:
    seeds, rows = load_seeds(), []
    for name, title in SHORT_RUNS.items():
        bits = [[metrics["bits"] for metrics in seeds.get((name, steps), {}).values()] for steps in SHORT_STEPS]
        rows.append([title, *map(_format_seeds, bits), ", ".join(f"{value:.4f}" for value in bits[-1])])
    for name in [name for name in SHORT_RUNS if name != "glow"]:
        differences = [compare_with_glow(name, steps) for steps in SHORT_STEPS]
        rows.append([f"{SHORT_RUNS[name]}, minus Glow", *map(_format_seeds, differences), ""])
    titles = [f"{steps:,} updates" for steps in SHORT_STEPS]
    return make_table(["model", *titles, f"{titles[-1]}, seeds 0, 1, 2"], rows)


def _format_seeds(values: list[float]) -> str:
    more = f" ({len(values)} seeds)" if len(values) > 3 else ""
    return Estimate.from_values(values).to_text(4) + more if values else ""


def draw_budget() -> Figure:
    """Plots our model's bits/dim minus Glow's, and the accuracy of z, over the number of updates of a training.

    Bars are two standard errors over seeds; the longest trainings have one seed. The line through the accuracies is
    linear in the logarithm of the number of updates, and ends where it reaches `GOAL`.
    """
    seeds, name = load_seeds(), next(iter(SHORT_RUNS))
    bits = {steps: compare_with_glow(name, steps) for steps in SHORT_STEPS}
    accuracies = {steps: [metrics["accuracy"] for metrics in seeds[name, steps].values()] for steps in SHORT_STEPS}
    ours, glow = (dict(_read_validation(FILES / run))[LONG_STEPS] for run in ("conditional", "glow"))
    bits[LONG_STEPS] = [ours - glow]
    accuracies[LONG_STEPS] = [100 * load_result("conditional/evaluation/probe.json")["probe_accuracy"]]
    figure = Figure(figsize=(9, 3.6), dpi=100, layout="constrained")
    panels = figure.subplots(1, 2)
    labels = ("bits/dim, ours minus Glow", "accuracy of z, %")
    for axes, label, metric in zip(panels, labels, (bits, accuracies), strict=True):
        estimates = [Estimate.from_values(values) for values in metric.values()]
        errors = [2 * estimate.standard_error for estimate in estimates]
        means = [estimate.mean for estimate in estimates]
        axes.errorbar(list(metric), means, errors, fmt="o", capsize=4)
        axes.set(xscale="log", xlabel="updates", ylabel=label)
        axes.grid(color="#DDDDDD")
        axes.margins(y=0.12)
    panels[0].axhline(0, color="black", linewidth=1)
    slope, start = np.polyfit(np.log([*accuracies]), [np.mean(values) for values in accuracies.values()], 1)
    reached = np.exp((GOAL - start) / slope)
    line = np.array([SHORT_STEPS[0], reached])
    panels[1].plot(line, start + slope * np.log(line), "--", color="#999999")
    panels[1].annotate(f"{GOAL} % after {round(reached, -4):,.0f} updates?  ", (reached, GOAL), ha="right")
    return figure


def _render_probe() -> str:
    rows: list[list[object]] = []
    names, kinds = {"pixels": "raw pixels", "pixels, PCA": "raw pixels, PCA"}, ["linear SVM", "logistic regression"]
    # Pixels have one row, because their accuracy does not depend on the model.
    for run, pixels in (("conditional", ("pixels", "pixels, PCA")), (SMALL_KL, ())):
        results = load_result(f"{run}/evaluation/probe/probe-test.json")["results"]
        by_features = {result["features"]: result for result in results}
        for features in ("z", "v", "v, PCA", *pixels):
            result, strong = by_features[features], "**" if features == "z" else ""
            accuracies = [100 * result["classifiers"][kind]["accuracy"] for kind in kinds]
            per_cent = [f"{strong}{accuracy:.1f}{strong}" for accuracy in accuracies]
            in_paper = paper.PROBE.get(features, "") if run == "conditional" else ""
            of = "" if features in names else TITLES[run]
            rows.append([names.get(features, features), of, result["dimensions"], *per_cent, in_paper])
    rows.append(["Deep InfoMax, quoted by the paper", "", "", "", "", PAPER_INFOMAX])
    return make_table(["features", "model", "dimensions", *kinds, "in the paper"], rows)


def _render_statistics() -> str:
    rows = []
    measured = load_result("conditional/evaluation/statistics/image_statistics-test.json")["statistics"]
    for name, metrics in measured.items():
        explained = [f"{metrics['r2'][kind]['mean']:z.2f}" for kind in ("z", "v, PCA", "pixels, PCA")]
        switch = metrics["switch"]
        followed = [Estimate(**switch[code]).to_text(2) for code in ("z", "v")]
        nearer = f"{100 * switch['nearer_to_z']['mean']:.0f}"
        rows.append([name, *explained, *followed, nearer])
    header = ["statistic", "R2 from z", "R2 from v, PCA", "R2 from pixels, PCA"]
    return make_table([*header, "follows z", "follows v", "nearer to the image of z, %"], rows)


def _render_frechet() -> str:
    rows = [
        [name, f"{load_result(f'{run}/evaluation/frechet-test.json')['distance']:.1f}", paper.FID[PAPER_PRESETS[run]]]
        for run, name in RUNS.items()
    ]
    floor = load_result("conditional/evaluation/frechet-test.json")["floor"]
    rows.append(["none (training images)", f"{floor:.1f}", ""])
    return make_table(["model", "Frechet distance", "FID in the paper"], rows)


def _render_exactness() -> str:
    kinds: dict[str, dict[str, Any]] = {}
    for row in load_result("exactness.json")["rows"]:
        kinds.setdefault(row["images"], {})[row["run"]] = row
    titles = {run: TITLES.get(run, run) for run in ("quickstart", "conditional")}
    rows = []
    for kind, by_run in kinds.items():
        lengths = [f"{by_run[run]['least_rms']:.2f} to {by_run[run]['most_rms']:.2f}" for run in titles]
        lost = [f"{row['lost']} with {TITLES[run]}" for run, row in by_run.items() if row["lost"]]
        rows.append([kind, by_run["quickstart"]["of"], ", ".join(lost) or 0, *lengths])
    header = ["images", "number", "inexact", *(f"RMS of v, {title}" for title in titles.values())]
    return make_table(header, rows)


# Outlier scores, the rows of the table "outliers": {name in the JSON file: title in the table}.
SCORES = {"bits_per_dim": "bits/dim", "bits_per_dim_minus_codec": "bits/dim minus WebP's", "prior_nats": "-log p(z)"}
SCORES |= {"shell": "shell (length of v)", "typicality": "typicality"}
# Sets of outlier images, the columns of the table "outliers": {name in the JSON file: title in the table}.
OUTLIERS = {"photographs": "sample photographs", "noise": "noise", "constant": "single colours"}
OUTLIERS |= {"permuted": "permuted pixels"}


def _render_outliers() -> str:
    outliers, rows = load_result("conditional/evaluation/outliers/outliers-test.json")["outliers"], []
    for score, name in SCORES.items():
        row = [name]
        for kind in OUTLIERS:
            area = outliers[kind]["detection"][score]
            interval = "-".join(f"{end:.3f}" for end in area["auroc_interval"])
            row.append(f"{area['auroc']:.3f} ({interval})")
        rows.append(row)
    return make_table(["score", *OUTLIERS.values()], rows)


TABLES: dict[str, Callable[[], str]] = {
    "models": _render_models,
    "bits": _render_bits,
    "probe": _render_probe,
    "frechet": _render_frechet,
}
DETAIL_TABLES: dict[str, Callable[[], str]] = {
    "seeds": _render_seeds,
    "statistics": _render_statistics,
    "exactness": _render_exactness,
    "outliers": _render_outliers,
}


if __name__ == "__main__":
    sys.exit(run_program(main))
