"""What the text of docs/RESULTS.md says, and the file that each number of it is taken from.

A number in the text stands in a line of `FACTS`: measured, with what it is taken from, or word for word where it is no
measurement. Whoever writes a number into the page adds a line. `test_results.py` holds page and files against each
other.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from helpers.command_lines import trained_config
from helpers.documents import split_code
from helpers.places import ROOT
from helpers.runs import log_rows

sys.path.insert(0, str(ROOT))

from benchmarks import results, trials  # noqa: E402
from tfdecouple.config import Config, load_preset  # noqa: E402
from tfdecouple.exactness import FAR  # noqa: E402

NUMBER = r"(-?\d(?:[\d,]*\d)?(?:\.\d+)?)"
Truth = Callable[[], float]
DRAWN = "drawn from q(u given x)"


def config(run: str) -> Config:
    return Config.from_json(results.FILES / run / "config.json")


def value(file: str, *keys: str | int) -> Truth:
    """A number of a JSON file of docs/results."""

    def look() -> float:
        found = results.load(file)
        for key in keys:
            found = found[key]
        return found

    return look


def epochs(updates: int | None = None) -> float:
    """How often ours has seen the training images after so many updates, or in all."""
    updates = results.load("conditional/summary.json")["steps"] if updates is None else updates
    return updates * config("conditional").training.batch_size / (50_000 - 1_000)


def bits(run: str) -> float:
    return results.load(f"{run}/evaluation/bits_per_dim-test.json")["bits_per_dim"]


def points_above(features: str, run: str = "conditional") -> Truth:
    """By how many points the logistic regression of z is above that of others."""
    return lambda: results.accuracies(run)["z"][LOGISTIC] - results.accuracies(run)[features][LOGISTIC]


def jump(key: str) -> Truth:
    """A number of the log's row with the highest bits/dim in training, from 5,000 updates to the first patterns."""

    def look() -> float:
        rows = log_rows(results.FILES / "conditional")
        last = config("conditional").training.patterns_after
        trained = [row for (kind, step), row in rows.items() if kind == "train" and 5000 < step <= last]
        return max(trained, key=lambda row: row["bits_per_dim"])[key]

    return look


def rate_left() -> float:
    """What the last update of ours had of the highest learning rate."""
    rows = log_rows(results.FILES / "conditional")
    rates = [row["learning_rate"] for (kind, _), row in rows.items() if kind == "train"]
    return rates[-1] / max(rates)


def of_outliers(kind: str, score: str) -> Truth:
    """The mean of a score over the images of a kind."""
    return lambda: float(
        np.mean(results.load("conditional/evaluation/outliers/outliers-test.json")["per_image"][kind][score])
    )


def area(label: str) -> Truth:
    return lambda: results.outliers()[f"label:{label}"]["detection"]["bits_per_dim"]["auroc"]


def extreme_area(choose: Callable) -> Truth:
    labels = [kind for kind in results.outliers() if kind.startswith("label:")]
    areas = [each["auroc"] for label in labels for each in results.outliers()[label]["detection"].values()]
    return lambda: choose(areas)


def followed(run: str, statistic: str, code: str) -> Truth:
    """How far a statistic of switched images follows that of the image that gave z, or v."""
    return value(f"{run}/{STATISTICS}", "statistics", statistic, "switch", code, "mean")


def more_by_numbers() -> float:
    """By how many points z of more numbers is above z of ours, which had more updates."""
    ours, more = (results.load(f"{run}/summary.json")["steps"] for run in ("conditional", results.LATENT_256))
    assert ours > more
    return results.accuracies(results.LATENT_256)["z"][LOGISTIC] - results.accuracies()["z"][LOGISTIC]


def without_patterns(run: str) -> dict[str, Any]:
    """What the weights of a run were measured to do when it had seen no patterns yet."""
    return results.by_length(run)[config(run).training.patterns_after]


def lost_without_patterns(run: str, *kinds: str) -> Truth:
    """How many images of some kinds did not come back then."""
    return lambda: sum(row["lost"] for row in without_patterns(run)["lost"] if row["images"] in kinds)


def boards() -> float:
    """How many boards of two colours there are; those of black and white are grey."""
    rows = results.load("exactness.json")["rows"]
    return sum(row["of"] for row in rows if row["run"] == "conditional" and row["images"] in BOARDS)


def cost_of_patterns(run: str) -> Truth:
    """By how many bits/dim the test images are dearer than before the patterns."""
    return lambda: bits(run) - without_patterns(run)["bits_per_dim"]


def trial(name: str) -> Config:
    """The config of a trial, which stands in the table of docs/trials.md."""
    (row,) = [row for row in trials.read_rows(trials.ROWS) if row["name"] == name]
    assert row["validation_kl"] < 5
    return trained_config(shlex.split(row["command"])[2:])


