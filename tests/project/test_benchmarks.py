"""Tests of the benchmarks: formulas against numbers worked out by hand, mistakes in one line, the line of JSON."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys

import pytest
import tensorflow as tf
from helpers.models import LEAST, SMALL_SETTINGS, random_images
from helpers.places import ROOT
from helpers.runs import write_run
from PIL import Image

from tfdecouple.config import MEMORY, load_preset
from tfdecouple.doctor.measurements import WITHIN
from tfdecouple.errors import UserError
from tfdecouple.model import DecoupledModel
from tfdecouple.model.gradient import global_norm
from tfdecouple.networks import costs
from tfdecouple.networks.plan import count_parameters

sys.path.insert(0, str(ROOT))

from benchmarks import communication, dispatches, scaling, throughput  # noqa: E402

pytestmark = pytest.mark.usefixtures("forked")

SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def memory():
    """The rows of what training is calculated to need."""
    return scaling.calculate_memory()


def program(name, *arguments):
    """Runs a benchmark as a user would."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# --- scaling ---


def test_exponents():
    assert scaling.exponent([1, 2, 4, 8], [3, 6, 12, 24]) == pytest.approx(1)
    assert scaling.exponent([1, 2, 4], [5, 5, 5]) == pytest.approx(0)
    assert scaling.exponent([1, 10], [1, 100]) == pytest.approx(2)


def test_the_largest_micro_batch_fills_the_memory():
    config = load_preset("lsun_bedroom_128")
    state = costs.state_bytes(count_parameters(config.model)["total"], averages=False, micro_batches=2)
    one = costs.activations(config.model).total
    count = scaling.largest_micro_batch(config, 24)
    assert state + count * one <= 0.9 * 24 * 2**30 < state + (count + 1) * one
    assert scaling.largest_micro_batch(config, 2) == 0
    assert scaling.largest_micro_batch(config, 24, "recompute") > 4 * count


def memory_apart(document):
    """Rows of the tables of training over depths whose memory an image is more than a third off the calculation.

    With them the number of rows that were compared.
    """
    columns, compared, apart = {}, 0, []
    for line in document.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if "live MiB" in cells:
            columns = {name: number for number, name in enumerate(cells)}
        elif not line.startswith("|"):
            columns = {}
        elif columns and not line.startswith("| --- "):
            texts = [cells[columns[name]] for name in ("MiB an image", "calculated")]
            measured, calculated = (float(text.replace(",", "")) for text in texts)
            compared += 1
            if not 1 / WITHIN <= measured / calculated <= WITHIN:
                apart.append(line)
    return apart, compared


def test_memory_that_the_docs_calculate_is_what_was_measured_but_for_a_third():
    apart, compared = memory_apart(SCALING)
    assert apart == [] and compared > 20


def trained_row(depth, memory, **changes):
    """What is measured of training at a depth, linear in it but for the time of a step."""
    return {
        "depth": depth,
        "preset": "imagenet64",
        "memory": memory,
        "live_mib": [500.0, 800.0],
        "params": 1000 * depth,
        "ms_per_call": 10.0 * depth**2,
        "first_call_s": 5.0 * depth,
        "second_step_s": 0.1,
        "first_step_s": 5.0 + 5.0 * depth,
        "peak_rss_mib": 900.0,
        "mib_per_image": 3.0 * depth,
        "calculated_mib_per_image": 3.1 * depth,
        **changes,
    }


def test_the_calculated_tables_in_the_docs_are_what_the_programs_print(memory):
    assert scaling.put(SCALING, "memory", scaling.render_memory(memory)) == SCALING


def test_measured_rows_become_tables_and_a_plot(memory, tmp_path):
    rows = [
        {"kind": "train", "batch": batch, "images_per_s": 10.0, "ms_per_call": 100.0 * batch, "peak_rss_mib": 900.0}
        for batch in (1, 2, 4)
    ]
    assert "| time of train over images | 1.00 | 1.00 | yes |" in scaling.render("batch", {"batch": rows})
    depths = [trained_row(depth, memory) for memory in MEMORY for depth in (1, 2, 4)]
    text = scaling.render("depth", {"depth": depths})
    assert "| time of an update over flow steps, invert | 2.00 | 2.00 | no |" in text
    assert "| memory an image over flow steps, imagenet64, keep | 1.00 | 1.00 | yes |" in scaling.render(
        "large", {"large": depths}
    )
    scaling.plot(
        {"depth": depths, "large": depths, "memory": memory},
        tmp_path / "plot.png",
        scaling.GPUS_GIB,
    )
    assert (tmp_path / "plot.png").stat().st_size > 10000


# --- communication ---


def test_a_ring_by_hand():
    # 8 members: 14/8 of the bytes, and 14 steps of latency for each bucket.
    assert communication.ring_seconds(800.0, 8, 100.0, 0.5, buckets=2) == pytest.approx(14 + 14)
    assert communication.ring_seconds(800.0, 1, 100.0, 0.5) == 0


def test_hosts_share_their_network():
    inside = communication.Link("inside", 100.0, 1.0, 0.0)
    between = communication.Link("between", 10.0, 0.5, 0.0)
    one, two = communication.Cluster(1, 4, inside), communication.Cluster(2, 4, inside, between)
    assert communication.all_reduce_seconds(400.0, one) == pytest.approx(6)
    assert communication.all_reduce_seconds(400.0, two) == pytest.approx(6 + 80)


