import dataclasses
import itertools
import json
import pathlib
import sys

import pytest
from helpers.models import LEAST, SMALL_SETTINGS, random_images
from helpers.numbered import write_images
from helpers.places import ROOT, read_output
from helpers.runs import write_run
from helpers.variants import fresh

from benchmarks import results, scaling, trials
from benchmarks.common import update_page

pytestmark = pytest.mark.usefixtures("forked")

# The pages with the tables that `scaling.py` calculates without measurements.
SCALING = {"memory": ROOT / "docs" / "scaling.md", "ceiling": ROOT / "docs" / "results" / "scaling.md"}


def printed_by(name, *arguments):
    return read_output(sys.executable, ROOT / "benchmarks" / f"{name}.py", *arguments)


class TestBenchmarks:
    def test_scaling_rows_become_the_tables_of_the_docs(self):
        calculated = {"memory": scaling.calculate_memory(), "ceiling": scaling.calculate_ceilings()}
        for name, page in SCALING.items():
            assert update_page(page, {name: scaling.render_table(name, calculated)}, check=True) == 0

    @pytest.mark.slow
    def test_exactness_benchmark_loses_no_value_of_grey_rectangles(self, tmp_path):
        folder = write_run(tmp_path / "run", fresh(dataclasses.replace(LEAST, image_shape=(4, 8, 1))))
        for split in ("train", "test"):
            write_images(tmp_path / "pictures" / split, random_images(4, (4, 8, 1)).squeeze())
        options = ["--count", "3", "--data", f"folder:{tmp_path / 'pictures'}", "--json", tmp_path / "measured.json"]
        printed_by("exactness", "--run", folder, *options)
        rows = json.loads((tmp_path / "measured.json").read_text(encoding="utf-8"))["rows"]
        assert len(rows) == 5 and rows[-1]["of"] == 3 and all(row["lost"] == 0 for row in rows)

    def test_export_benchmark_times_each_endpoint_of_a_runtime(self, exported):
        options = ["--runtimes", "onnx", "--rounds", "1", "--batches", "2"]
        rows = [json.loads(line) for line in printed_by("export", "--exported", exported, *options).splitlines()]
        found = [(row["what"], row["runtime"], row["batch"]) for row in rows]
        assert found == [("encode", "onnx", 2), ("decode", "onnx", 2)] and all(row["ms"] > 0 for row in rows)

    @pytest.mark.slow
    def test_throughput_and_yardstick_measure_a_phase(self):
        changes = [text for assignment in SMALL_SETTINGS for text in ("--set", assignment)]
        options = ["--phase", "train2", "--preset", "quickstart", "--reps", "1", "--seconds", "0.01"]
        names = ("images_per_s", "cpu_s_per_image", "peak_rss_mib", "params")
        pytest.importorskip("torch")
        for printed in (printed_by("throughput", *options, *changes), printed_by("yardstick", "--phase", "decode1")):
            measured = json.loads(printed.splitlines()[-1])
            assert all(measured[name] > 0 for name in names)

    def test_tables_of_results_and_trials_come_from_the_result_files(self):
        assert results.update_pages(check=True) == 0
        tables = {"trials": trials.render_trials(trials.read_rows(trials.ROWS))}
        assert update_page(ROOT / "docs" / "results" / "trials.md", tables, check=True) == 0

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
