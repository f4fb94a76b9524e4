"""Loggers that log to servers on this machine: openwandb with the client of Weights & Biases, and MLflow's server.

`make test-services` runs these tests.
"""

import contextlib
import json
import os
import subprocess
import sys
import urllib.request

import pytest
from helpers.models import LEAST
from helpers.places import ROOT
from helpers.servers import serve
from PIL import Image

from tfdecouple.config import Config
from tfdecouple.loggers import MetricsLog, read_metrics
from tfdecouple.registry import LOGGERS

pytestmark = pytest.mark.slow


def log_in_two_parts(run, name):
    """Logs 6 steps with the logger `name`, and resumes at step 5 until step 8; returns {(metric, step): value}."""
    run.mkdir()
    picture, failures = run / "picture.png", []
    Image.new("RGB", (3, 2)).save(picture)
    for begin, end in ((0, 6), (5, 8)):
        log = MetricsLog(run, [LOGGERS[name](run, Config(name="tiny", model=LEAST))], failures.append)
        log.open(begin)
        for step in range(begin + 1, end + 1):
            log.write("train", step, {"bits_per_dim": 1 / step, "kl": 2.0 * step, "note": "text"}, {"samples": picture})
        log.close()
    assert failures == []
    rows = list(read_metrics(run / "metrics.jsonl"))
    assert [row["step"] for row in rows] == list(range(1, 9))
    return {(f"train/{metric}", row["step"]): row[metric] for row in rows for metric in ("bits_per_dim", "kl")}


@pytest.fixture
def server(tmp_path, monkeypatch):
    python = ROOT / ".venv" / "openwandb" / "bin" / "python"
    if not python.exists():
        pytest.skip("openwandb is not installed")
    options = ["--host", "127.0.0.1", "-p", "{port}", "--data-dir", tmp_path / "server"]
    with serve("openwandb", "serve", *options, python=python) as address:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://{address}")
        monkeypatch.setenv("WANDB_API_KEY", "local" + 40 * "0")
        yield f"http://{address}"


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_server_of_weights_and_biases_has_the_metrics_of_a_resumed_run(server, tmp_path, monkeypatch, mode):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode == "online":
        monkeypatch.setenv("WANDB_MODE", mode)
    expected = log_in_two_parts(tmp_path / "run", "wandb")
    if mode == "offline":
        folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
        assert len(folders) == 2
        for folder in folders:
            command = [sys.executable, "-m", "wandb", "sync", str(folder)]
            environment = {**os.environ, "WANDB_MODE": "online"}
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, (done.stdout, done.stderr)
    run = (tmp_path / "run" / "wandb" / "id").read_text()
    names = {name for name, _ in expected}
    with urllib.request.urlopen(f"{server}/api/v2/runs/{run}/metrics") as answer:
        metrics = json.load(answer)["metrics_by_key"]
    # The server counts rows; the step of the training is a metric. The last row of a step counts.
    steps = {(row["step"], row["wall_time"]): row["value"] for row in metrics["step"]}
    rows = sorted((row["wall_time"], row["step"], name, row["value"]) for name in names for row in metrics[name])
    logged = {(name, steps[row, time]): value for time, row, name, value in rows}
    assert logged == pytest.approx(expected)
    with urllib.request.urlopen(f"{server}/api/v2/runs/{run}/config") as answer:
        assert "learning_rate" in answer.read().decode()


@pytest.mark.parametrize("place", ["server", "run folder"])
def test_mlflow_has_the_metrics_and_pictures_of_a_resumed_run(tmp_path, monkeypatch, place):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder, address = tmp_path / "run" / "mlflow", f"sqlite:///{tmp_path}/run/mlflow/mlflow.db"
    with contextlib.ExitStack() as stack:
        if place == "server":
            stores = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
            stores += ["--artifacts-destination", tmp_path / "artifacts", "--workers", "1"]
            server = serve("mlflow", "server", "--host", "127.0.0.1", "-p", "{port}", *stores)
            address = f"http://{stack.enter_context(server)}"
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        expected = log_in_two_parts(tmp_path / "run", "mlflow")
        client = mlflow.MlflowClient(address)
        (run,) = client.search_runs([client.get_experiment_by_name("tfdecouple").experiment_id])
        assert run.info.run_id == (folder / "id").read_text() and run.info.status == "FINISHED"
        assert run.data.params["training.learning_rate"] == "0.001"
        logged = {
            (name, entry.step): entry.value
            for name in run.data.metrics
            for entry in client.get_metric_history(run.info.run_id, name)
        }
        assert logged == pytest.approx(expected)
        names = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
        assert any("samples" in name and name.endswith(".png") for name in names)
    assert (folder / "mlflow.db").exists() == (place == "run folder")
