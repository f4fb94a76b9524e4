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
from tfdecouple.config import Config  # noqa: E402

PAGE = results.PAGE.read_text(encoding="utf-8")


class TestPages:
    def test_tables_are_those_of_the_files(self):
        assert not results.differences(PAGE, results.with_tables(PAGE))
        page = (ROOT / "docs" / "trials.md").read_text(encoding="utf-8")
        assert results.put(page, "trials", trials.render(trials.read_rows(trials.ROWS))) == page

    def test_a_changed_digit_is_found_and_mended(self, monkeypatch, capsys, tmp_path):
        bits = results.load("conditional/evaluation/bits_per_dim-test.json")["bits_per_dim"]
        changed = f"**{bits + 0.001:.4f}"
        monkeypatch.setattr(results, "PAGE", tmp_path / "page.md")
        results.PAGE.write_text(PAGE.replace(f"**{bits:.4f}", changed))
        monkeypatch.setattr(sys, "argv", ["results.py", "--check"])
        assert results.main() == 1 and changed in capsys.readouterr().out
        monkeypatch.setattr(sys, "argv", ["results.py"])
        assert results.main() == 0 and results.PAGE.read_text() == PAGE


class TestFiles:
    def test_are_of_the_committed_weights(self):
        steps = {run: results.load(f"{run}/summary.json")["best_step"] for run in (*results.TITLES, "quickstart")}
        written = [
            (run, json.loads(path.read_text(encoding="utf-8")))
            for run in steps
            for folder in ("evaluation", "pictures")
            for path in (results.FILES / run / folder).rglob("*.json")
            if path.name != "curves.json"
        ]
        rows = [row for name in ("exactness", "every_image") for row in results.load(f"{name}.json")["rows"]]
        written += [(pathlib.PurePath(row["run"]).name, row) for row in rows]
        assert len(written) > 70
        for run, content in written:
            assert content["step"] == steps[run], (run, content)

    def test_that_the_commands_make_are_there(self):
        for line in (line for lines in results.commands().values() for line in lines):
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
        assert results.seeds() == (2000, {"conditional": [3.1, 3.0], "base": [3.2, 3.2], "glow": [3.4, 3.5]})
        table = results.TABLES["seeds"]()
        assert "| ours | 3.1000, 3.0000 | 3.0500 +- 0.0500 |  |" in table
        assert "| baseline of Table 3 | 3.2000, 3.2000 | 3.2000 +- 0.0000 | 0.1500 +- 0.0500 |" in table
        # The difference is that of pairs of one seed.
        assert results.behind("glow") == (pytest.approx(0.4), pytest.approx(0.1))

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
