"""Checkpoints of a run: written whole, read back with a fallback, and a few of them kept."""

from __future__ import annotations

import errno
import math
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.errors import RunError, one_line

Variables = Mapping[str, Any]

# What stands around a name of `DecoupledModel.named_variables`, with its slashes escaped, in a checkpoint.
_BEFORE, _AFTER = "model/", "/.ATTRIBUTES/VARIABLE_VALUE"

_NAME = re.compile(r"(?P<kind>step|best)-(?P<step>\d{9})\.index")
# What a write makes on its way, TensorFlow's own temporary names among it. Anything else there is the user's.
_OURS = re.compile(r"\.?(step|best)-\d{9}(_temp.*|\.data-.*|\.index(\.tempstate.*)?)")


class CheckpointFolder:
    """The `checkpoints/` folder of a run.

    `step-NNNNNNNNN` is the whole state of training after so many steps; `best-NNNNNNNNN` holds the weights for use
    (averaged, where the run averages them) with the best validation bits/dim so far.

    Args:
        path: the folder; it need not exist yet.
        keep: how many `step` checkpoints are kept.
    """

    def __init__(self, path: pathlib.Path, keep: int = 3):
        self.path = path
        self.keep = keep

    def steps(self, kind: str = "step") -> list[int]:
        """Returns the steps of the checkpoints of a kind, newest first."""
        if not self.path.is_dir():
            return []
        matches = (_NAME.fullmatch(entry.name) for entry in self.path.iterdir())
        return sorted((int(m["step"]) for m in matches if m and m["kind"] == kind), reverse=True)

    def prefix(self, kind: str, step: int) -> str:
        """Returns the path of a checkpoint, as TensorFlow names it: without the endings of its files."""
        return str(self.path / f"{kind}-{step:09d}")

    def write(self, kind: str, step: int, groups: Mapping[str, Variables]) -> None:
        """Writes a checkpoint, then removes those that are no longer kept: of the best all others.

        It is written under another name and renamed when it is whole, its index last: what is listed can be read,
        whenever the program is killed.

        Args:
            kind: "step" or "best".
            step: the step.
            groups: variables by group and name.

        Raises:
            RunError: where it cannot be written (a full disk, no permission); what was saved before is still there.
        """
        unfinished = f".{kind}-{step:09d}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            _checkpoint(groups).write(str(self.path / unfinished))
            # TensorFlow copies the index to its place piece by piece: killed amid that, it is cut short.
            for file in (*self.path.glob(f"{unfinished}.data-*"), self.path / f"{unfinished}.index"):
                file.replace(file.with_name(file.name[1:]))
        except (tf.errors.OpError, OSError) as error:
            self._remove_remains()
            full = isinstance(error, tf.errors.ResourceExhaustedError)
            code = errno.ENOSPC if full else getattr(error, "errno", None)
            raise RunError(
                f"cannot write the checkpoint {self.prefix(kind, step)}: "
                f"{os.strerror(code) if code else one_line(error, first=True)}; "
                f"{'free some space and ' if code == errno.ENOSPC else ''}start again, the run goes on from "
                f"{self._newest_name()}"
            ) from error
        newest = self.steps(kind)[: self.keep] if kind == "step" else []
        for other in self.steps(kind):
            # One that is newer may be left of a run that got further.
            if other not in (step, *newest):
                self.remove(kind, other)

    def read(self, kind: str, step: int, groups: Mapping[str, Variables]) -> None:
        """Reads variables from a checkpoint.

        Raises:
            DamagedCheckpointError: where its files are cut short or do not match their checksums.
            RunError: where it does not hold these variables.
        """
        # First everything is read and thrown away: a damaged file must not leave half of its values behind.
        self._check_whole(kind, step)
        prefix = self.prefix(kind, step)
        try:
            status = _checkpoint(groups).read(prefix)
            status.assert_existing_objects_matched()
            status.expect_partial()
        except (ValueError, AssertionError, tf.errors.OpError) as error:
            raise RunError(
                f"the checkpoint {prefix} does not fit the config beside it: {one_line(error, first=True)}"
            ) from error

    def weights(self, kind: str, step: int) -> dict[str, tuple[int, ...]]:
        """Returns the weights of the model that a checkpoint says that it holds, as `{name: shape}`; reads none.

        Raises:
            DamagedCheckpointError: where it cannot be read, or speaks of more bytes than its files have.
        """
        prefix = self.prefix(kind, step)
        weights = {}
        try:
            reader = tf.train.load_checkpoint(prefix)
            types = reader.get_variable_to_dtype_map()
            claimed = 0
            for name, shape in reader.get_variable_to_shape_map().items():
                claimed += math.prod(shape) * types[name].size
                if name.startswith(_BEFORE):
                    weights[name.removeprefix(_BEFORE).removesuffix(_AFTER).replace(".S", "/")] = tuple(shape)
            held = sum(data.stat().st_size for data in self.path.glob(f"{kind}-{step:09d}.data-*"))
        except (tf.errors.OpError, OSError, RuntimeError, LookupError, ValueError) as error:
            raise DamagedCheckpointError(
                f"the checkpoint {prefix} is damaged ({one_line(error, first=True)})"
            ) from error
        if claimed > held:
            raise DamagedCheckpointError(
                f"the checkpoint {prefix} is damaged (its weights would be {claimed:,} bytes, its files have {held:,})"
            )
        return weights

    def remove(self, kind: str, step: int) -> None:
        """Removes a checkpoint; its index goes first, so that it is never half there."""
        prefix = pathlib.Path(self.prefix(kind, step))
        prefix.with_name(prefix.name + ".index").unlink(missing_ok=True)
        for data in self.path.glob(prefix.name + ".data-*"):
            data.unlink(missing_ok=True)

    def _check_whole(self, kind: str, step: int) -> None:
        prefix = self.prefix(kind, step)
        try:
            reader = tf.train.load_checkpoint(prefix)
            for name in reader.get_variable_to_shape_map():
                reader.get_tensor(name)
        except (tf.errors.OpError, OSError, RuntimeError, LookupError, ValueError) as error:
            raise DamagedCheckpointError(
                f"the checkpoint {prefix} is damaged ({one_line(error, first=True)})"
            ) from error

    def _newest_name(self) -> str:
        steps = self.steps()
        return f"step {steps[0]}" if steps else "its beginning"

    def _remove_remains(self) -> None:
        """Removes what an interrupted write left behind: temporary folders, and data without an index."""
        whole = {f"{kind}-{step:09d}" for kind in ("step", "best") for step in self.steps(kind)}
        for entry in self.path.iterdir() if self.path.is_dir() else ():
            if not _OURS.fullmatch(entry.name):
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif not _NAME.fullmatch(entry.name) and entry.name.partition(".")[0] not in whole:
                entry.unlink(missing_ok=True)

    def clean(self) -> None:
        """Removes what an interrupted write of an earlier program left behind."""
        self._remove_remains()


class DamagedCheckpointError(RunError):
    """A checkpoint whose files are cut short or corrupted."""


def _checkpoint(groups: Mapping[str, Variables]) -> tf.train.Checkpoint:
    return tf.train.Checkpoint(
        **{group: {name: _trackable(v) for name, v in variables.items()} for group, variables in groups.items()}
    )


def _trackable(variable: Any) -> tf.Variable:
    """Returns the TensorFlow variable behind a Keras one, which `tf.train.Checkpoint` does not see."""
    return variable.value if isinstance(variable, keras.Variable) else variable
