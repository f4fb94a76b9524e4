"""The checkpoints of a run: writing, reading and removal; a checkpoint is listed only if it is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.errors import RunError, one_line
from tfdecouple.storage.checkpoint_index import StoredTensor, read_index

Variables = Mapping[str, Any]

# End of the keys that TensorFlow gives variables in a checkpoint.
_KEY_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
# Pattern of the name of the index file of a checkpoint.
_INDEX_NAME = re.compile(r"(?P<kind>step|best)-(?P<step>\d{9})\.index")
# Pattern of the names of all files of checkpoints, including the files that an interrupted write leaves behind.
_FILE_NAMES = re.compile(r"\.?(step|best)-\d{9}(_temp.*|\.data-.*|\.index(\.tempstate.*)?)")


class CheckpointFolder:
    """The `checkpoints/` folder of a run.

    `step-NNNNNNNNN` is the complete state of the training after a step. `best-NNNNNNNNN` holds the weights with the
    best validation bits/dim so far (averaged, if the run averages weights).

    Args:
        path: the folder, which need not exist yet.
        keep: number of `step` checkpoints to keep.
    """

    def __init__(self, path: pathlib.Path, keep: int = 3):
        self.path = path
        self.keep = keep

    def list_checkpoint_steps(self, kind: str = "step") -> list[int]:
        """Returns the training steps of all checkpoints of a kind ("step", "best") in this folder, the newest first."""
        if not self.path.is_dir():
            return []
        matches = (_INDEX_NAME.fullmatch(entry.name) for entry in self.path.iterdir())
        return sorted((int(m["step"]) for m in matches if m and m["kind"] == kind), reverse=True)

    def checkpoint_path(self, kind: str, step: int) -> str:
        """Returns the path that TensorFlow needs for a checkpoint: the common beginning of its files' paths."""
        return str(self.path / f"{kind}-{step:09d}")

    def write_checkpoint(self, kind: str, step: int, groups: Mapping[str, Variables]) -> None:
        """Writes a checkpoint of variables, a dict of dicts by group and name; removes old checkpoints of its kind.

        Of the kind "step" the newest `keep` checkpoints stay; of the kind "best" only the new one stays.

        The files are written under temporary names and renamed when they are complete, the index last. So a checkpoint
        that is listed is complete, even if the program is killed at any moment. RunError is raised if the files cannot
        be written (a full disk, no permission); older checkpoints then stay.
        """
        unfinished = f".{kind}-{step:09d}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Keras' variables are unwrapped, because `tf.train.Checkpoint` accepts TensorFlow's variables only.
            unwrapped = {
                group: {name: v.value if isinstance(v, keras.Variable) else v for name, v in variables.items()}
                for group, variables in groups.items()
            }
            tf.train.Checkpoint(**unwrapped).write(str(self.path / unfinished))
            # TensorFlow's own rename would copy the index, and a kill could leave half of the copy.
            for file in (*self.path.glob(f"{unfinished}.data-*"), self.path / f"{unfinished}.index"):
                file.replace(file.with_name(file.name[1:]))
        except (tf.errors.OpError, OSError) as error:
            self.remove_remains()
            steps = self.list_checkpoint_steps()
            # The folder of an imported or published model, or of codes, has no training to resume.
            resumes = f", the run resumes from step {steps[0]}" if steps else ""
            full = isinstance(error, tf.errors.ResourceExhaustedError)
            code = errno.ENOSPC if full else getattr(error, "errno", None)
            raise RunError(
                f"cannot write the checkpoint {self.checkpoint_path(kind, step)}: "
                f"{os.strerror(code) if code else one_line(error, first=True)}; "
                f"{'free some space and ' if code == errno.ENOSPC else ''}start again{resumes}"
            ) from error
        newest = self.list_checkpoint_steps(kind)[: self.keep] if kind == "step" else []
        for other in self.list_checkpoint_steps(kind):
            # The new checkpoint stays even if an older run in this folder has left checkpoints of later steps.
            if other not in (step, *newest):
                self.remove_checkpoint(kind, other)

    def read_checkpoint(self, kind: str, step: int, groups: Mapping[str, Variables]) -> None:
        """Loads values from a checkpoint into the variables in `groups`, a dict of dicts by group and name.

        Raises:
            DamagedCheckpointError: where files are incomplete or do not match their checksums.
            RunError: where the checkpoint lacks one of the variables.
        """
        prefix = self.checkpoint_path(kind, step)
        targets = {
            f"{group}/{name.replace('.', '..').replace('/', '.S')}{_KEY_SUFFIX}": variable
            for group, variables in groups.items()
            for name, variable in variables.items()
        }
        with _convert_read_errors(prefix):
            stored = read_index(prefix)
            for key, variable in targets.items():
                expected = StoredTensor(tf.as_dtype(variable.dtype), tuple(variable.shape))
                if stored.get(key) != expected:
                    raise RunError(
                        f"the checkpoint {prefix} does not fit the config beside it: {key.removesuffix(_KEY_SUFFIX)} "
                        f"is {expected} by the config, and {stored.get(key, 'missing')} in the checkpoint"
                    )
            reader = tf.train.load_checkpoint(prefix)
            # All values are read once before any is assigned: a damaged file must not change half of the variables.
            for key in targets:
                reader.get_tensor(key)
            for key, variable in targets.items():
                variable.assign(reader.get_tensor(key))

    def read_weight_shapes(self, kind: str, step: int) -> dict[str, tuple[int, ...]]:
        """Returns {name: shape} of a checkpoint's weights; DamagedCheckpointError if index or size is wrong."""
        prefix, group = self.checkpoint_path(kind, step), "model/"
        with _convert_read_errors(prefix):
            stored = read_index(prefix)
        return {
            key.removeprefix(group).removesuffix(_KEY_SUFFIX).replace(".S", "/"): tensor.shape
            for key, tensor in stored.items()
            if key.startswith(group)
        }

    def remove_checkpoint(self, kind: str, step: int) -> None:
        """Removes the files of a checkpoint from this folder, the index first: without it, no checkpoint is listed."""
        prefix = pathlib.Path(self.checkpoint_path(kind, step))
        prefix.with_name(prefix.name + ".index").unlink(missing_ok=True)
        for data in self.path.glob(prefix.name + ".data-*"):
            data.unlink(missing_ok=True)

    def remove_remains(self) -> None:
        """Removes the remains of interrupted writes from this folder: temporary folders, data files without index."""
        complete = {f"{kind}-{step:09d}" for kind in ("step", "best") for step in self.list_checkpoint_steps(kind)}
        for entry in self.path.iterdir() if self.path.is_dir() else ():
            if not _FILE_NAMES.fullmatch(entry.name):
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif not _INDEX_NAME.fullmatch(entry.name) and entry.name.partition(".")[0] not in complete:
                entry.unlink(missing_ok=True)


class DamagedCheckpointError(RunError):
    """Raised when a checkpoint cannot be read because its files are incomplete or corrupted."""


@contextlib.contextmanager
def _convert_read_errors(prefix: str) -> Iterator[None]:
    try:
        yield
    except (tf.errors.OpError, OSError, RuntimeError, LookupError, ValueError) as error:
        raise DamagedCheckpointError(f"the checkpoint {prefix} is damaged ({one_line(error, first=True)})") from error
