"""Tests that the tables of docs/RESULTS.md and docs/trials.md come from files of the committed weights."""

import json
import pathlib
import shlex
import sys

import pytest
from helpers.places import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import results, trials  # noqa: E402
from benchmarks.common import replace_table  # noqa: E402
from tfdecouple.config import load_preset, override  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402

PAGE = results.PAGE.read_text(encoding="utf-8")


class TestPages:
    def test_tables_of_results_and_trials_come_from_the_files(self):
        assert not results.list_differences(PAGE, results.replace_tables(PAGE))
        page = (ROOT / "docs" / "trials.md").read_text(encoding="utf-8")
        assert replace_table(page, "trials", trials.render_trials(trials.read_rows(trials.ROWS))) == page

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
            if not trial.commit:
                override(load_preset(trial.arguments[1]), trial.arguments[5::2])
            # No test image is evaluated.
            assert {"training.evaluation_samples=0", f"training.seed={trial.seed}"} <= {*trial.arguments}
            assert trials.find_row(trial, rows)
        assert [trial.seed for trial in trials.list_trials(["glow"])] == [0, 1, 2]
        with pytest.raises(UserError, match="no trial 'glove'"):
            trials.list_trials(["glove"])
