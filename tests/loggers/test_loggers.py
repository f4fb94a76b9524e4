"""Loggers beside metrics.jsonl: what each is given, after a restart, too, and what becomes of one that fails.

The clients of Weights & Biases and MLflow are stood in for by the calls that are made of them; the long tests run the
real ones (test_loggers_real.py).
"""

import csv
import dataclasses
import importlib.util
import sys
import types

import pytest
from helpers.models import SMALL
from PIL import Image

from tfdecouple.config import Config, TrainingConfig, override
from tfdecouple.errors import ConfigError
from tfdecouple.loggers import LOGGERS, require_loggers
from tfdecouple.runtime.requirements import MissingPackageError
from tfdecouple.training.metrics_log import MetricsLog, read_metrics

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
    def test_names_are_checked(self):
        assert override(CONFIG, ['training.loggers=["csv", "tensorboard"]']).training.loggers == ("csv", "tensorboard")
        assert override(CONFIG, ["training.loggers=[]"]).training.loggers == ()
        with pytest.raises(ConfigError, match=r"training.loggers\[0\] is 'comet'; it must be 'tensorboard'"):
            override(CONFIG, ['training.loggers=["comet"]'])
        with pytest.raises(ConfigError, match="name each only once"):
            override(CONFIG, ['training.loggers=["csv", "csv"]'])

    def test_a_missing_package_is_one_line(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        require_loggers(["tensorboard", "csv"])
        with pytest.raises(MissingPackageError, match=r"training.loggers=wandb needs wandb, .*'tfdecouple\[loggers\]'"):
            require_loggers(["csv", "wandb"])


class TestTensorBoard:
    def test_has_the_config_as_hyperparameters(self, tmp_path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams import plugin_data_pb2

        log = log_of(tmp_path, "tensorboard")
        log.open(0)
        write_rows(log, 1)
        log.write_picture("images", 1, picture(tmp_path))
        log.close()
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        assert {"train/bits_per_dim", "images"} <= set(events.Tags()["tensors"])
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        found = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
        assert found["training.learning_rate"].number_value == 0.5
        assert found["model.steps"].string_value == "[1, 1]" and found["name"].string_value == "tiny"


class TestTables:
    def test_one_for_each_kind_and_whole_after_a_restart(self, tmp_path):
        log = log_of(tmp_path, "csv")
        log.open(0)
        write_rows(log, 1, 2, 3)
        log.write("validation", 2, {"bits_per_dim": 7.5})
        log.write("validation", 4, {"bits_per_dim": 7.25, "smallest_scale": 0.5})
        log.close()
        log = log_of(tmp_path, "csv")
        log.open(2)
        write_rows(log, 3)
        log.close()

        def rows(kind):
            with (tmp_path / f"{kind}.csv").open(newline="") as file:
                return list(csv.DictReader(file))

        assert rows("train") == [
            {"step": str(step), "bits_per_dim": str(step / 2), "note": "text"} for step in (1, 2, 3)
        ]
        assert rows("validation") == [{"step": "2", "bits_per_dim": "7.5"}]
        log.write("validation", 4, {"bits_per_dim": 7.25, "smallest_scale": 0.5})
        log.flush()
        assert [row["smallest_scale"] for row in rows("validation")] == ["", "0.5"]

    def test_of_a_run_that_had_none_before(self, tmp_path):
        log = log_of(tmp_path)
        log.open(0)
        write_rows(log, 1)
        log_of(tmp_path, "csv").open(1)
        assert (tmp_path / "train.csv").read_text().splitlines() == ["step,bits_per_dim,note", "1,0.5,text"]


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
            write_rows(log, step + 1)
            log.write_picture("samples", step + 1, picture(tmp_path))
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
        log = log_of(tmp_path, "wandb", "csv")
        log.open(0)
        write_rows(log, 1)

        def fail(data):
            raise ConnectionError("no \x1b[1mroute\x1b[0m\nto host")

        monkeypatch.setattr(wandb, "log", fail)
        write_rows(log, 2, 3)
        log.close()
        assert capsys.readouterr().out == "wandb failed and gets no more rows: no route to host\n"
        assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
        assert len((tmp_path / "train.csv").read_text().splitlines()) == 4


class FakeMlflow(types.ModuleType):
    """The calls of mlflow that are made, with its signatures."""

    def __init__(self):
        super().__init__("mlflow")
        self.places, self.experiments, self.params, self.metrics, self.files, self.ended = [], {}, {}, [], [], []
        self.entities = types.SimpleNamespace(Metric=lambda key, value, timestamp, step: (key, value, step))

    def MlflowClient(self, tracking_uri):  # noqa: N802 it is a class there
        self.places.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name):
        return self.experiments.get(name)

    def create_experiment(self, name, artifact_location=None):
        self.experiments[name] = types.SimpleNamespace(experiment_id=artifact_location)
        return artifact_location

    def create_run(self, experiment_id, run_name=None):
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"run of {run_name}"))

    def log_param(self, run_id, key, value):
        self.params[key] = value

    def log_batch(self, run_id, metrics):
        self.metrics += [(run_id, *metric) for metric in metrics]

    def log_artifact(self, run_id, local_path, artifact_path):
        self.files.append((local_path, artifact_path))

    def set_terminated(self, run_id):
        self.ended.append(run_id)


class TestMlflow:
    def test_writes_to_the_run_folder_and_is_one_run_over_restarts(self, tmp_path, monkeypatch):
        mlflow = FakeMlflow()
        monkeypatch.setitem(sys.modules, "mlflow", mlflow)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for step in (0, 1):
            log = log_of(tmp_path, "mlflow")
            log.open(step)
            write_rows(log, step + 1)
            log.close()
        log.write_picture("samples", 2, picture(tmp_path))
        assert mlflow.places == [f"sqlite:///{tmp_path}/mlflow.db"] * 2
        assert mlflow.experiments["tfdecouple"].experiment_id == (tmp_path / "mlartifacts").as_uri()
        assert mlflow.params["training.learning_rate"] == 0.5 and mlflow.params["model.steps"] == "[1, 1]"
        assert mlflow.metrics == [("run of tiny", "train/bits_per_dim", step / 2, step) for step in (1, 2)]
        assert mlflow.files == [(str(tmp_path / "picture.png"), "images")] and len(mlflow.ended) == 2
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
        log_of(tmp_path, "mlflow").open(2)
        assert mlflow.places[-1] == "http://127.0.0.1:5000"


def test_loggers_may_change_when_a_run_goes_on(tmp_path):
    from tfdecouple.training.run_directory import RunDirectory

    with RunDirectory(tmp_path / "run", CONFIG) as directory:
        directory.require_same_run()
        directory.write_run_files({})
    training = dataclasses.replace(CONFIG.training, loggers=("csv",))
    with RunDirectory(tmp_path / "run", dataclasses.replace(CONFIG, training=training)) as directory:
        directory.require_same_run()
        assert directory.is_resumed
