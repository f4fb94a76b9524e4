"""The benchmarks: formulas against numbers worked out by hand, mistakes in one line, and short runs."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys

import pytest
import tensorflow as tf
from helpers.models import LEAST, SMALL, SMALL_SETTINGS, random_images
from helpers.places import ROOT
from helpers.runs import write_run
from PIL import Image

from tfdecouple.config import MEMORY, load_preset
from tfdecouple.doctor.measurements import WITHIN
from tfdecouple.model import DecoupledModel
from tfdecouple.networks import costs
from tfdecouple.networks.architecture import count_parameters

sys.path.insert(0, str(ROOT))

from benchmarks import communication, compiling, dispatches, scaling  # noqa: E402

pytestmark = pytest.mark.usefixtures("forked")

SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def memory():
    """The rows of what training is calculated to need."""
    return scaling.calculate_memory()


def program(name, *arguments):
    """Runs a benchmark as a user would."""
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def measured(name, folder, *arguments):
    """What a benchmark writes with `--json`."""
    done = program(name, *arguments, "--json", folder / "found.json")
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


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


def test_measured_memory_in_the_docs_is_near_the_calculation():
    table = SCALING.partition("<!-- depth -->")[2].partition("<!-- end of depth -->")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.strip().splitlines()]
    places = [rows[0].index(name) for name in ("MiB an image", "calculated")]
    pairs = [[float(row[place]) for place in places] for row in rows[2:] if row[1] != "exponent"]
    assert len(pairs) == 15
    assert all(1 / WITHIN <= measured / calculated <= WITHIN for measured, calculated in pairs)


def test_the_calculated_tables_in_the_docs_are_what_the_programs_print(memory):
    assert scaling.put(SCALING, "memory", scaling.render_memory(memory)) == SCALING


def test_measured_rows_become_tables_and_a_plot(memory, tmp_path):
    rows = [
        {"kind": "train", "batch": batch, "images_per_s": 10.0, "ms_per_call": 100.0 * batch} for batch in (1, 2, 4)
    ]
    assert scaling.render("batch", {"batch": rows}).endswith("| exponent of the time | 1.00 |")
    depths = [
        {
            "depth": depth,
            "preset": "imagenet64",
            "memory": mode,
            "params": 1000 * depth,
            "ms_per_call": 10.0 * depth**2,
            "first_call_s": 5.0 * depth,
            "second_step_s": 0.1,
            "first_step_s": 5.0 + 5.0 * depth,
            "peak_rss_mib": 900.0,
            "live_mib": [500.0, 800.0],
            "mib_per_image": 3.0 * depth,
            "calculated_mib_per_image": 3.1 * depth,
        }
        for mode in MEMORY
        for depth in (1, 2, 4)
    ]
    assert "| invert | exponent | 2.00 | 1.01 | 0.00 | 1.00 |" in scaling.render("depth", {"depth": depths})
    assert "| imagenet64 | keep | 2 | 40.0 |" in scaling.render("large", {"large": depths})
    scaling.plot({"depth": depths, "large": depths, "memory": memory}, tmp_path / "plot.png", scaling.GPUS_GIB)
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


# --- mistakes ---


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("throughput", ["--phase", "foo16"], "there is no phase"),
        ("throughput", ["--phase", "eval16", "--memory", "invert"], "--memory concerns training alone"),
        ("throughput", ["--phase", "train8", "--set", "training.batch_size=4"], "the phase says 8 images"),
        ("throughput", ["--phase", "train8", "--threads", "0"], "--threads is 0"),
        ("compare", ["--phases", "train16"], "--yardstick is missing"),
        ("compare", ["--phases", "first_step"], "has no counterpart"),
        ("compare", ["--phases", "train16:keep/invert"], "trainN:invert/recompute"),
        ("scaling", ["--tables", "nothing"], "there is no table 'nothing'"),
        ("communication", ["--utilisation", "2"], "--utilisation is 2.0"),
        ("export", ["--preset", "nope"], "there is no preset 'nope'"),
        ("export", ["--preset", "cifar10_classes"], "a function of the label"),
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
    model = DecoupledModel(dataclasses.replace(LEAST, image_shape=shape))
    model.initialize(random_images(16, shape))
    folder = write_run(tmp_path / "run", model)
    for split in ("train", "test"):
        (tmp_path / "pictures" / split).mkdir(parents=True)
        for number, image in enumerate(random_images(4, shape)):
            Image.fromarray(image.squeeze()).save(tmp_path / "pictures" / split / f"{number}.png")
    data = f"folder:{tmp_path / 'pictures'}"
    rows = measured("exactness", tmp_path, "--run", folder, "--count", "3", "--data", data)["rows"]
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
    config = dispatches.configured(dispatches.make_parser().parse_args(["--preset", "quickstart", "--batch", "8"]))
    assert config.training.batch_size == 8 and config.training.ema_decay


# --- gradients ---


@pytest.mark.slow
def test_a_kind_is_compiled_and_computes_the_same():
    kind = list(compiling.kinds_of(SMALL))[0]
    found = compiling.measure(kind, 2)
    assert found["off"] < 1e-5 and found["compiled_s"] > found["xla_s"] > 0 and found["tensorflow_s"] > 0


@pytest.mark.slow
def test_gradients_by_inversion_are_right_until_a_layer_divides_by_nothing(tmp_path):
    changes = [text for assignment in SMALL_SETTINGS for text in ("--set", assignment)]
    options = ["--alphas", "0.5", "--updates", "1", "--precisions", "float32", "--batch", "2", "--break", *changes]
    rows = measured("inversion", tmp_path, *options)["rows"]
    first, *spoiled = [(float(row["error"]), float(row["largest"])) for row in rows]
    assert max(first) < 1e-4 and len(spoiled) == 5
    errors = [error for error, _ in spoiled]
    assert errors == sorted(errors) and errors[-1] > 1e-3
