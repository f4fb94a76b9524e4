"""Makes the tables of docs/RESULTS.md from the JSON files in docs/results, and measures the committed runs again.

    python benchmarks/results.py                              # makes the tables from docs/results, in seconds
    python benchmarks/results.py --check                      # checks that the page agrees with the files
    python benchmarks/results.py --measure --data-dir DIR --extractor FILE     # measures all again, which takes long
    python benchmarks/results.py --measure pictures exactness --data-dir DIR   # measures some; --list has the names

Every number on the page is in a file in docs/results. Training wrote metrics.jsonl and summary.json. The commands that
--list shows wrote the other files from the committed weights, with two exceptions: trials.json has its own commands,
and by_length.json has metrics of earlier weights, with the commits that hold the weights. The weights of the quickstart
are not committed: the commands under "quickstart" train them first. `make results` runs the third command above. Each
table is between its lines `<!-- NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import table  # noqa: E402
from benchmarks.scaling import put  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402
from tfdecouple.runtime.process import run_program  # noqa: E402

PAGE, FILES = ROOT / "docs" / "RESULTS.md", ROOT / "docs" / "results"
# The page's name of each compared model by the folder of its run, and the part of the model that z conditions.
RUNS = {"conditional": "ours", "base": "baseline", "glow": "Glow"}
CONDITIONED = {
    "conditional": "every coupling",
    "base": "mean and scale of the Gaussian of v (the paper's Table 3)",
    "glow": "no z",
}
# The run with 256 numbers in z, which is only in the tables "models" and "probe"; commit 0e3fdba has its weights.
LATENT_256 = "latent256"
TITLES = RUNS | {LATENT_256: "ours, larger z"}
# Results in Tables 1, 3 and 4 of the paper, for its own images and model size.
PAPER_BITS = {"conditional": "3.27", "base": "3.31", "glow": "3.33"}
PAPER_FID = {"conditional": "37.52", "base": "43.34", "glow": ""}
PAPER_PROBE = {"z": "59.5", "v": "17.2", "pixels": "35.3"}
PAPER_INFOMAX = "49.6"
EXTRACTOR = "efficientnet_lite0_features.onnx"
# Commands that read no images and so take no --data-dir.
WITHOUT_IMAGES = {"curves", "sample"}

_PROGRAM = "python -m tfdecouple"
_RUN = "docs/results"
_QUICKSTART = "runs/quickstart"


def commands() -> dict[str, list[str]]:
    """Returns the command lines that make the files in docs/results, by a name for --measure."""
    runs = [f"{_RUN}/{run}" for run in RUNS]
    ours, evaluation = runs[0], f"{_RUN}/quickstart/evaluation"
    of_ours, exactness = f"{_PROGRAM} evaluate --run {ours}", "python benchmarks/exactness.py"
    every_of_three = " ".join(f"--run {run}" for run in runs)
    of_quickstart = f"--run {_QUICKSTART} --out {_RUN}/quickstart/pictures"
    return {
        "quickstart": [
            f"python train.py --steps 3000 --workdir {_QUICKSTART}",
            f"{_PROGRAM} evaluate --run {_QUICKSTART} --latent-use --out {evaluation}",
            f"{_PROGRAM} evaluate --run {_QUICKSTART} --image-statistics --images 500 --out {evaluation}/statistics",
            f"{_PROGRAM} switch {of_quickstart} --seed 1",
            f"{_PROGRAM} interpolate {of_quickstart} --seed 1",
            f"{_PROGRAM} directions {of_quickstart} --images 4000",
        ],
        "curves": [
            f"{_PROGRAM} curves {every_of_three} --out {_RUN}",
            f"{_PROGRAM} curves --run {ours}",
        ],
        "bits": [f"{_PROGRAM} evaluate --run {run}" for run in runs],
        "importance": [
            f"{_PROGRAM} evaluate --run {run} --importance 16 --images 1000 --out {run}/evaluation/importance"
            for run in runs
        ],
        "latent-use": [f"{_PROGRAM} evaluate --run {run} --latent-use" for run in runs[:2]],
        "probe": [f"{of_ours} --probe --probe-images 10000 --out {ours}/evaluation/probe"],
        "statistics": [f"{of_ours} --image-statistics --images 500 --out {ours}/evaluation/statistics"],
        "frechet": [f"{_PROGRAM} evaluate --run {run} --frechet {EXTRACTOR}" for run in runs],
        "outliers": [
            f"{of_ours} --images 1000 --outliers photographs noise constant permuted --out {ours}/evaluation/outliers"
        ],
        "pictures": [
            f"{_PROGRAM} sample --run {ours}",
            f"{_PROGRAM} neighbours --run {ours} --search 0",
            f"{_PROGRAM} project --run {ours}",
            f"{_PROGRAM} reconstruct --run {ours}",
            f"{_PROGRAM} switch --run {ours}",
            f"{_PROGRAM} interpolate --run {ours} --seed 4",
        ],
        "exactness": [
            f"{exactness} --count 256 --data photographs --data cifar10 --run {_QUICKSTART} {every_of_three} "
            f"--json {_RUN}/exactness.json",
            f"{exactness} --every-image --data cifar10 {every_of_three} --json {_RUN}/every_image.json",
        ],
    }


def main() -> int:
    """Reads the command line and measures, makes the tables, or checks them; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="*", metavar="NAME", help="run the commands first (default all of them)")
    parser.add_argument("--data-dir", help="folder of TFDS, for --measure")
    parser.add_argument("--extractor", help=f"{EXTRACTOR}, for --measure frechet")
    parser.add_argument("--check", action="store_true", help="change nothing: say what the page has otherwise")
    parser.add_argument("--list", action="store_true", help="print the commands, and end")
    options = parser.parse_args()
    return run_program(lambda: act(options))


