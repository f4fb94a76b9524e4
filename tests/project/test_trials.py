"""The trials of options: their plan holds, and each of them has its row of the table."""

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
    diverged = trials.render([row_of(trials.planned(["faster"])[0], diverged_after=2)])
    assert diverged.endswith("training.learning_rate=0.016` | diverged after 2 updates |  |  |")
    assert trials.render([]) == "No trial has been run yet."