def test_when_communication_is_hidden():
    # A multiply-add is two operations, and training takes three times the forward pass.
    assert communication.compute_seconds(1e9, peak=1e12, utilisation=0.5) == pytest.approx(0.012)
    # Two thirds of an image's 3 seconds are backward: 10 seconds need 5 images.
    assert communication.hidden_from(10.0, 3.0) == 5
    assert communication.cost(10.0, 3.0, 5, overlap=True) == 0
    assert communication.cost(10.0, 3.0, 5, overlap=False) == pytest.approx(0.4)


# --- compare ---


# As fast as it is given many words, which it keeps.
YARDSTICK = """
import json, pathlib, sys
given = sys.argv[1:]
with (pathlib.Path(__file__).parent / "given").open("a") as file:
    print(*given, file=file)
rates = dict.fromkeys(["images_per_s", "best_images_per_s", "cpu_s_per_image", "peak_rss_mib"], float(len(given)))
print(json.dumps({**rates, "limit_train_images_per_s": 100.0}))
"""


def row(rate):
    """A line of a benchmark that ran at `rate`."""
    return {"images_per_s": rate, "best_images_per_s": rate, "cpu_s_per_image": 2 / rate, "peak_rss_mib": 100.0}


# --- mistakes ---


@pytest.mark.parametrize("phase", ["train", "foo16", "train0", "16", ""])
def test_unknown_phases_are_refused(phase):
    with pytest.raises(UserError, match="there is no phase"):
        throughput.parse_phase(phase)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("throughput", ["--phase", "eval16", "--memory", "invert"], "--memory concerns training alone"),
        ("throughput", ["--phase", "train8", "--set", "training.batch_size=4"], "the phase says 8 images"),
        ("throughput", ["--phase", "train8", "--threads", "0"], "--threads is 0"),
        ("compare", ["--phases", "train16"], "--yardstick is missing"),
        ("compare", ["--phases", "first_step"], "has no counterpart"),
        ("compare", ["--phases", "train16@quick"], "quick"),
        ("compare", ["--phases", "train16:keep/invert"], "trainN:invert/recompute"),
        ("scaling", ["--tables", "nothing"], "there is no table 'nothing'"),
        ("communication", ["--utilisation", "2"], "--utilisation is 2.0"),
        ("export", ["--preset", "nope"], "there is no preset 'nope'"),
        ("export", ["--preset", "cifar10_classes"], "a function of the label"),
        ("export", ["--preset", "cifar10", "--batches", "1", "0"], "--batches is [1, 0]"),
        ("export", ["--exported", "not there"], "there is no export folder not there"),
    ],
)
def test_mistakes_are_one_line(name, arguments, says):
    done = program(name, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and says in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("shape", "kinds"), [((4, 8, 1), 4), ((4, 8, 2), 5)])
def test_exactness_takes_images_of_any_shape(tmp_path, shape, kinds):
    random.seed(0)
    model = DecoupledModel(dataclasses.replace(LEAST, image_size=None, image_shape=shape))
    model.initialize(random_images(16, shape))
    folder = write_run(tmp_path / "run", model)
    for split in ("train", "test"):
        (tmp_path / "pictures" / split).mkdir(parents=True)
        for number, image in enumerate(random_images(4, shape)):
            Image.fromarray(image.squeeze()).save(tmp_path / "pictures" / split / f"{number}.png")
    data = f"folder:{tmp_path / 'pictures'}"
    done = program("exactness", "--run", str(folder), "--count", "3", "--data", data, "--json", str(tmp_path / "rows"))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows").read_text())["rows"]
    assert len(rows) == kinds + 1 and rows[-1]["of"] == 3 and all(row["lost"] == 0 for row in rows)


def test_throughput_ends_in_one_json_object():
    changes = [text for assignment in SMALL_SETTINGS for text in ("--set", assignment)]
    done = program(
        "throughput", "--phase", "train2", "--preset", "quickstart", "--reps", "1", "--seconds", "0.01", *changes
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["batch"] == 2
    for name in ("images_per_s", "best_images_per_s", "cpu_s_per_image", "peak_rss_mib", "first_step_s", "params"):
        assert found[name] > 0


def test_operations_are_counted_in_functions_as_well():
    def inner(x):
        return tf.tanh(x) * x

    inner = tf.function(inner, autograph=False, experimental_attributes={"_noinline": True})
    counts = dispatches.operations(lambda: tf.function(lambda x: inner(inner(x)), autograph=False)(tf.ones([2])))
    assert counts["Tanh"] == counts["Mul"] == 2

    @tf.function(autograph=False)
    def squares(x):
        tf.sqrt(x)  # Which nobody needs.
        return inner(global_norm([inner(x)]))

    lines = dispatches.by_line(squares.get_concrete_function(tf.ones([2])).graph)
    assert {kind for kind, line in lines if line.startswith("model/gradient.py:")} >= {"L2Loss", "Sqrt"}
    assert lines["Tanh", ""] == lines["Mul", ""] == 2 and lines["Sqrt", ""] == 0
    config = dispatches.configured(dispatches.make_parser().parse_args(["--preset", "quickstart", "--batch", "8"]))
    assert config.training.batch_size == 8 and config.training.ema_decay