def act(options: argparse.Namespace) -> int:
    """Carries out the parsed options and returns the exit status, which is 1 if a check finds a difference."""
    known = commands()
    if options.list:
        for name, lines in known.items():
            print("\n".join([f"{name}:", *(f"    {line}" for line in lines)]))
        return 0
    if options.measure is not None:
        for name in options.measure:
            if name not in known:
                raise UserError(f"--measure: there is no {name!r}; there are {', '.join(known)}")
        lines = [line for name in options.measure or known for line in known[name]]
        # A missing extractor is an error before the first command, because the commands take long.
        if not options.extractor and any(EXTRACTOR in shlex.split(line) for line in lines):
            raise UserError(f"--extractor is missing: --measure frechet needs {EXTRACTOR}")
        for line in lines:
            run(line, options)
    document = PAGE.read_text(encoding="utf-8")
    made = with_tables(document)
    if options.check:
        wrong = differences(document, made)
        print("\n".join(wrong) if wrong else "the tables of docs/RESULTS.md say what the files say")
        return 1 if wrong else 0
    PAGE.write_text(made, encoding="utf-8")
    return 0


def run(line: str, options: argparse.Namespace) -> None:
    """Runs a command line with the extractor and data folder of the options.

    Raises:
        UserError: if the command fails.
    """
    words = [options.extractor if word == EXTRACTOR else word for word in shlex.split(line)]
    if options.data_dir and words[3] not in WITHOUT_IMAGES and _QUICKSTART not in words[:6]:
        words += ["--data-dir", options.data_dir]
    print(line, flush=True)
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, check=False)
    if done.returncode:
        raise UserError(f"{line} ended with status {done.returncode}")


def with_tables(document: str) -> str:
    """Returns the text of the page with all tables made from the files."""
    for name, make in TABLES.items():
        document = put(document, name, make())
    return document


def differences(document: str, made: str) -> list[str]:
    """Returns a message for each line of the page that differs from the page `made` from the files."""
    pairs = zip(document.splitlines(), made.splitlines(), strict=False)
    wrong = [f"the page says {ours!r}, the files say {theirs!r}" for ours, theirs in pairs if ours != theirs]
    if len(document.splitlines()) != len(made.splitlines()):
        wrong.append("the page has other numbers of rows than the files")
    return wrong


@functools.cache
def load(name: str) -> Any:
    """Returns the content of a JSON file in docs/results, which is read only once."""
    return json.loads((FILES / name).read_text(encoding="utf-8"))


# --- tables, in the order of the page ---


def _models() -> str:
    presets = {run: f"`{load(f'{run}/config.json')['name']}`" for run in RUNS}
    rows = [[name, presets[run], parameters(run), CONDITIONED[run]] for run, name in RUNS.items()]
    more = load(f"{LATENT_256}/config.json")["model"]
    options = [f"{name}={more[name]}" for name in ("latent_dim", "encoder_out_channels")]
    preset = f"`cifar10_small` with `{' '.join(options)}`"
    rows.append([TITLES[LATENT_256], preset, parameters(LATENT_256), CONDITIONED["conditional"]])
    return table(["", "preset", "parameters", "z conditions"], rows)


def parameters(run: str) -> int:
    """Returns the number of trained parameters of a run."""
    return int(load(f"{run}/summary.json")["parameters"]["total"])


