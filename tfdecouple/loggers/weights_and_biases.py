"""The logger for Weights & Biases, which uses the client of that project."""

from __future__ import annotations

import importlib
import os
import pathlib
from typing import Any

from tfdecouple.loggers.base import Logger, Row, select_numbers


class WeightsAndBiases(Logger):
    """A logger to `wandb/` in the run folder, offline unless `WANDB_MODE` has another value.

    A resumed run adds to the same run of Weights & Biases; `wandb sync` uploads a run that was logged offline.
    """

    name = "wandb"
    package = "wandb"
    is_foreign = True
    # The run of Weights & Biases, and the client's class of pictures.
    _run: Any = None
    _image: Any = None

    def open(self, step: int) -> None:
        """Starts or resumes the run of Weights & Biases."""
        wandb = importlib.import_module("wandb")
        path = self.folder / "wandb" / "id"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text(os.urandom(4).hex(), encoding="utf-8")
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "tfdecouple"),
            name=os.environ.get("WANDB_NAME", self.config.name),
            id=path.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(self.folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=self.config.to_dict(),
        )
        # A metric "step" replaces the client's count of steps, which cannot go back to the checkpoint of a resumed run.
        self._run.define_metric("*", step_metric="step")

    def write(self, kind: str, step: int, values: Row) -> None:
        """Adds a row of metrics to the run of Weights & Biases."""
        self._run.log({"step": step, **select_numbers(kind, values)})

    def write_picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """Adds a picture, a PNG file, to the run of Weights & Biases."""
        self._run.log({"step": step, name: self._image(str(path))})

    def close(self) -> None:
        """Ends the run of Weights & Biases."""
        if self._run is not None:
            self._run.finish()
