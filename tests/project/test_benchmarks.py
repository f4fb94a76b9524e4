"""Tests of the benchmarks: formulas against numbers worked out by hand, mistakes in one line, the line of JSON."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import subprocess
import sys

import pytest
import tensorflow as tf
from helpers.models import LEAST, SMALL_SETTINGS, random_images
from helpers.places import ROOT
from helpers.runs import write_run
from PIL import Image

from tfdecouple import costs
from tfdecouple.config import MEMORY, load_preset
from tfdecouple.doctor.memory import WITHIN
from tfdecouple.errors import UserError
from tfdecouple.model import DecoupledModel
from tfdecouple.model.gradient import global_norm
from tfdecouple.parameters import count_parameters

sys.path.insert(0, str(ROOT))

from benchmarks import common, communication, compare, dispatches, scaling, throughput  # noqa: E402

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


def test_growth_above_linear_at_the_end_is_not_called_linear():
    assert "| a | 0.79 | 1.16 | no |" in scaling.render_growth({"a": ([1, 2, 4], [10, 13.4, 29.9])})
    assert "| a | 1.00 | 1.00 | yes |" in scaling.render_growth({"a": ([1, 2, 4], [10, 20, 40])})


def test_the_docs_call_linear_what_is():
    rows = re.findall(r"^\| \w.* \| (-?[\d.]+) \| (-?[\d.]+) \| (yes|no|but for noise) \|$", SCALING, re.MULTILINE)
    assert len(rows) >= 9
    for slope, last, said in rows:
        assert said == scaling.judged(max(float(slope), float(last)))
        assert (said == "yes") == (max(float(slope), float(last)) <= 1)


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


@pytest.mark.parametrize(("measured", "holds"), [(4000.0, True), (5300.0, True), (5400.0, False), (2900.0, False)])
def test_memory_off_by_more_than_a_third_is_seen_in_a_table(measured, holds):
    rows = [trained_row(1, "keep", mib_per_image=3.0), trained_row(2, "keep", mib_per_image=measured)]
    rows[1]["calculated_mib_per_image"] = 4000.0
    for name in ("depth", "large"):
        apart, compared = memory_apart(f"Before.\n\n{scaling.render(name, {name: rows})}\n\nAfter.\n")
        assert compared == 2 and len(apart) == (not holds) and all("| 4,000 |" in line for line in apart)


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


def test_a_table_goes_between_its_lines():
    document = "a\n<!-- x -->\nold\n<!-- end of x -->\nb\n"
    assert scaling.put(document, "x", "new") == "a\n<!-- x -->\n\nnew\n\n<!-- end of x -->\nb\n"
    with pytest.raises(UserError, match="no lines"):
        scaling.put(document, "y", "new")


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


def test_micro_batches_hide_no_communication():
    once, twice = (communication.calculate(4, 156e12, 0.3, micro_batches) for micro_batches in (1, 2))
    for one, two in zip(once, twice, strict=True):
        assert one["hidden_from"] >= 1 and two["hidden_from"] is None
        assert two["waiting_with_overlap"] == two["waiting_without_overlap"] == one["waiting_without_overlap"]


def test_a_batch_of_fewer_images_than_gpus_has_no_figures():
    rows = communication.calculate(4, 156e12, 0.3, 1)
    (own,) = {row["own_batch"] for row in rows if (row["preset"], row["gpus"]) == ("celeba_hq_256", 64)}
    assert own is None and {row["own_batch"] for row in rows} == {64, 8, 32, 4, 5, None}
    text = communication.render(rows)
    assert text.count("|  |  |  |\n") + text.endswith("|  |  |  |") == 3
    assert scaling.put(SCALING, "communication", text) == SCALING


# --- compare ---


def test_what_is_compared_with_what():
    train = compare.parse_comparison("train16")
    assert (train.counterpart, train.goal, train.limit({"limit_train_images_per_s": 5})) == ("train16", 1.75, 5)
    sample = compare.parse_comparison("sample8")
    assert (sample.counterpart, sample.goal, sample.enough) == ("decode8", 1.75, 0.85)
    own = compare.parse_comparison("train16:invert")
    assert (own.counterpart, own.goal, own.arguments, own.others) == (None, None, ("--memory", "invert"), ())


@pytest.mark.parametrize(("found", "goal"), [(["avx2", "avx512_bf16"], 1.25), (["avx2", "amx_bf16"], 1.6)])
def test_bfloat16_should_gain_more_where_the_processor_has_instructions_for_it(found, goal, monkeypatch):
    monkeypatch.setattr(compare, "instructions", lambda: found)
    own = compare.parse_comparison("train16:mixed_bfloat16")
    assert (own.counterpart, own.goal, own.arguments) == (None, goal, ("--precision", "mixed_bfloat16"))


# As fast as it is given many words, which it keeps.
YARDSTICK = """
import json, pathlib, sys
given = sys.argv[1:]
with (pathlib.Path(__file__).parent / "given").open("a") as file:
    print(*given, file=file)