def _bits() -> str:
    rows = []
    for run, name in RUNS.items():
        whole = load(f"{run}/evaluation/bits_per_dim-test.json")
        some = load(f"{run}/evaluation/importance/bits_per_dim-test.json")
        weighted = load(f"{run}/evaluation/importance/importance-test.json")
        strong = "**" if run == "conditional" else ""
        rows.append(
            [
                name,
                f"{load(f'{run}/summary.json')['validation_bits_per_dim']:.4f}",
                f"{strong}{_with_error(whole, 4)}{strong}",
                f"{some['bits_per_dim']:.4f}",
                _with_error(weighted, 4),
                PAPER_BITS[run],
            ]
        )
    codecs = load("conditional/summary.json")
    images, found = codecs["lossless_codecs_images"], codecs["lossless_codecs_bits_per_dim"]
    rows.append([f"lossless WebP files, {images:,} test images", "", f"{found['webp']:.3f}", "", "", ""])
    rows.append([f"PNG files, {images:,} test images", "", f"{found['png']:.3f}", "", "", ""])
    some, draws = weighted["images"], weighted["k"]
    header = ["", "ELBO, validation images", "ELBO, test images", f"ELBO, {some:,} test images"]
    weighted_title = f"importance-weighted bound, {draws} draws, {some:,} test images"
    return table([*header, weighted_title, "the paper's"], rows)


def _with_error(found: dict[str, Any], digits: int) -> str:
    return f"{found['bits_per_dim']:.{digits}f} +- {found['standard_error']:.{digits}f}"


def seeds() -> tuple[int, dict[str, list[float]]]:
    """Returns the last update at which all seeds were validated, and the bits/dim of each run's seeds at that update.

    Seed 0 of a run is the run itself. The config and log of another seed are in docs/results/seeds/RUN-SEED. A run with
    only one seed is left out.
    """
    others = {run: sorted((FILES / "seeds").glob(f"{run}-*")) for run in RUNS}
    found = {run: [_validated(folder) for folder in (FILES / run, *more)] for run, more in others.items() if more}
    step = max(set.intersection(*(set(each) for run in found.values() for each in run)))
    return step, {run: [each[step] for each in of_run] for run, of_run in found.items()}


def _validated(run: pathlib.Path) -> dict[int, float]:
    """Returns the bits/dim of a run on the validation images, by update."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {int(row["step"]): float(row["bits_per_dim"]) for row in rows if row["kind"] == "validation"}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean of the values and its standard error."""
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5


def behind(run: str) -> tuple[float, float]:
    """Returns the bits/dim by which a run is worse than "conditional", and the standard error of this difference.

    The difference is paired by seed, because runs of one seed see the same images in the same order.
    """
    _, found = seeds()
    pairs = zip(found["conditional"], found[run], strict=False)
    return mean_and_error([theirs - ours for ours, theirs in pairs])


def _seeds() -> str:
    step, found = seeds()
    rows = []
    for run, values in found.items():
        mean, error = mean_and_error(values)
        difference, its_error = behind(run)
        each = ", ".join(f"{value:.4f}" for value in values)
        worse = f"{difference:.4f} +- {its_error:.4f}" if run != "conditional" else ""
        rows.append([RUNS[run], each, f"{mean:.4f} +- {error:.4f}", worse])
    return table(["", f"validation bits/dim at update {step:,}, seeds 0, 1, ...", "mean", "minus ours"], rows)


def accuracies(run: str = "conditional") -> dict[str, dict[str, float]]:
    """Returns for each kind of features the number of dimensions and each classifier's test accuracy in per cent."""
    return {
        row["features"]: {
            "dimensions": row["dimensions"],
            **{name: 100 * each["accuracy"] for name, each in row["classifiers"].items()},
        }
        for row in load(f"{run}/evaluation/probe/probe.json")["results"]
    }


def _probe() -> str:
    rows: list[list[object]] = []
    names = {"pixels": "raw pixels", "pixels, PCA": "raw pixels, PCA"}
    # Raw pixels are in the table once, because their accuracy does not depend on the run.
    shown_of = {
        "conditional": ("z", "v", "v, PCA", "pixels", "pixels, PCA"),
        LATENT_256: ("z", "v", "v, PCA", "pixels, PCA"),
    }
    for run, shown in shown_of.items():
        found = accuracies(run)
        for features in shown:
            each, strong = found[features], "**" if features == "z" else ""
            per_cent = [f"{strong}{each[kind]:.1f}{strong}" for kind in ("linear SVM", "logistic regression")]
            paper = PAPER_PROBE.get(features, "") if run == "conditional" else ""
            of = "" if features in names else TITLES[run]
            rows.append([names.get(features, features), of, int(each["dimensions"]), *per_cent, paper])
    rows.append(["Deep InfoMax, quoted by the paper", "", "", "", "", PAPER_INFOMAX])
    return table(["features", "model", "dimensions", "linear SVM", "logistic regression", "the paper's"], rows)


