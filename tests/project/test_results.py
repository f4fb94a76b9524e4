"""The tables of docs/RESULTS.md and docs/trials.md come from files, which belong to the committed weights."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shlex
import sys

import pytest
from helpers.places import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import results, trials  # noqa: E402
from benchmarks.common import replace_table  # noqa: E402
from tfdecouple.config import Config, load_preset, override  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402

PAGE = results.PAGE.read_text(encoding="utf-8")


class TestPages:
    def test_tables_are_those_of_the_files(self):
        assert not results.list_differences(PAGE, results.replace_tables(PAGE))
        page = (ROOT / "docs" / "trials.md").read_text(encoding="utf-8")
        assert replace_table(page, "trials", trials.render_trials(trials.read_rows(trials.ROWS))) == page

    def test_a_changed_digit_is_found_and_mended(self, monkeypatch, capsys, tmp_path):
        bits = results.load_result("conditional/evaluation/bits_per_dim-test.json")["bits_per_dim"]
        changed = f"**{bits + 0.001:.4f}"
        monkeypatch.setattr(results, "PAGE", tmp_path / "page.md")
        results.PAGE.write_text(PAGE.replace(f"**{bits:.4f}", changed))
        monkeypatch.setattr(sys, "argv", ["results.py", "--check"])
        assert results.main() == 1 and changed in capsys.readouterr().out
        monkeypatch.setattr(sys, "argv", ["results.py"])
        assert results.main() == 0 and results.PAGE.read_text() == PAGE


class TestFiles:
    def test_are_of_the_committed_weights(self):
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

    def test_that_the_commands_make_are_there(self):
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


class TestSeeds:
    def test_are_compared_at_the_last_update_that_all_have(self, monkeypatch, tmp_path):
        measured = {
            "conditional": {1000: 3.3, 2000: 3.1, 6000: 2.9},
            "seeds/conditional-1": {1000: 3.4, 2000: 3.0},
            "base": {1000: 3.2, 2000: 3.2},
            "seeds/base-1": {1000: 3.2, 2000: 3.2, 3000: 1.0},
            "glow": {2000: 3.4},
            "seeds/glow-1": {2000: 3.5},
        }
        for run, values in measured.items():
            (tmp_path / run).mkdir(parents=True)
            rows = [{"kind": "validation", "step": step, "bits_per_dim": value} for step, value in values.items()]
            lines = map(json.dumps, [{"kind": "train", "step": 5000, "bits_per_dim": 9.0}, *rows])
            (tmp_path / run / "metrics.jsonl").write_text("\n".join(lines))
        monkeypatch.setattr(results, "FILES", tmp_path)
        assert results.compare_seeds() == (2000, {"conditional": [3.1, 3.0], "base": [3.2, 3.2], "glow": [3.4, 3.5]})
        table = results.TABLES["seeds"]()
        assert "| ours | 3.1000, 3.0000 | 3.0500±0.0500 |  |" in table
        assert "| baseline | 3.2000, 3.2000 | 3.2000±0.0000 | 0.1500±0.0500 |" in table
        # The difference is that of pairs of one seed.
        assert results.compare_with_ours("glow") == (pytest.approx(0.4), pytest.approx(0.1))

    def test_are_runs_of_the_same_config(self):
        for run in results.RUNS:
            for other in sorted((results.FILES / "seeds").glob(f"{run}-*")):
                ours, theirs = (Config.from_json(each / "config.json") for each in (results.FILES / run, other))
                assert (ours.model, ours.data) == (theirs.model, theirs.data)
                # They end before the patterns begin.
                assert theirs.training.steps < ours.training.patterns_after and not theirs.training.patterns
                names = ("steps", "patterns", "patterns_after")
                same = {name: getattr(ours.training, name) for name in names}
                training = dataclasses.replace(theirs.training, seed=0, evaluation_samples=1, **same)
                assert training == ours.training and other.name == f"{run}-{theirs.training.seed}"


def row_of(trial, **others):
    figures = {"validation_bits_per_dim": 3.5, "validation_standard_error": 0.01, "validation_kl": 4.0}
    return {"name": trial.name, "seed": trial.seed, "command": trial.command, **figures, **others}


class TestTrials:
    def test_have_a_valid_plan_with_a_row_for_each(self):
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

    def test_are_rows_of_the_table_in_the_order_of_the_plan(self):
        first, second = trials.list_trials(["plain"])[:2]
        (third, *_), (other, *_) = (trials.list_trials([name]) for name in ("glow", "kl-1"))
        probed = {"probe_accuracy": 0.312, "probe_standard_error": 0.0147}
        stale = row_of(other) | {"command": "python train.py"}
        rows = [row_of(third), stale, row_of(second, **probed), row_of(first, **probed, validation_kl=5.0)]
        assert trials.render_trials(rows).splitlines()[2:] == [
            "| plain |  | 3.5000, 3.5000 | 5.0, 4.0 | 31.2, 31.2 |",
            "| glow | `--preset cifar10_small_glow` | 3.5000 |  |  |",
        ]
        assert trials.find_row(first, rows) == rows[-1] and trials.find_row(other, rows) is None
        diverged = trials.render_trials([row_of(trials.list_trials(["faster"])[0], diverged_after=2)])
        assert diverged.endswith("training.learning_rate=0.016` | diverged after 2 updates |  |  |")
        assert trials.render_trials([]) == "No trial has been run yet."
