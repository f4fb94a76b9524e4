"""Loggers of this machine; test_services.py has those that log to servers."""

from helpers.models import LEAST

from tfdecouple.config import Config
from tfdecouple.loggers import Logger, MetricsLog, read_metrics
from tfdecouple.registry import LOGGERS


class Unreachable(Logger):
    is_foreign = True

    def write(self, kind, step, values):
        raise ConnectionError("no \x1b[1mroute\x1b[0m\nto host")


def test_failing_logger_is_dropped_and_the_run_continues(tmp_path, capsys):
    config = Config(name="tiny", model=LEAST)
    log = MetricsLog(tmp_path, [Unreachable(tmp_path, config), LOGGERS["tensorboard"](tmp_path, config)])
    log.open(0)
    for step in (1, 2):
        log.write("train", step, {"bits_per_dim": step / 2})
    log.close()
    assert capsys.readouterr().out == "Unreachable failed and gets no more rows: no route to host\n"
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
