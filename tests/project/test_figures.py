"""Figures that stand in several places: the documentation, the presets, the results that they were taken from.

A figure is listed with the places where it stands, each a file and a pattern whose group is the number, and with what
it is taken from, where that is in the repository. All places must agree to the digits that they show. Whoever writes a
figure into a second place adds the place here. Caveats are listed likewise.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable

import pytest
from helpers.places import ROOT

from tfdecouple.cli import programs as cli
from tfdecouple.config import TrainingConfig, load_preset, preset_names
from tfdecouple.parameters import count_parameters

RESULTS = "docs/RESULTS.md"
PRESETS = "tfdecouple/presets"


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number, where it stands, and what it must be.

    Attributes:
        name: what it is.
        places: pairs of a file and a pattern; every match of the pattern is a place, and there must be one.
        truth: gives the number; None where the places can only be compared with each other.
    """

    name: str
    places: tuple[tuple[str, str], ...]
    truth: Callable[[], float] | None = None


def read(name: str) -> str:
    """The text of a file with single spaces in place of line ends, so that patterns need not know where lines end."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def result(file: str, *keys: str | int) -> Callable[[], float]:
    """A number from a JSON file of a committed run."""

    def look() -> float:
        value = json.loads((ROOT / "docs" / "results" / file).read_text(encoding="utf-8"))
        for key in keys:
            value = value[key]
        return value

    return look


def half_a_digit(text: str) -> float:
    """By how much a number may differ from one that is written so: half a unit of its last digit."""
    return 0.500001 * 10.0 ** -len(text.partition(".")[2])


def number(text: str) -> float:
    return float(text.replace(",", ""))


def disagreements(figure: Figure) -> list[str]:
    """What is wrong with a figure, a line each."""
    wrong, found = [], []
    for file, pattern in figure.places:
        matches = re.findall(pattern, read(file))
        if not matches:
            wrong.append(f"{file} does not say it any more: {pattern}")
        found += [(file, text.rstrip(".,")) for text in matches]
    if not found:
        return wrong
    # Without another source, what is written most precisely.
    truth = figure.truth() if figure.truth else number(max((text for _, text in found), key=half_a_digit_of_it))
    wrong += [
        f"{file} says {text}, it is {truth:.10g}"
        for file, text in found
        if abs(number(text) - truth) > half_a_digit(text)
    ]
    return wrong


def half_a_digit_of_it(text: str) -> float:
    return -half_a_digit(text)


NUMBER = r"(\d[\d,]*\.?\d*)"


def facts_of_presets():
    """What the notes and descriptions say of the size of a model, beside the model and the tables."""
    sys.path.insert(0, str(ROOT))
    from tfdecouple.costs import multiply_adds

    for name in preset_names():
        model, file = load_preset(name).model, f"{PRESETS}/{name}.json"
        total = count_parameters(model)["total"]
        text = read(file)
        if "million parameters" in text:
            millions = [(file, rf"{NUMBER} million parameters")]
            if re.search(rf"\| {name} \| its own \|", read("docs/scaling.md")):
                millions.append(("docs/scaling.md", rf"\| {name} \| its own \| {NUMBER} M \|"))
            yield Figure(f"{name}: millions of parameters", tuple(millions), lambda total=total: total / 1e6)
        if "trainable parameters" in text:
            places = ((file, rf"{NUMBER} trainable parameters"), (RESULTS, rf"`{name}` \| {NUMBER} \|"))
            yield Figure(f"{name}: parameters", places, lambda total=total: total)
        if "multiply-adds" in text:
            pattern = rf"{NUMBER} G multiply-adds per image forward"
            yield Figure(f"{name}: G multiply-adds", ((file, pattern),), lambda model=model: multiply_adds(model) / 1e9)
        pattern = rf"alpha (?:is |to )?{NUMBER}"
        if re.search(pattern, text):
            yield Figure(f"{name}: alpha", ((file, pattern),), lambda model=model: model.alpha)
        updates = re.search(rf"the whole run of {NUMBER} updates", text)
        if updates:
            steps = load_preset(name).training.steps
            yield Figure(f"{name}: updates", ((file, rf"whole run of {NUMBER} updates"),), lambda steps=steps: steps)


def pinned(package: str) -> float:
    """Major and minor version of an npm package of the web example."""
    text = (ROOT / "examples" / "web" / "package.json").read_text(encoding="utf-8")
    return float(re.search(rf'"{package}": "(\d+\.\d+)', text)[1])


def weights() -> dict:
    """How the training of the weights that come along ended."""
    return json.loads((ROOT / "tfdecouple" / "pretrained" / "photographs" / "summary.json").read_text(encoding="utf-8"))


LOSSLESS = ("photographs/summary.json", "lossless_codecs_bits_per_dim")
# The presets of the models that docs/RESULTS.md compares.
COMPARED = ("cifar10_small", "cifar10_small_base_conditioned", "cifar10_small_glow")
FACTS = list(facts_of_presets())
FIGURES = [
    *FACTS,
    Figure(
        "small presets: millions of parameters",
        (("README.md", rf"comparison at {NUMBER} million parameters"),),
        lambda: count_parameters(load_preset("cifar10_small").model)["total"] / 1e6,
    ),
    # The committed models.
    Figure(
        "photographs: lossless WebP",
        ((RESULTS, rf"lossless WebP on the same crops {NUMBER}\)"),),
        result(*LOSSLESS, "webp"),
    ),
    Figure(
        "photographs: alpha",
        (("docs/exactness.md", rf"\| photographs \| {NUMBER} \|"),),
        result("photographs/config.json", "model", "alpha"),
    ),
    # Of the quickstart's test crops, which other runs on the six photographs have as well.
    Figure(
        "quickstart: lossless WebP",
        ((f"{PRESETS}/quickstart.json", rf"lossless WebP: {NUMBER}\)"),),
        result("dequantization.json", "uniform", "summary", *LOSSLESS[1:], "webp"),
    ),
    Figure(
        "long runs: updates",
        tuple((f"{PRESETS}/{name}.json", rf"runs of {NUMBER} updates \(") for name in COMPARED),
        result("conditional/summary.json", "steps"),
    ),
    Figure(
        "long runs: epochs",
        (
            (RESULTS, rf"32 images are {NUMBER} epochs, of one seed each"),
            *((f"{PRESETS}/{name}.json", rf"updates \({NUMBER} epochs\) of docs/RESULTS") for name in COMPARED),
        ),
    ),
    # The weights that come along.
    Figure(
        "quickstart64: test bits/dim",
        ((f"{PRESETS}/quickstart64.json", rf"updates: {NUMBER} bits/dim on the 1,000 test crops"),),
        lambda: weights()["test"]["bits_per_dim"],
    ),
    Figure(
        "quickstart64: lossless WebP",
        ((f"{PRESETS}/quickstart64.json", rf"lossless WebP: {NUMBER}\)"),),
        lambda: weights()["lossless_codecs_bits_per_dim"]["webp"],
    ),
    Figure(
        "quickstart64: updates of the weights",
        ((f"{PRESETS}/quickstart64.json", rf"after these {NUMBER} updates"),),
        lambda: weights()["best_step"],
    ),
    Figure(
        "quickstart64: validation bits/dim",
        ((f"{PRESETS}/quickstart64.json", rf"\(validation {NUMBER}\)"),),
        lambda: weights()["validation_bits_per_dim"],
    ),
    # The quickstart, whose run is not committed.
    Figure(
        "quickstart: test bits/dim",
        (
            (f"{PRESETS}/quickstart.json", rf"reached {NUMBER} bits/dim on the 1,000 test crops"),
            ("docs/understanding.md", rf"1,000 test images\): {NUMBER} bits/dim"),
        ),
    ),
    Figure(
        "quickstart: seconds of make train with the installation",
        (("README.md", r"took 3 min (\d+) s"), (f"{PRESETS}/quickstart.json", r"took 3 min (\d+) s")),
    ),
    # The paper's figures.
    Figure(
        "alpha for ImageNet: the paper's",
        (
            ("docs/training.md", rf"\| alpha for ImageNet \| [\d.]+ \| {NUMBER}, as the paper says"),
            ("docs/divergence.md", rf"\({NUMBER} is the paper's choice for ImageNet\)"),
        ),
        lambda: load_preset("imagenet64").model.alpha,
    ),
    Figure(
        "alpha for ImageNet: that of the authors' code",
        (
            ("docs/training.md", rf"\| alpha for ImageNet \| {NUMBER} \|"),
            (f"{PRESETS}/imagenet64.json", rf"\({NUMBER} in the authors' code\)"),
            (f"{PRESETS}/imagenet64.json", rf"model\.prior_alpha keeps {NUMBER}, which the authors' code has for both"),
        ),
    ),
    *(
        Figure(
            f"{preset}: the paper's bits/dim",
            (
                (RESULTS, rf"\| {row} \| [^|]+\| [^|]+ \+- [^|]+\| [^|]+\| [^|]+\| {NUMBER} \|"),
                (f"{PRESETS}/{preset}.json", pattern),
            ),
        )
        for preset, row, pattern in (
            ("cifar10", "ours", rf"Table 1: {NUMBER} bits/dim"),
            ("cifar10_base_conditioned", "baseline of Table 3", rf"\({NUMBER} bits/dim\)"),
            ("cifar10_glow", "refined Glow", rf"Table 1: {NUMBER} bits/dim"),
        )
    ),
    # What programs and configs decide.
    Figure("status: interrupted", (("docs/training.md", r"exit with status (\d+)"),), lambda: cli.EXIT_INTERRUPTED),
    Figure("status: diverged", (("docs/divergence.md", r"exit status (\d+)"),), lambda: cli.EXIT_DIVERGED),
    Figure(
        "steps in a row that are not finite",
        (("docs/divergence.md", r"such steps in a row \((\d+) by default\)"),),
        lambda: TrainingConfig().max_skipped_steps,
    ),
    Figure(
        "Python",
        (
            ("README.md", r"With Python 3\.(\d+), "),
            ("setup.cfg", r"python_requires = >=3\.(\d+)"),
            ("setup.cfg", r"python_version = 3\.(\d+)"),
        ),
    ),
    Figure(
        "onnxruntime-web",
        (("examples/web/README.md", r"of onnxruntime-web (\d+\.\d+)\.\d+"),),
        lambda: pinned("onnxruntime-web"),
    ),
    Figure(
        "TensorFlow",
        (
            ("docs/runtimes.md", r"TensorFlow (\d+\.\d+) on a CPU"),
            ("setup.cfg", r"tensorflow~=(\d+\.\d+)\."),
            ("setup.cfg", r"tf-keras~=(\d+\.\d+)\."),
            ("setup.cfg", r"tensorflow-serving-api~=(\d+\.\d+)\."),
        ),
    ),
    # One temperature or rate in two texts.
    Figure(
        "weight of the KL term in the small presets",
        (
            (RESULTS, rf"presets `cifar10_small\*` weigh the KL term with {NUMBER}"),
            (f"{PRESETS}/cifar10_small.json", rf"The KL term weighs {NUMBER}"),
            (f"{PRESETS}/cifar10_small_base_conditioned.json", rf"The KL term weighs {NUMBER}"),
        ),
        lambda: load_preset("cifar10_small").training.kl_weight,
    ),
]


# What was not tried, by places that say so.
CAVEATS = {
    "GPUs": {
        "README.md": r"no GPU has run it yet",
        "docs/gpu.md": r"No GPU has run it",
        "docs/scaling.md": r"no GPU has run this code yet",
        "docs/training.md": r"No GPU has run any of it yet",
        "examples/cluster/README.md": r"GPUs and NCCL were not run",
    },
    "clusters of Beam": {
        "README.md": r"tested with Beam's own runner on one machine, not on a cluster",
        "docs/encoding.md": r"Not run:\*\* Dataflow, Flink and Spark runners",
    },
    "TensorFlow Serving": {
        "README.md": r"The server itself was not at hand",
        "examples/tf_serving/README.md": r"The images `tensorflow/serving` and [^.]+ were not run",
    },
}


@pytest.mark.parametrize("untried", CAVEATS)
def test_what_was_not_tried_is_said_everywhere_or_nowhere(untried):
    """Who tries it, or words it otherwise, looks at all places."""
    said = {file: bool(re.search(pattern, read(file))) for file, pattern in CAVEATS[untried].items()}
    assert len(set(said.values())) == 1, said


def test_presets_say_what_they_said():
    """A note that is worded otherwise would be compared with nothing."""
    said = {}
    for fact in FACTS:
        preset, _, kind = fact.name.partition(": ")
        said.setdefault(kind, set()).add(preset)
    large = {name for name in preset_names() if not name.startswith(("quickstart", "cifar10_small"))}
    measured = set(COMPARED)
    assert len(large) >= 15
    assert said == {
        "millions of parameters": large | {"cifar10_small", "cifar10_small_var", "quickstart64"},
        "parameters": measured,
        "G multiply-adds": large,
        "alpha": measured | {"imagenet64", "imagenet64_glow", "quickstart"},
        "updates": large,
    }
    scaled = {fact.name.partition(": ")[0] for fact in FACTS if "docs/scaling.md" in dict(fact.places)}
    assert scaled == {"celeba_hq_256", "imagenet64", "lsun_bedroom_128"}


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_all_places_agree(figure):
    wrong = disagreements(figure)
    assert not wrong, "\n".join([figure.name, *wrong])


def test_disagreements_are_seen(monkeypatch):
    texts = {"a": "it takes 3.676 bits, or 3.68 bits", "b": "about 3.7 bits", "c": "exactly 3.675 bits"}
    monkeypatch.setattr("test_figures.read", texts.__getitem__)
    bits = r"([\d.]+) bits"
    assert disagreements(Figure("x", (("a", bits), ("b", bits)))) == []
    assert disagreements(Figure("x", (("a", bits), ("b", bits)), lambda: 3.6764)) == []
    assert disagreements(Figure("x", (("a", bits), ("c", bits)))) == ["c says 3.675, it is 3.676"]
    assert disagreements(Figure("x", (("b", bits),), lambda: 3.8)) == ["b says 3.7, it is 3.8"]
    assert disagreements(Figure("x", (("a", "nothing"),))) == ["a does not say it any more: nothing"]