rates = dict.fromkeys(["images_per_s", "best_images_per_s", "cpu_s_per_image", "peak_rss_mib"], float(len(given)))
print(json.dumps({**rates, "limit_train_images_per_s": 100.0}))
"""


def test_rounds_are_in_turns_and_flags_reach_the_yardstick(tmp_path, monkeypatch, capsys):
    calls, yardstick, out = [], tmp_path / "yardstick.py", tmp_path / "out.json"
    yardstick.write_text(YARDSTICK)
    monkeypatch.setattr(compare, "run_throughput", lambda *given: calls.append(given) or row(10.0 + len(given)))
    arguments = ["--yardstick", str(yardstick), "--phases", "train4,train4:invert/recompute", "--rounds", "2"]
    forms = ["--form=", "--form=--channels-last --compile"]
    monkeypatch.setattr(sys, "argv", ["compare.py", *arguments, *forms, "--reps", "5", "--json", str(out)])
    assert compare.main() == 0
    common = "--threads 2 --reps 5"
    plain, form = f"--phase train4 {common}", f"--phase train4 {common} --channels-last --compile"
    gemm = f"--phase gemm {common}"
    assert (tmp_path / "given").read_text().splitlines() == [gemm, plain, form, gemm] * 2
    ours = [*common.split(), "--precision", "float32"]
    modes = [(*common.split(), "--memory", mode) for mode in ("invert", "recompute")]
    assert calls == [("train4", *given) for given in (ours, *modes)] * 2
    against, own = json.loads(out.read_text())["results"]
    assert against["against"] == "train4 --channels-last --compile" and set(against["forms_images_per_s"]) == {
        "train4",
        "train4 --channels-last --compile",
    }
    assert own["against"] == "recompute" and own["goal"] == pytest.approx(1 / 1.1) and own["met"] is True
    assert "| train4:invert/recompute | recompute |" in capsys.readouterr().out


def row(rate):
    """A line of a benchmark that ran at `rate`."""
    return {"images_per_s": rate, "best_images_per_s": rate, "cpu_s_per_image": 2 / rate, "peak_rss_mib": 100.0}


@pytest.mark.parametrize(("ours", "met"), [(19.0, True), (17.0, True), (16.0, False)])
def test_decoding_meets_its_goal_by_either_way_against_the_fastest_form(ours, met):
    gemm = [{"limit_eval_images_per_s": 15.0}, {"limit_eval_images_per_s": 20.0}]
    rounds = [(row(ours), {"decode16": row(5.0), "decode16 --compile": row(10.0)})] * 3
    result = compare.judge(compare.parse_comparison("decode16"), rounds, gemm)
    assert result["ratio"] == pytest.approx(ours / 10) and result["met"] is met
    assert result["part_of_limit"] == pytest.approx(ours / 20)
    assert "| decode16 | decode16 --compile |" in compare.report([result])


def test_a_preset_without_a_counterpart_is_held_against_the_limit_of_its_multiply_adds():
    comparison = compare.parse_comparison("train64@quickstart")
    adds = 3 * costs.multiply_adds(load_preset("quickstart").model)
    gemm = [{"peak_f32_gflops": 100.0}]
    assert comparison.limit(gemm[0]) == pytest.approx(50e9 / adds)
    for part, met in ((0.31, True), (0.29, False)):
        result = compare.judge(comparison, [(row(part * 50e9 / adds), {})] * 3, gemm)
        assert result["met"] is met and result["part_of_limit"] == pytest.approx(part)
        assert "| train64@quickstart |" in compare.report([result])


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


def test_a_program_that_fails_is_named_with_what_it_said():
    with pytest.raises(UserError, match="status 3; it said: oh no"):
        common.run_json([sys.executable, "-c", "import sys; print('oh no', file=sys.stderr); sys.exit(3)"])
    with pytest.raises(UserError, match="no JSON object"):
        common.run_json([sys.executable, "-c", "print('hello')"])


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
    assert found["batch"] == 2 and found["images"].startswith("crops of photographs")
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
    assert {kind for kind, line in lines if line.startswith("gradient.py:")} >= {"L2Loss", "Sqrt"}
    assert lines["Tanh", ""] == lines["Mul", ""] == 2 and lines["Sqrt", ""] == 0
    config = dispatches.configured(dispatches.make_parser().parse_args(["--preset", "quickstart", "--batch", "8"]))
    assert config.training.batch_size == 8 and config.training.ema_decay
