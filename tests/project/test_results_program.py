"""`benchmarks/results.py`: how it compares seeds, and that it finds and mends tables that differ from the files."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest
from helpers.places import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import results  # noqa: E402
from tfdecouple.config import Config  # noqa: E402


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
        for run, figures in measured.items():
            (tmp_path / run).mkdir(parents=True)
            rows = [{"kind": "validation", "step": step, "bits_per_dim": value} for step, value in figures.items()]
            lines = map(json.dumps, [{"kind": "train", "step": 5000, "bits_per_dim": 9.0}, *rows])
            (tmp_path / run / "metrics.jsonl").write_text("\n".join(lines))
        monkeypatch.setattr(results, "FILES", tmp_path)
        assert results.seeds() == (2000, {"conditional": [3.1, 3.0], "base": [3.2, 3.2], "glow": [3.4, 3.5]})
        table = results.TABLES["seeds"]()
        assert "| ours | 3.1000, 3.0000 | 3.0500 +- 0.0500 |  |" in table
        assert "| baseline of Table 3 | 3.2000, 3.2000 | 3.2000 +- 0.0000 | 0.1500 +- 0.0500 |" in table

    def test_are_compared_in_pairs(self, monkeypatch):
        found = {"conditional": [3.1, 3.0, 2.0], "glow": [3.4, 3.2], "base": [3.2, 3.1]}
        monkeypatch.setattr(results, "seeds", lambda: (2000, found))
        assert results.behind("glow") == (pytest.approx(0.25), pytest.approx(0.05))
        # Two seeds that are alike behind ours, however far they are from each other.
        assert results.behind("base") == (pytest.approx(0.1), pytest.approx(0, abs=1e-9))

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


class TestProgram:
    def test_checks_and_lists(self, monkeypatch, capsys, tmp_path):
        monkeypatch.setattr(sys, "argv", ["results.py", "--check"])
        assert results.main() == 0 and "say what the files say" in capsys.readouterr().out
        page = results.PAGE.read_text(encoding="utf-8")
        monkeypatch.setattr(results, "PAGE", tmp_path / "page.md")
        bits = results.load("conditional/evaluation/bits_per_dim-test.json")["bits_per_dim"]
        changed = f"**{bits + 0.001:.4f}"
        results.PAGE.write_text(page.replace(f"**{bits:.4f}", changed))
        assert results.main() == 1 and changed in capsys.readouterr().out
        monkeypatch.setattr(sys, "argv", ["results.py"])
        assert results.main() == 0 and results.PAGE.read_text() == page
        monkeypatch.setattr(sys, "argv", ["results.py", "--list"])
        assert results.main() == 0 and "frechet:\n" in capsys.readouterr().out