def searched_all() -> float:
    """How many images the nearest were looked for among: all that were trained on."""
    found = value("conditional/pictures/neighbours.json", "searched")()
    assert found == 50_000 - config("conditional").data.validation_examples
    return found


def as_near() -> float:
    """The lowest temperature at which the distance is that of temperature 1, to a hundredth of it."""
    rows = [row for row in results.load("frechet.json")["rows"] if row["side"] == 128]
    (usual,) = [row["distance"] for row in rows if row["temperature"] == 1]
    return min(row["temperature"] for row in rows if row["distance"] <= 1.01 * usual)


BOARDS = [f"checkerboard, {colours}" for colours in ("red and blue", "green and magenta", "cyan and yellow")]
LOGISTIC = "logistic regression"
LATENT_USE = "conditional/evaluation/latent_use-test.json"
PROBE = "conditional/evaluation/probe/probe.json"
FRECHET = "conditional/evaluation/frechet.json"
STATISTICS = "evaluation/statistics/image_statistics-test.json"
PROJECTED = "conditional/pictures/project-pca.json"
# What the text says, {} for each number that is measured or follows from a config, in their order; other numbers are as
# they are written here. Links are their words alone.
FACTS: list[tuple[str, tuple[Truth, ...]]] = [
    ("the 50,000 + 10,000 images of CIFAR-10, taken from JPEG copies as TFDS `cifar10` 3.0.2", ()),
    ("of the test split ({} images)", (value("conditional/evaluation/bits_per_dim-test.json", "images"),)),
    ("the last {} training images", (lambda: config("conditional").data.validation_examples,)),
    (
        "{} updates of {} images are {} epochs, of one seed each. In the last {} of them one image in {} gives way",
        (
            value("conditional/summary.json", "steps"),
            lambda: config("conditional").training.batch_size,
            epochs,
            lambda: config("conditional").training.steps - config("conditional").training.patterns_after,
            lambda: 1 / config("conditional").training.patterns,
        ),
    ),
    ("after {} epochs of images alone", (lambda: epochs(config("conditional").training.patterns_after),)),
    (
        "The last run, of {} updates and more parameters",
        (value(f"{results.LATENT_256}/summary.json", "steps"),),
    ),
    ("The paper trains 50 million parameters for 15,000", ()),
    ("(one of `latent256`, after 10,000 updates, is lost)", ()),
    ("That run was to end after 10,000 updates; 2,000 were added", ()),
    ("`docs/results/{conditional,base,glow,latent256}` hold config", ()),
    (
        "Ours jumped to {} bits/dim at update {}, over the {} updates before it,",
        (jump("bits_per_dim"), jump("step"), lambda: config("conditional").training.log_every),
    ),
    ("After update {} the thin lines are of patterns", (lambda: config("conditional").training.patterns_after,)),
    ("which weigh much at {} pixels", (lambda: config("conditional").model.image_size,)),
    (
        "is {} bits/dim better than conditioning the Gaussian alone, and {} better than no z",
        (lambda: bits("base") - bits("conditional"), lambda: bits("glow") - bits("conditional")),
    ),
    (
        "The baseline is {} standard errors behind ours. Ours and Glow are not told apart at this length: Glow is {}",
        tuple(lambda run=run: results.behind(run)[0] / results.behind(run)[1] for run in ("base", "glow")),
    ),
    ("The {} of the long runs, of one seed each", (lambda: bits("glow") - bits("conditional"),)),
    (
        "the baseline is in the middle, {} and {} away",
        tuple(
            lambda worse=worse, better=better: float(results.PAPER_BITS[worse]) - float(results.PAPER_BITS[better])
            for worse, better in (("base", "conditional"), ("glow", "base"))
        ),
    ),
    (
        "(the paper's Table 4), fitted on {} training images, C chosen on {} of them; accuracy on all {} test images "
        "in per cent, +- {}",
        (
            value(PROBE, "train_images"),
            value(PROBE, "held_out_images"),
            value(PROBE, "test_images"),
            lambda: 100 * results.load(PROBE)["results"][0]["classifiers"][LOGISTIC]["standard_error"],
        ),
    ),
    (
        "in {} numbers in place of {}: {} points above v, {} above as many dimensions of v, {} above pixels",
        (
            lambda: results.accuracies()["z"]["dimensions"],
            lambda: results.accuracies()["v"]["dimensions"],
            *(points_above(features) for features in ("v", "v, PCA", "pixels")),
        ),
    ),
    ("after {} times as many epochs", (lambda: round(15_000 / epochs(), -2),)),
    (
        "With {} numbers in z and {} updates z tells {} % of the classes, {} points above pixels, {} above as "
        "many dimensions of them, {} above v, {} above z of {} numbers, which had {}",
        (
            lambda: config(results.LATENT_256).model.latent_dim,
            value(f"{results.LATENT_256}/summary.json", "steps"),
            lambda: results.accuracies(results.LATENT_256)["z"][LOGISTIC],
            *(points_above(features, results.LATENT_256) for features in ("pixels", "pixels, PCA", "v")),
            more_by_numbers,
            lambda: config("conditional").model.latent_dim,
            value("conditional/summary.json", "steps"),
        ),
    ),
    (
        "Test bits/dim are {} then, of more parameters; the KL term is {} nats, {} of the {} dimensions are active",
        (
            lambda: bits(results.LATENT_256),
            value(f"{results.LATENT_256}/evaluation/latent_use-test.json", "kl", "mean"),
            value(f"{results.LATENT_256}/evaluation/latent_use-test.json", "active_units"),
            lambda: config(results.LATENT_256).model.latent_dim,
        ),
    ),
    (
        "its KL is {} nats an image of {} dimensions, {} of them active; {} images are told apart (the estimate of "
        "I(x; z) is at its limit of {} nats); with the z of another image the bound is {} bits/dim worse",
        (
            value(LATENT_USE, "kl", "mean"),
            lambda: len(results.load(LATENT_USE)["mean_variance"]),
            value(LATENT_USE, "active_units"),
            value(LATENT_USE, "information_images"),
            value(LATENT_USE, "information_limit"),
            value(LATENT_USE, "shuffling_costs", "mean"),
        ),
    ),
    ("z of {} test images, by its first two principal components", (value(PROJECTED, "count"),)),
    (
        "`cifar10_small*` weigh the KL term with {} (`training.kl_weight`, rising from 0 over {} updates)",
        (
            lambda: load_preset("cifar10_small").training.kl_weight,
            lambda: load_preset("cifar10_small").training.kl_warmup_steps,
        ),
    ),
    (
        "with the paper's weight of {} z was given up in a trial of {} updates",
        (
            lambda: trial("kl-1").training.kl_weight,
            lambda: trial("kl-1").training.steps,
        ),
    ),
    ("over {} test images that ridge regression tells", (value(f"conditional/{STATISTICS}", "images"),)),
    ("fitted on {} training images: from z", (value(f"conditional/{STATISTICS}", "train_images"),)),
    (
        "({} of `conditional`, on CIFAR-10; {} of `photographs`",
        tuple(value(f"{run}/{STATISTICS}", "dimensions") for run in ("conditional", "photographs")),
    ),
    ("(50 is chance)", ()),
    (
        "an image with the z of another follows its mean colour by {} and its brightness by {}",
        (followed("conditional", "mean colour", "z"), followed("conditional", "brightness", "z")),
    ),
    (
        "stay with v, by {} and {}",
        tuple(followed("conditional", name, "v") for name in ("dominant orientation", "spectral slope")),
    ),
    (
        "colour and brightness follow z as well ({} and {})",
        (followed("photographs", "mean colour", "z"), followed("photographs", "brightness", "z")),
    ),
    ("the paper's Figure 1 in numbers", ()),
    (
        "in the {} features of EfficientNet-Lite0 (ImageNet weights; sha256 in the JSON files), {} samples at "
        "temperature {} against the {} test images",
        tuple(value(FRECHET, name) for name in ("features", "samples", "temperature", "test_images")),
    ),
    ("At {} samples are as near as at {}", (as_near, value(FRECHET, "temperature"))),
    ("The floor is {} training images", (value(FRECHET, "floor_images"),)),
    (
        "as PyTorch 2.13 writes it, which takes uint8 images, resizes them to 128 x 128 (bilinear, half-pixel "
        "centres), takes (x - 127) / 128 and gives",
        (),
    ),
    ("the nearest of all {} training images", (searched_all,)),
    (
        "Of all {} test images {} do not come back from ours, {} from the baseline and {} from Glow",
        (value("every_image.json", "rows", 0, "of"), *(value("every_image.json", "rows", k, "lost") for k in range(3))),
    ),
    ("more than float32 can undo", ()),
    ("and so do all images below that no camera takes", ()),
    (
        "one training image in {} of the last {} updates",
        (
            lambda: 1 / config("conditional").training.patterns,
            lambda: config("conditional").training.steps - config("conditional").training.patterns_after,
        ),
    ),
    (
        "After {} updates of photographs alone ours lost {} of 256 images of noise, the baseline and Glow {}, and all "
        "three some of the noise of 0 and 255, ours all of it",
        (
            lambda: config("conditional").training.patterns_after,
            lost_without_patterns("conditional", "noise"),
            lambda: max(lost_without_patterns(run, "noise")() for run in ("base", "glow")),
        ),
    ),
    (
        "of {} boards of two colours ours lost {}, the baseline {}, Glow {}",
        (
            boards,
            *(lost_without_patterns(run, *BOARDS) for run in results.RUNS),
        ),
    ),
    ("it is near 1 for images like those", ()),
    ("at the end of it all the learning rate is {} % of its highest", (lambda: 100 * rate_left(),)),
    ("Of ours bits/dim alone gain between 20,000 and 46,000 updates", ()),
    ("What is paid for it is noise of 0 and 255: at first all of it came back, and then none from ours", ()),
    ("the test images cost {} bits/dim more than before for ours", (cost_of_patterns("conditional"),)),
    ("for ours, {} for the baseline and {} for Glow", (cost_of_patterns("base"), cost_of_patterns("glow"))),
    ("Above {} `model.encode` warns", (lambda: FAR,)),
    (
        "from {} test images of CIFAR-10, by the model that is called ours above: AUROC with an interval of 95 %, "
        "{} images of each kind",
        (
            value("conditional/evaluation/outliers/outliers-test.json", "images"),
            lambda: {results.outliers()[kind]["images"] for kind in results.KINDS}.pop(),
        ),
    ),
    ("that pass where 95 % of the test images do", ()),
    (
        "need fewer bits ({} bits/dim on average) than the test images ({})",
        (of_outliers("constant", "bits_per_dim"), of_outliers("test", "bits_per_dim")),
    ),
    (
        "too short by {} standard deviations on average, photographs one that is too long by {}, and of the test "
        "images the mean is {}",
        (
            lambda: -of_outliers("constant", "shell")(),
            of_outliers("photographs", "shell"),
            of_outliers("test", "shell"),
        ),
    ),
    (
        "with about 100 images each, no score has an AUROC beyond {} and {}",
        (extreme_area(min), extreme_area(max)),
    ),
    (
        "(bits/dim {} and {}) than trucks ({})",
        (area("airplane"), area("ship"), area("truck")),
    ),
    (
        "a quickstart model of {} updates (`python train.py --steps 3000`, test {} bits/dim; lossless WebP on the same "
        "crops {})",
        (
            value("photographs/summary.json", "steps"),
            value("photographs/summary.json", "test", "bits_per_dim"),
            value("photographs/summary.json", "lossless_codecs_bits_per_dim", "webp"),
        ),
    ),
    (
        "z is used: its KL is {} nats an image of {} dimensions, and with the z of another image the bound is {} "
        "bits/dim worse (`--latent-use`)",
        (
            value("photographs/evaluation/latent_use-test.json", "kl", "mean"),
            lambda: config("photographs").model.latent_dim,
            value("photographs/evaluation/latent_use-test.json", "shuffling_costs", "mean"),
        ),
    ),
    (
        "An update of 32 images took {} CPU seconds with the one and {} with the other",
        tuple(value("dequantization.json", name, "cpu_seconds_an_update") for name in (DRAWN, "uniform")),
    ),
    ("`benchmarks/throughput.py --phase train32 --preset quickstart`", ()),
    (
        "At equal time the learned noise is {} bits/dim behind on the test images",
        (
            lambda: (
                value("dequantization.json", DRAWN, "summary", "test", "bits_per_dim")()
                - value("dequantization.json", "uniform", "summary", "test", "bits_per_dim")()
            ),
        ),
    ),
]
# Names that have numbers in them.
NAMES = r"CIFAR-10|Apache-2\.0|EfficientNet-Lite0|Tables? [134]\b|\bR2\b|--data cifar10"


