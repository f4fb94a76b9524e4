"""Loggers beside metrics.jsonl: what each is given, after a restart, too, and what becomes of one that fails.

The client of Weights & Biases is stood in for by the calls that are made of it; the long tests run the real one
(test_loggers_real.py).
"""

import importlib.util
import sys
import types

import pytest
from helpers.models import SMALL
from PIL import Image

from tfdecouple.config import Config, TrainingConfig
from tfdecouple.loggers import LOGGERS, require_loggers
from tfdecouple.runs.metrics_log import MetricsLog, read_metrics
from tfdecouple.runtime.requirements import MissingPackageError

CONFIG = Config(name="tiny", model=SMALL, training=TrainingConfig(learning_rate=0.5))


def log_of(folder, *names):
    return MetricsLog(folder, [LOGGERS[name](folder, CONFIG) for name in names])


def write_rows(log, *steps):
    for step in steps:
        log.write("train", step, {"bits_per_dim": step / 2, "note": "text"})


def picture(folder):
    path = folder / "picture.png"
    Image.new("RGB", (3, 2)).save(path)
    return path


class TestConfig:
    def test_a_missing_package_is_one_line(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        require_loggers(["tensorboard"])
        with pytest.raises(MissingPackageError, match=r"training.loggers=wandb needs wandb, .*'tfdecouple\[loggers\]'"):
            require_loggers(["tensorboard", "wandb"])


class TestTensorBoard:
    def test_has_the_config_as_hyperparameters(self, tmp_path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams import plugin_data_pb2

        log = log_of(tmp_path, "tensorboard")
        log.open(0)
        log.write("train", 1, {"bits_per_dim": 0.5}, {"images": picture(tmp_path)})
        log.close()
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        assert {"train/bits_per_dim", "images"} <= set(events.Tags()["tensors"])
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        found = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
        assert found["training.learning_rate"].number_value == 0.5
        assert found["model.steps"].string_value == "[1, 1]" and found["name"].string_value == "tiny"


class FakeWandb(types.ModuleType):
    """The calls of wandb that are made, with its signatures."""

    def __init__(self):
        super().__init__("wandb")
        self.started, self.logged, self.defined, self.finished = [], [], [], 0

    class Image:
        def __init__(self, data_or_path):
            self.path = data_or_path

    def init(self, *, project, name, id, resume, dir, mode, config):
        self.started.append({"id": id, "resume": resume, "dir": dir, "mode": mode, "config": config, "name": name})
        return self

    def define_metric(self, name, step_metric=None):
        self.defined.append((name, step_metric))

    def log(self, data):
        self.logged.append(data)

    def finish(self):
        self.finished += 1


class TestWeightsAndBiases:
    @pytest.fixture
    def wandb(self, monkeypatch):
        fake = FakeWandb()
        monkeypatch.setitem(sys.modules, "wandb", fake)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        return fake

    def test_is_offline_and_one_run_over_restarts(self, tmp_path, wandb, monkeypatch):
        for step in (0, 1):
            log = log_of(tmp_path, "wandb")
            log.open(step)
            log.write("train", step + 1, {"bits_per_dim": 0.5, "note": "text"}, {"samples": picture(tmp_path)})
            log.close()
        first, second = wandb.started
        assert first == second and first["resume"] == "allow" and first["mode"] == "offline"
        assert first["dir"] == str(tmp_path) and first["config"]["training"]["learning_rate"] == 0.5
        assert wandb.defined[0] == ("*", "step") and wandb.finished == 2
        assert wandb.logged[0] == {"step": 1, "train/bits_per_dim": 0.5}
        assert wandb.logged[1]["samples"].path == str(tmp_path / "picture.png")
        monkeypatch.setenv("WANDB_MODE", "online")
        log_of(tmp_path, "wandb").open(2)
        assert wandb.started[-1]["mode"] == "online"

    def test_one_that_fails_is_left_out_and_the_run_goes_on(self, tmp_path, wandb, monkeypatch, capsys):
        log = log_of(tmp_path, "wandb", "tensorboard")
        log.open(0)
        write_rows(log, 1)

        def fail(data):
            raise ConnectionError("no \x1b[1mroute\x1b[0m\nto host")

        monkeypatch.setattr(wandb, "log", fail)
        write_rows(log, 2, 3)
        log.close()
        assert capsys.readouterr().out == "wandb failed and gets no more rows: no route to host\n"
        assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
