"""Weights & Biases and MLflow through their own clients, in local files."""

import struct

import pytest
from helpers.runs import log_rows, run_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def logged_run(image_folder, tmp_path_factory):
    """The folder of a run with both loggers, stopped and gone on with."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    from tfdecouple.training import train

    folder = tmp_path_factory.mktemp("logged") / "run"
    for steps in (5, 10):
        train(run_config(image_folder, steps=steps, loggers=("wandb", "mlflow")), folder)
    return folder


def test_mlflow_has_the_figures_of_the_log(logged_run):
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{logged_run}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tfdecouple").experiment_id])
    assert run.data.params["training.batch_size"] == "8" and run.info.status == "FINISHED"
    for kind in ("train", "validation", "test"):
        found = {each.step: each.value for each in client.get_metric_history(run.info.run_id, f"{kind}/bits_per_dim")}
        rows = {step: row["bits_per_dim"] for (row_kind, step), row in log_rows(logged_run).items() if row_kind == kind}
        assert found.keys() >= rows.keys()
        assert all(found[step] == pytest.approx(value) for step, value in rows.items())
    assert {each.path for each in client.list_artifacts(run.info.run_id)} == {"images"}


def wandb_records(path):
    """Yields the records of a run's file, in pieces of at most 32 KiB as in a log of LevelDB: wandb has no reader."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, record = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while place < len(data):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        # Whole, or the last piece.
        if kind in (1, 4):
            yield Record.FromString(record)
            record = b""


def test_wandb_has_the_figures_of_the_log(logged_run):
    files = sorted(logged_run.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1
    found = {}
    for file in files:
        for record in wandb_records(file):
            row = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            if "train/bits_per_dim" in row:
                found[int(row["step"])] = float(row["train/bits_per_dim"])
    rows = {step: row["bits_per_dim"] for (kind, step), row in log_rows(logged_run).items() if kind == "train"}
    assert rows and found == pytest.approx(rows)
