import json
import math

import pytest
from helpers.runs import read_log_without_timing

from tfdecouple.runs.metrics_log import MetricsLog

ROWS = [{"step": 1, "kind": "train", "a": 1.0}, {"step": 2, "kind": "train", "a": 2.0}]
NO_ROWS = [b'{"kind": "train"}', b'{"step": "1", "kind": "train"}', b'{"step": 1}']
NO_ROWS += [b"[1, 2]", b"7", b"\xff", b"[" * 9999]
# Evaluations without bits/dim.
NO_EVALUATIONS = [{}, {"bits_per_dim": None}, {"bits_per_dim": "low"}, {"bits_per_dim": [3]}, {"bits_per_dim": True}]


class TestLog:
    @pytest.mark.parametrize("is_last", [False, True])
    def test_log_drops_rows_after_the_checkpoint_and_a_row_cut_short(self, tmp_path, is_last):
        log = MetricsLog(tmp_path)
        log.open(0)
        for step in (1, 2, 3):
            log.write("train", step, {"bits_per_dim": float(step)})
        for step in (2, 3):
            log.write("test", step, {"bits_per_dim": 9.0})
        log.close()
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 4, "ki')
        log = MetricsLog(tmp_path)
        log.open(2, is_last)
        log.close()
        expected = {("train", step): {"step": step, "kind": "train", "bits_per_dim": float(step)} for step in (1, 2)}
        if not is_last:
            # The evaluation of test images counts while the run continues; after the last step it is repeated.
            expected["test", 2] = {"step": 2, "kind": "test", "bits_per_dim": 9.0}
        assert read_log_without_timing(tmp_path) == expected

    def test_damaged_rows_of_the_log_are_counted_and_removed(self, tmp_path):
        first, second = (json.dumps(row).encode() for row in ROWS)
        (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([first, *NO_ROWS, second, b'{"step": 3, "ki']))
        # A crash leaves a last line cut short, which is no damage.
        assert MetricsLog(tmp_path).open(2) == len(NO_ROWS)
        assert list(read_log_without_timing(tmp_path).values()) == ROWS
        assert (tmp_path / "metrics.jsonl").read_bytes().count(b"\n") == len(ROWS)

    @pytest.mark.parametrize("row", NO_EVALUATIONS)
    def test_logged_evaluation_without_its_bits_per_dim_is_ignored(self, tmp_path, row):
        (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 2, "kind": "validation", **row}) + "\n")
        log = MetricsLog(tmp_path)
        assert log.validation_bits_per_dim(2) is None
        assert log.open(2) == 1
        for value in (3.5, math.inf):
            log.write("validation", 2, {"bits_per_dim": value})
            assert MetricsLog(tmp_path).open(2) == 0 and log.validation_bits_per_dim(2) == value