def _statistics() -> str:
    """Returns the table of image statistics: R2 from z, v and pixels, and which code they follow in a switch."""
    rows = []
    for name, each in load("conditional/evaluation/statistics/image_statistics-test.json")["statistics"].items():
        explained = [f"{each['r2'][kind]['mean']:.2f}" for kind in ("z", "v, PCA", "pixels, PCA")]
        followed = [
            f"{each['switch'][code]['mean']:.2f} +- {each['switch'][code]['standard_error']:.2f}" for code in ("z", "v")
        ]
        nearer = f"{100 * each['switch']['nearer_to_z']['mean']:.0f}"
        rows.append([name, *explained, *followed, nearer])
    header = ["statistic", "R2 from z", "R2 from v, PCA", "R2 from pixels, PCA"]
    return table([*header, "follows z", "follows v", "nearer to the image of z, %"], rows)


def _frechet() -> str:
    rows = [
        [name, f"{load(f'{run}/evaluation/frechet.json')['distance']:.1f}", PAPER_FID[run]]
        for run, name in RUNS.items()
    ]
    floor = load("conditional/evaluation/frechet.json")["floor"]
    rows.append(["training images instead of samples", f"{floor:.1f}", ""])
    return table(["", "distance", "the paper's FID"], rows)


def _exactness() -> str:
    """Returns the table of kinds of image: images that any run's round trip changes, and the RMS of v in two runs."""
    found: dict[str, dict[str, Any]] = {}
    for row in load("exactness.json")["rows"]:
        found.setdefault(row["images"], {})[row["run"]] = row
    titles = {run: TITLES.get(run, run) for run in ("quickstart", "conditional")}
    rows = []
    for kind, by_run in found.items():
        lengths = [f"{by_run[run]['least_rms']:.2f} to {by_run[run]['most_rms']:.2f}" for run in titles]
        rows.append([kind, by_run["quickstart"]["of"], sum(row["lost"] for row in by_run.values()), *lengths])
    return table(["images", "number", "inexact", *(f"RMS of v, {title}" for title in titles.values())], rows)


NOISE = "noise of 0 and 255"


def by_length(run: str) -> dict[int, dict[str, Any]]:
    """Returns the metrics of a run's weights by number of updates, for earlier weights and the committed ones."""
    found = {row["updates"]: row for row in load("by_length.json")["rows"] if row["run"] == run}
    now = {
        "bits_per_dim": load(f"{run}/evaluation/bits_per_dim-test.json")["bits_per_dim"],
    }
    if run == "conditional":
        now["accuracy"] = accuracies()["z"]["logistic regression"] / 100
    lost = {(row["run"], row["images"], row["of"]): row["lost"] for row in load("exactness.json")["rows"]}
    now["noise_lost"] = lost[run, NOISE, 256]
    return {**found, load(f"{run}/summary.json")["steps"]: now}


def _by_length() -> str:
    measures: dict[str, tuple[str, Callable[[float], str]]] = {
        "bits_per_dim": ("test bits/dim", "{:.4f}".format),
        "accuracy": ("accuracy of logistic regression on z, %", lambda value: f"{100 * value:.1f}"),
        "noise_lost": ("inexact of 256 noise images", "{:.0f}".format),
    }
    rows = []
    for measure, (title, shown) in measures.items():
        for run, name in RUNS.items():
            values = [found[measure] for found in by_length(run).values() if measure in found]
            if values:
                rows.append([title, name, *map(shown, values)])
    begun = load("conditional/config.json")["training"]["patterns_after"]
    lengths = [f"{updates:,} updates" + ", with patterns" * (updates > begun) for updates in by_length("conditional")]
    return table(["", "", *lengths], rows)


SCORES = {
    "bits_per_dim": "bits/dim",
    "bits_per_dim_minus_codec": "bits/dim less WebP",
    "prior_nats": "-log p(z)",
    "shell": "shell of v",
    "typicality": "typicality",
}
KINDS = {
    "photographs": "embedded photographs",
    "noise": "noise",
    "constant": "single colours",
    "permuted": "permuted pixels",
}


def outliers() -> dict[str, Any]:
    """Returns the results of outlier detection by kind of outlier, with an AUROC for each score."""
    return dict(load("conditional/evaluation/outliers/outliers-test.json")["outliers"])


def _areas() -> str:
    found, rows = outliers(), []
    for score, name in SCORES.items():
        each = [found[kind]["detection"][score] for kind in KINDS]
        ends = [[f"{end:.3f}" for end in area["auroc_interval"]] for area in each]
        rows.append([name, *(f"{area['auroc']:.3f} ({'-'.join(e)})" for area, e in zip(each, ends, strict=True))])
    return table(["score", *KINDS.values()], rows)


TABLES: dict[str, Callable[[], str]] = {
    "models": _models,
    "bits": _bits,
    "seeds": _seeds,
    "probe": _probe,
    "statistics": _statistics,
    "frechet": _frechet,
    "exactness": _exactness,
    "by length": _by_length,
    "outliers": _areas,
}


if __name__ == "__main__":
    sys.exit(main())
