"""Tests of the benchmarks: tables of the documentation, and short runs."""

import dataclasses
import hashlib
import json
import pathlib
import random
import re
import shlex
import subprocess
import sys

import pytest
from helpers.models import LEAST, SMALL_SETTINGS, random_images
from helpers.places import ROOT
from helpers.runs import write_run
from PIL import Image

from tfdecouple.config import MEMORY, load_preset, override
from tfdecouple.errors import UserError
from tfdecouple.model import DecoupledModel

sys.path.insert(0, str(ROOT))

from benchmarks import paper, photographs, results, scaling, trials  # noqa: E402
from benchmarks.common import update_page  # noqa: E402
from benchmarks.training_cost import count_activation_bytes  # noqa: E402

pytestmark = pytest.mark.usefixtures("forked")

# Largest allowed ratio between the measured and the calculated memory of an image, in either direction.
WITHIN = 4 / 3
SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def printed_by(name, *arguments):
    """Returns what a benchmark prints."""
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def written_by(name, folder, *arguments):
    """Returns the rows that a benchmark writes with `--json`."""
    printed_by(name, *arguments, "--json", folder / "measured.json")
    return json.loads((folder / "measured.json").read_text(encoding="utf-8"))["rows"]


class TestScaling:
    @pytest.mark.slow
    @pytest.mark.parametrize("memory", ["keep", "invert"])
    def test_image_takes_the_calculated_memory(self, memory):
        # So few layers that an image is most of what is computed.
        settings = ["model.image_shape=[64,64,3]", "model.steps=[1,1]", "model.hidden_channels=[16,16]"]
        settings += ["model.encoder_channels=[16]", "model.latent_dim=4", "training.init_images=2"]
        calculated = count_activation_bytes(override(load_preset("quickstart"), settings).model, memory=memory) / 2**20
        options = ["--preset", "quickstart", "--memory", memory, "--live", "--threads", "1"]
        options += [text for setting in settings for text in ("--set", setting)]
        small = round(256 / calculated)
        smaller, larger = (
            json.loads(printed_by("throughput", "--phase", f"first_step{batch}", *options).splitlines()[-1])
            for batch in (small, 2 * small)
        )
        measured = (larger["peak_live_mib"] - smaller["peak_live_mib"]) / small
        assert 1 / WITHIN <= measured / calculated <= WITHIN

    def test_scaling_rows_become_the_tables_and_the_plot_of_the_docs(self, tmp_path, monkeypatch):
        monkeypatch.setattr(scaling, "DEPTHS", (1,))
        memory = scaling.calculate_memory()
        page = tmp_path / "scaling.md"
        page.write_text(SCALING, encoding="utf-8")
        calculated = {"memory": memory, "ceiling": scaling.calculate_ceilings()}
        assert update_page(page, {name: scaling.render_table(name, calculated) for name in calculated}) == 0
        assert page.read_text(encoding="utf-8") == SCALING
        depths = [
            {"depth": depth, "preset": "imagenet64", "memory": mode, "ms_per_call": 10.0 * depth**2}
            | {"first_call_s": 5.0 * depth, "second_step_s": 0.1, "peak_rss_mib": 900.0}
            | {"mib_per_image": 3.0 * depth, "calculated_mib_per_image": 3.1 * depth}
            for mode in MEMORY
            for depth in (1, 2, 4)
        ]
        assert "| invert | exponent | 2.00 | 1.01 | 0.00 | 1.00 |" in scaling.render_table("depth", {"depth": depths})
        scaling.plot_scaling({"depth": depths, "large": depths, "memory": memory}, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").stat().st_size > 10000


@pytest.mark.slow
def test_exactness_benchmark_loses_no_value_of_grey_rectangles(tmp_path):
    random.seed(0)
    model = DecoupledModel(dataclasses.replace(LEAST, image_shape=(4, 8, 1)))
    model.initialize(random_images(16, (4, 8, 1)))
    folder = write_run(tmp_path / "run", model)
    for split in ("train", "test"):
        (tmp_path / "pictures" / split).mkdir(parents=True)
        for number, image in enumerate(random_images(4, (4, 8, 1))):
            Image.fromarray(image.squeeze()).save(tmp_path / "pictures" / split / f"{number}.png")
    data = f"folder:{tmp_path / 'pictures'}"
    rows = written_by("exactness", tmp_path, "--run", folder, "--count", "3", "--data", data)
    assert len(rows) == 5 and rows[-1]["of"] == 3 and all(row["lost"] == 0 for row in rows)


def test_export_benchmark_times_each_endpoint_of_a_runtime(exported):
    options = ["--runtimes", "onnx", "--rounds", "1", "--batches", "2"]
    rows = [json.loads(line) for line in printed_by("export", "--exported", exported, *options).splitlines()]
    assert [(row["what"], row["runtime"], row["batch"]) for row in rows] == [
        ("encode", "onnx", 2),
        ("decode", "onnx", 2),
    ]
    assert all(row["ms"] > 0 for row in rows)


@pytest.mark.slow
def test_throughput_benchmark_prints_one_json_object():
    changes = [text for assignment in SMALL_SETTINGS for text in ("--set", assignment)]
    options = ["--phase", "train2", "--preset", "quickstart", "--reps", "1", "--seconds", "0.01"]
    measured = json.loads(printed_by("throughput", *options, *changes).splitlines()[-1])
    assert measured["batch"] == 2
    for name in ("images_per_s", "cpu_s_per_image", "peak_rss_mib", "first_call_s", "params"):
        assert measured[name] > 0


@pytest.mark.slow
def test_inversion_benchmark_tells_inversion_errors_from_the_rounding_of_bfloat16(tmp_path):
    changes = [text for assignment in SMALL_SETTINGS for text in ("--set", assignment)]
    options = ["--alphas", "0.5", "--updates", "1", "--batch", "2", *changes]
    full, half = written_by("inversion", tmp_path, *options)
    assert all(0 < float(row[column]) < 1e-4 for row in (full, half) for column in ("error", "largest"))
    assert full["precision"] == "" and float(half["precision"]) > 1e-4


PAGE = results.PAGE.read_text(encoding="utf-8")


class TestPages:
    def test_tables_of_results_and_trials_come_from_the_files(self):
        assert update_page(results.PAGE, {name: render() for name, render in results.TABLES.items()}, check=True) == 0
        tables = {"trials": trials.render_trials(trials.read_rows(trials.ROWS))}
        assert update_page(ROOT / "docs" / "trials.md", tables, check=True) == 0

    def test_results_check_finds_a_changed_digit_and_the_program_restores_it(self, monkeypatch, capsys, tmp_path):
        bits = results.load_result("conditional/evaluation/bits_per_dim-test.json")["bits_per_dim"]
        changed = f"**{bits + 0.001:.4f}"
        monkeypatch.setattr(results, "PAGE", tmp_path / "page.md")
        results.PAGE.write_text(PAGE.replace(f"**{bits:.4f}", changed))
        monkeypatch.setattr(sys, "argv", ["results.py", "--check"])
        assert results.main() == 1 and changed in capsys.readouterr().out
        monkeypatch.setattr(sys, "argv", ["results.py"])
        assert results.main() == 0 and results.PAGE.read_text() == PAGE


class TestFiles:
    def test_result_files_belong_to_the_committed_weights(self):
        steps = {
            run: results.load_result(f"{run}/summary.json")["best_step"] for run in (*results.TITLES, "quickstart")
        }
        written = [
            (run, json.loads(path.read_text(encoding="utf-8")))
            for run in steps
            for folder in ("evaluation", "pictures")
            for path in (results.FILES / run / folder).rglob("*.json")
            if path.name != "curves.json"
        ]
        rows = [row for name in ("exactness", "every_image") for row in results.load_result(f"{name}.json")["rows"]]
        written += [(pathlib.PurePath(row["run"]).name, row) for row in rows]
        assert len(written) > 70
        for run, content in written:
            assert content["step"] == steps[run], (run, content)

    def test_result_files_of_all_listed_commands_exist(self):
        for line in (line for lines in results.list_commands().values() for line in lines if "train.py" not in line):
            words = shlex.split(line)
            run = words[words.index("--run") + 1]
            out = words[words.index("--out") + 1] if "--out" in words else f"{run}/evaluation"
            if "--json" in words:
                assert (ROOT / words[words.index("--json") + 1]).is_file(), line
            elif words[3] == "evaluate":
                assert (ROOT / out / "bits_per_dim-test.json").is_file(), line
            else:
                pictures = ROOT / (out if "--out" in words else f"{run}/pictures")
                assert list(pictures.glob(f"{words[3].removesuffix('s')}*.json")), line


class TestTrials:
    def test_every_planned_trial_is_valid_and_has_a_row(self):
        planned, rows = trials.list_trials(), trials.read_rows(trials.ROWS)
        assert len({trial.key for trial in planned}) == len(planned) == len(rows) >= 30
        for trial in planned:
            override(load_preset(trial.arguments[1]), trial.arguments[5::2])
            # No test image is evaluated.
            assert {"training.evaluation_samples=0", f"training.seed={trial.seed}"} <= {*trial.arguments}
            assert trials.find_row(trial, rows)
        assert [trial.seed for trial in trials.list_trials(["glow"])] == [0, 1, 2]
        with pytest.raises(UserError, match="no trial 'glove'"):
            trials.list_trials(["glove"])


PAPER = paper.PAGE.read_text(encoding="utf-8")


def test_tables_of_the_paper_page_agree_with_the_presets_and_a_change_is_found(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(paper, "PAGE", tmp_path / "paper.md")
    paper.PAGE.write_text(PAPER.replace("51,860,457", "CHANGED", 1), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["paper.py", "--check"])
    assert paper.main() == 1 and "CHANGED" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["paper.py"])
    assert paper.main() == 0 and paper.PAGE.read_text(encoding="utf-8") == PAPER


@pytest.mark.parametrize("option", paper.OPTIONS)
def test_presets_have_the_options_that_the_paper_page_states(option):
    _, stated = paper.OPTIONS[option]
    values = [load_preset(name).flatten_options()[option] for name in paper.DATA_SETS.values()]
    by_data_set = isinstance(stated, list) and len(stated) == len(values)
    for value, expected in zip(values, stated if by_data_set else [stated] * len(values), strict=True):
        assert expected is None or value == expected


def test_table_lists_free_photographs_with_unique_names_and_digests():
    table = json.loads(photographs.TABLE.read_text(encoding="utf-8"))
    rows = table["photographs"]
    assert {row["licence"] for row in rows} == {"public domain", "CC0-1.0"}
    assert {row["package"] for row in rows} == table["suites"].keys()
    for field, form in (("file", r"[a-z0-9-]+\.png"), ("sha256", "[0-9a-f]{64}")):
        values = [row[field] for row in rows]
        assert len(set(values)) == len(values) and all(re.fullmatch(form, value) for value in values)


def test_photograph_with_another_digest_is_refused(tmp_path):
    row = {"package": "moors", "path": "heath.jpg", "sha256": hashlib.sha256(b"purple").hexdigest()}
    (tmp_path / "moors").mkdir()
    (tmp_path / "moors" / "heath.jpg").write_bytes(b"purple")
    assert photographs.read_photograph(row, tmp_path) == b"purple"
    (tmp_path / "moors" / "heath.jpg").write_bytes(b"brown")
    with pytest.raises(UserError, match="SHA-256"):
        photographs.read_photograph(row, tmp_path)
