"""Weights & Biases, through its own client."""

from __future__ import annotations

import importlib
import os
import pathlib
import secrets
from collections.abc import Sequence
from typing import Any

from tfdecouple.loggers.base import Logger, Options, Row, numbers, remembered


class WeightsAndBiases(Logger):
    """A run of Weights & Biases, in `wandb/` of the run folder and offline, unless `WANDB_MODE` says otherwise.

    Each process that goes on with a run adds to the same run of theirs; `wandb sync` uploads what was logged offline.
    """

    name = "wandb"
    package = "wandb"
    is_foreign = True

    def __init__(self, folder: pathlib.Path, config: Options):
        super().__init__(folder, config)
        # Their run and their class of pictures; None until `open`.
        self._run: Any = None
        self._image: Any = None

    def open(self, step: int, rows: Sequence[Row]) -> None:
        """Begins their run, or goes on with it."""
        wandb = importlib.import_module("wandb")
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "tfdecouple"),
            name=os.environ.get("WANDB_NAME", self.config.name),
            id=remembered(self.folder / "wandb" / "id", lambda: secrets.token_hex(4)),
            resume="allow",
            dir=str(self.folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=self.config.to_dict(),
        )
        # Not their own count of steps, which may not go back when a run goes on from its last checkpoint.
        self._run.define_metric("*", step_metric="step")

    def write(self, kind: str, step: int, values: Row) -> None:
        """Adds a row."""
        self._run.log({"step": step, **numbers(kind, values)})

    def write_picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """Shows a PNG file."""
        self._run.log({"step": step, name: self._image(str(path))})

    def close(self) -> None:
        """Ends it."""
        if self._run is not None:
            self._run.finish()
