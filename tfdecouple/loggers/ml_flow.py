"""MLflow, through its own client."""

from __future__ import annotations

import importlib
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from tfdecouple.loggers.base import Logger, Options, Row, numbers, parameters, remembered


class MLflow(Logger):
    """A run of MLflow, in `mlflow.db` and `mlartifacts/` of the run folder; `MLFLOW_TRACKING_URI` names another place.

    Each process that goes on with a run adds to the same run of theirs.
    """

    name = "mlflow"
    package = "mlflow"
    is_foreign = True

    def __init__(self, folder: pathlib.Path, config: Options):
        super().__init__(folder, config)
        # Their module, client and the id of their run; None until `open`, as far as that got.
        self._mlflow: Any = None
        self._client: Any = None
        self._id: str | None = None

    def open(self, step: int, rows: Sequence[Row]) -> None:
        """Begins their run, or goes on with it."""
        self._mlflow = importlib.import_module("mlflow")
        place = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = self._mlflow.MlflowClient(tracking_uri=place or f"sqlite:///{self.folder.resolve()}/mlflow.db")
        self._id = remembered(self.folder / "mlflow-id", lambda: self._begin(None if place else self.folder))

    def _begin(self, local: pathlib.Path | None) -> str:
        """Makes their run, with the config as its parameters; returns its id."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "tfdecouple")
        found = self._client.get_experiment_by_name(name)
        artifacts = (local.resolve() / "mlartifacts").as_uri() if local else None
        experiment = found.experiment_id if found else self._client.create_experiment(name, artifact_location=artifacts)
        run = self._client.create_run(experiment, run_name=self.config.name)
        for option, value in parameters(self.config).items():
            self._client.log_param(run.info.run_id, option, value)
        return run.info.run_id

    def write(self, kind: str, step: int, values: Row) -> None:
        """Adds a row."""
        now = time.time_ns() // 10**6
        entity = self._mlflow.entities.Metric
        metrics = [entity(name, float(value), now, step) for name, value in numbers(kind, values).items()]
        self._client.log_batch(self._id, metrics=metrics)

    def write_picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """Keeps a PNG file."""
        self._client.log_artifact(self._id, str(path), "images")

    def close(self) -> None:
        """Ends it."""
        if self._id is not None:
            self._client.set_terminated(self._id)
