"""Weights & Biases and MLflow through their own clients, in local files."""

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


def test_wandb_adds_to_one_run(logged_run):
    files = sorted(logged_run.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1
    assert all(b"train/bits_per_dim" in file.read_bytes() for file in files)