def prose(page: str) -> str:
    """The text of the page with single spaces: without tables that are made, blocks of code and where links lead."""
    for name in results.TABLES:
        page = results.put(page, name, "")
    text = re.sub(r"\]\([^)]*\)", "]", split_code(page)[1])
    return " ".join(re.sub(r"!?\[([^\]]*)\]", r"\1", text).replace("**", "").split())


def mistakes(text: str) -> list[str]:
    """What is wrong with the numbers of a text, a line each."""
    wrong, covered = [], np.zeros(len(text), bool)
    for name in re.finditer(NAMES, text):
        covered[name.start() : name.end()] = True
    for said, truths in FACTS:
        pattern = NUMBER.join(re.escape(part) for part in said.split("{}"))
        found = list(re.finditer(pattern, text))
        if not found:
            wrong.append(f"the text does not say any more: {said}")
        for match in found:
            covered[match.start() : match.end()] = True
            for number, truth in zip(match.groups(), truths, strict=True):
                right, digits = truth(), len(number.partition(".")[2])
                if abs(float(number.replace(",", "")) - right) > 0.500001 * 10.0**-digits:
                    wrong.append(f"the text says {number} in {match[0]!r}, it is {right:.6g}")
    for match in re.finditer(NUMBER, text):
        if not covered[match.start() : match.end()].all():
            around = text[max(match.start() - 50, 0) : match.end() + 30]
            wrong.append(f"no line of FACTS has {match[0]} of {around!r}: add one, with the file that it is from")
    return wrong
