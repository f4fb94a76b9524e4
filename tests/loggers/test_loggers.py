import sys
from unittest import mock

import pytest
from helpers.models import SMALL
from PIL import Image

from tfdecouple.config import Config, TrainingConfig
from tfdecouple.loggers import MetricsLog, read_metrics
from tfdecouple.registry import LOGGERS

CONFIG = Config(name="tiny", model=SMALL, training=TrainingConfig(learning_rate=0.5))


@pytest.fixture
def wandb(monkeypatch):
    client = mock.MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", client)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return client


def open_log(folder, *names, step=0):
    log = MetricsLog(folder, [LOGGERS[name](folder, CONFIG) for name in names])
    log.open(step)
    return log


class TestLogger:
    def test_weights_and_biases_is_offline_and_one_run_over_restarts(self, tmp_path, wandb, monkeypatch):
        picture = tmp_path / "picture.png"
        Image.new("RGB", (3, 2)).save(picture)
        for step in (0, 1):
            log = open_log(tmp_path, "wandb", step=step)
            log.write("train", step + 1, {"bits_per_dim": 0.5, "note": "text"}, {"samples": picture})
            log.close()
        first, second = (call.kwargs for call in wandb.init.call_args_list)
        assert first == second and first["resume"] == "allow" and first["mode"] == "offline"
        assert first["dir"] == str(tmp_path) and first["config"]["training"]["learning_rate"] == 0.5
        run = wandb.init.return_value
        assert run.log.call_args_list[0] == mock.call({"step": 1, "train/bits_per_dim": 0.5})
        assert wandb.Image.call_args == mock.call(str(picture)) and run.finish.call_count == 2
        monkeypatch.setenv("WANDB_MODE", "online")
        open_log(tmp_path, "wandb", step=2)
        assert wandb.init.call_args.kwargs["mode"] == "online"

    def test_failing_logger_is_dropped_and_the_run_continues(self, tmp_path, wandb, capsys):
        log = open_log(tmp_path, "wandb", "tensorboard")
        wandb.init.return_value.log.side_effect = ConnectionError("no \x1b[1mroute\x1b[0m\nto host")
        for step in (1, 2):
            log.write("train", step, {"bits_per_dim": step / 2})
        log.close()
        assert capsys.readouterr().out == "wandb failed and gets no more rows: no route to host\n"
        assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
