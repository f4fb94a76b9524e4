import dataclasses
import hashlib
import itertools
import json
import pathlib
import re
import shutil
import sys

import pytest
from helpers.models import LEAST, SMALL_SETTINGS, random_images
from helpers.numbered import write_images
from helpers.places import ROOT, read_output
from helpers.runs import write_run
from helpers.variants import fresh

from benchmarks import paper, photographs, results, scaling, trials
from benchmarks.common import update_page
from tfdecouple.config import MEMORY, preset_config
from tfdecouple.errors import UserError

pytestmark = pytest.mark.usefixtures("forked")

SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def printed_by(name, *arguments):
    return read_output(sys.executable, ROOT / "benchmarks" / f"{name}.py", *arguments)


def written_by(name, folder, *arguments):
    printed_by(name, *arguments, "--json", folder / "measured.json")
    return json.loads((folder / "measured.json").read_text(encoding="utf-8"))["rows"]


class TestBenchmarks:
    def test_scaling_rows_become_the_tables_and_the_plot_of_the_docs(self, tmp_path, monkeypatch):
        monkeypatch.setattr(scaling, "DEPTHS", (1,))
        calculated = {"memory": scaling.calculate_memory(), "ceiling": scaling.calculate_ceilings()}
        page = tmp_path / "scaling.md"
        page.write_text(SCALING, encoding="utf-8")
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
        rows = {"depth": depths, "large": depths, "memory": calculated["memory"]}
        scaling.plot_scaling(rows, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").stat().st_size > 10000

    @pytest.mark.slow
    def test_exactness_benchmark_loses_no_value_of_grey_rectangles(self, tmp_path):
        folder = write_run(tmp_path / "run", fresh(dataclasses.replace(LEAST, image_shape=(4, 8, 1))))
        for split in ("train", "test"):
            write_images(tmp_path / "pictures" / split, random_images(4, (4, 8, 1)).squeeze())
        data = f"folder:{tmp_path / 'pictures'}"
        rows = written_by("exactness", tmp_path, "--run", folder, "--count", "3", "--data", data)
        assert len(rows) == 5 and rows[-1]["of"] == 3 and all(row["lost"] == 0 for row in rows)

    def test_export_benchmark_times_each_endpoint_of_a_runtime(self, exported):
        options = ["--runtimes", "onnx", "--rounds", "1", "--batches", "2"]
        rows = [json.loads(line) for line in printed_by("export", "--exported", exported, *options).splitlines()]
        found = [(row["what"], row["runtime"], row["batch"]) for row in rows]
        assert found == [("encode", "onnx", 2), ("decode", "onnx", 2)] and all(row["ms"] > 0 for row in rows)

    @pytest.mark.slow
    def test_throughput_and_inversion_benchmarks_measure_a_small_model(self, tmp_path):
        changes = [text for assignment in SMALL_SETTINGS for text in ("--set", assignment)]
        options = ["--phase", "train2", "--preset", "quickstart", "--reps", "1", "--seconds", "0.01"]
        measured = json.loads(printed_by("throughput", *options, *changes).splitlines()[-1])
        names = ("images_per_s", "cpu_s_per_image", "peak_rss_mib", "first_call_s", "params")
        assert measured["batch"] == 2 and all(measured[name] > 0 for name in names)
        options = ["--alphas", "0.5", "--updates", "1", "--batch", "2", *changes]
        full, half = written_by("inversion", tmp_path, *options)
        assert all(0 < float(row[column]) < 1e-4 for row in (full, half) for column in ("error", "largest"))
        # The rounding of bfloat16 shows in a column of its own.
        assert full["precision"] == "" and float(half["precision"]) > 1e-4

    def test_tables_of_results_and_trials_come_from_the_result_files(self):
        assert update_page(results.PAGE, {name: render() for name, render in results.TABLES.items()}, check=True) == 0
        tables = {"trials": trials.render_trials(trials.read_rows(trials.ROWS))}
        assert update_page(ROOT / "docs" / "results" / "trials.md", tables, check=True) == 0

    def test_paper_benchmark_finds_a_changed_count_of_parameters_and_restores_it(self, monkeypatch, capsys, tmp_path):
        original = paper.PAGE.read_text(encoding="utf-8")
        monkeypatch.setattr(paper, "PAGE", tmp_path / "page.md")
        monkeypatch.setattr(paper, "TRAINING_PAGE", pathlib.Path(shutil.copy(paper.TRAINING_PAGE, tmp_path)))
        paper.PAGE.write_text(original.replace("51,860,457", "CHANGED", 1), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["paper.py", "--check"])
        assert paper.main() == 1 and "CHANGED" in capsys.readouterr().out
        monkeypatch.setattr(sys, "argv", ["paper.py"])
        assert paper.main() == 0 and paper.PAGE.read_text(encoding="utf-8") == original

    def test_table_of_presets_is_made_from_their_configs(self, monkeypatch):
        tables = {"presets": paper.render_presets()}
        assert update_page(paper.TRAINING_PAGE, tables, check=True) == 0
        # Twice as many updates take twice as long, and half as many micro-batches more memory.
        changes = {"cifar10_small": ["training.steps=16000"], "cifar10": ["training.micro_batches=1"]}
        changed = {name: preset_config(name).override(assignments) for name, assignments in changes.items()}
        monkeypatch.setattr(paper, "preset_config", lambda name: changed.get(name) or preset_config(name))
        before, after = (
            {line.split(" |")[0]: line for line in text.splitlines()}
            for text in (tables["presets"], paper.render_presets())
        )
        assert {name for name in before if before[name] != after[name]} == {"| `cifar10_small`", "| `cifar10`"}

    def test_result_files_belong_to_the_committed_weights(self):
        runs = (*results.TITLES, "quickstart")
        steps = {run: results.load_result(f"{run}/summary.json")["best_step"] for run in runs}
        written = []
        for run, folder in itertools.product(steps, ("evaluation", "pictures")):
            paths = (path for path in (results.FILES / run / folder).rglob("*.json") if path.name != "curves.json")
            written += [(run, json.loads(path.read_text(encoding="utf-8"))) for path in paths]
        rows = [row for name in ("exactness", "every_image") for row in results.load_result(f"{name}.json")["rows"]]
        written += [(pathlib.PurePath(row["run"]).name, row) for row in rows]
        assert len(written) > 70
        for run, content in written:
            assert content["step"] == steps[run], (run, content)

    def test_every_planned_trial_is_valid_and_has_a_row(self):
        planned, rows = trials.list_trials(), trials.read_rows(trials.ROWS)
        assert len({trial.key for trial in planned}) == len(planned) == len(rows) >= 30
        for trial in planned:
            preset_config(trial.arguments[1]).override(trial.arguments[5::2])
            # No test image is evaluated.
            assert {"training.evaluation_samples=0", f"training.seed={trial.seed}"} <= {*trial.arguments}
            assert trials.find_row(trial, rows)
        assert [trial.seed for trial in trials.list_trials(["glow"])] == [0, 1, 2]
        with pytest.raises(UserError, match="no trial 'glove'"):
            trials.list_trials(["glove"])

    @pytest.mark.parametrize("option", paper.OPTIONS)
    def test_presets_have_the_options_that_the_paper_page_states(self, option):
        _, stated = paper.OPTIONS[option]
        values = [preset_config(name).flatten_options()[option] for name in paper.DATA_SETS.values()]
        by_data_set = isinstance(stated, list) and len(stated) == len(values)
        for value, expected in zip(values, stated if by_data_set else [stated] * len(values), strict=True):
            assert expected is None or value == expected

    def test_table_of_photographs_lists_free_files_with_unique_names_and_digests(self):
        table = json.loads(photographs.TABLE.read_text(encoding="utf-8"))
        rows = table["photographs"]
        assert {row["licence"] for row in rows} == {"public domain", "CC0-1.0"}
        assert {row["package"] for row in rows} == table["suites"].keys()
        for field, form in (("file", r"[a-z0-9-]+\.png"), ("sha256", "[0-9a-f]{64}")):
            values = [row[field] for row in rows]
            assert len(set(values)) == len(values) and all(re.fullmatch(form, value) for value in values)

    def test_photograph_with_another_digest_is_refused(self, tmp_path):
        row = {"package": "moors", "path": "heath.jpg", "sha256": hashlib.sha256(b"purple").hexdigest()}
        (tmp_path / "moors").mkdir()
        (tmp_path / "moors" / "heath.jpg").write_bytes(b"purple")
        assert photographs.read_photograph(row, tmp_path) == b"purple"
        (tmp_path / "moors" / "heath.jpg").write_bytes(b"brown")
        with pytest.raises(UserError, match="SHA-256"):
            photographs.read_photograph(row, tmp_path)
