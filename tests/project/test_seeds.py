"""What the results say of runs of several seeds: compared at equal lengths, and never with what differs by more."""

from __future__ import annotations

import json
import math
import sys

import pytest
from helpers.places import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import seeds  # noqa: E402
from tfdecouple.config import load_preset, override  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402


@pytest.fixture
def run(tmp_path):
    """Makes the folder of a run, whose evaluations gave these bits/dim."""

    def make(name, seed, bits, *options):
        folder = tmp_path / name
        folder.mkdir()
        config = override(load_preset("quickstart"), [f"training.seed={seed}", *options])
        (folder / "config.json").write_text(config.to_json())
        rows = [{"kind": "validation", "step": step, "bits_per_dim": value} for step, value in bits.items()]
        rows.insert(1, {"kind": "train", "step": 30, "bits_per_dim": 9.0})
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return folder

    return make


def test_all_are_compared_at_the_last_evaluation_that_all_have(run):
    ours = [run("a0", 0, {10: 4.0, 20: 3.5, 30: 3.0}), run("a1", 1, {10: 4.2, 20: 3.7})]
    theirs = [run("b0", 0, {10: 4.1, 20: 3.9, 40: 2.0})]
    length, found = seeds.at_equal_length({"ours": ours, "theirs": theirs})
    assert length == 20 and found == {"ours": {0: 3.5, 1: 3.7}, "theirs": {0: 3.9}}


def test_runs_that_cannot_be_compared_are_refused(run):
    first = run("first", 0, {10: 4.0})
    with pytest.raises(UserError, match=r"training\.kl_weight differ"):
        seeds.at_equal_length({"ours": [first, run("other", 1, {10: 4.0}, "training.kl_weight=0.5")]})
    with pytest.raises(UserError, match="have one seed"):
        seeds.at_equal_length({"ours": [first, run("again", 0, {10: 4.0})]})
    with pytest.raises(UserError, match="never evaluated after equally many updates"):
        seeds.at_equal_length({"ours": [first], "theirs": [run("theirs", 0, {20: 4.0})]})


def test_standard_errors_are_over_seeds():
    assert seeds.mean_of([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / math.sqrt(3)))
    found = seeds.difference([5.0, 7.0], [1.0, 2.0, 3.0])
    assert found == pytest.approx((4.0, math.sqrt(1 + 1 / 3)))
    assert math.isnan(seeds.mean_of([1.0]).standard_error)
