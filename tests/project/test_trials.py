"""The trials of options: their plan holds, and a trial is trained, measured, recorded and not run twice."""

import json
import signal
import sys

import pytest
from helpers.places import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import trials  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402


def row_of(trial, **others):
    command = "python " + " ".join(trial.command())
    figures = {"validation_bits_per_dim": 3.5, "validation_standard_error": 0.01, "validation_kl": 4.0}
    return {"name": trial.name, "seed": trial.seed, "command": command, **figures, **others}


def test_the_plan_holds_and_every_trial_has_its_row():
    trials.check_plan()
    planned, rows = trials.planned(), trials.read_rows(trials.ROWS)
    assert len({trial.key for trial in planned}) == len(planned) == len(rows) >= 30
    for trial in planned:
        # No test image is evaluated.
        assert "training.evaluation_samples=0" in trial.arguments and f"training.seed={trial.seed}" in trial.arguments
        assert trials.is_done(trial, rows)
    assert [trial.seed for trial in trials.planned(["glow"])] == [0, 1, 2]
    with pytest.raises(UserError, match="no trial 'glove'"):
        trials.planned(["glove"])


def test_table_has_the_rows_of_the_plan_in_its_order():
    first, second = trials.planned(["plain"])[0], trials.planned(["glow"])[0]
    probed = {"probe_accuracy": 0.312, "probe_standard_error": 0.0147}
    stale = row_of(trials.planned(["kl-1"])[0]) | {"command": "python train.py"}
    rows = [row_of(second), stale, row_of(first, **probed)]
    assert trials.render(rows).splitlines()[2:] == [
        "| plain | 0 |  | 3.5000 | 4.0 | 31.2 |",
        "| glow | 0 | `--preset cifar10_small_glow` | 3.5000 |  |  |",
    ]
    assert trials.is_done(first, rows) and not trials.is_done(trials.planned(["kl-1"])[0], rows)
    assert trials.render([]) == "No trial has been run yet."


class Trained:
    """Stands in for a process of train.py: leaves what it would leave, or is stopped."""

    def __init__(self, command, cwd):
        self.run = command[command.index("--workdir") + 1]
        self.signals = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    def send_signal(self, number):
        self.signals.append(number)

    def wait(self):
        from pathlib import Path

        folder = Path(self.run)
        folder.mkdir(parents=True)
        summary = {"best_step": 2, "data": "photographs", "parameters": {"total": 7}}
        (folder / "summary.json").write_text(json.dumps(summary))
        rows = [
            {"kind": "validation", "step": step, "bits_per_dim": step, "standard_error": 0.1, "kl": 1.5, "images": 9}
            for step in (1, 2)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return 0


def test_a_trial_is_recorded_with_its_command_and_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(trials.subprocess, "Popen", Trained)
    monkeypatch.setattr(trials, "run_json", lambda command: {"probe_accuracy": 0.5})
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    arguments = ["trials.py", "--only", "kl-1", "--workdir", str(tmp_path / "runs"), "--json", str(tmp_path / "rows")]
    monkeypatch.setattr(sys, "argv", arguments)
    assert trials.main() == 0
    (row,) = trials.read_rows(tmp_path / "rows")
    assert (row["validation_bits_per_dim"], row["validation_kl"], row["probe_accuracy"]) == (2, 1.5, 0.5)
    assert row["command"].startswith("python train.py --preset cifar10_small --steps 1000 --set ")
    assert "--workdir" not in row["command"] and row["command"].endswith("--set training.kl_weight=1")
    monkeypatch.setattr(trials, "take", lambda *_: pytest.fail("it is done"))
    assert trials.main() == 0


def test_divergence_is_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr(trials.subprocess, "Popen", Trained)
    trained = Trained.wait
    monkeypatch.setattr(Trained, "wait", lambda self: trained(self) or 3)
    trial = trials.planned(["faster"])[0]
    row = trials.take(trial, type("Options", (), {"workdir": tmp_path, "data_dir": None}))
    assert trials.is_done(trial, [row])
    assert trials.render([row]).endswith("training.learning_rate=0.016` | diverged after 2 updates |  |  |")
