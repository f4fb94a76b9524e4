"""The checkpoints of a run: writing, reading and removal; a checkpoint is one file, written completely or not at all.

The file has the format safetensors, which PyTorch and other programs read, too: a header in JSON with name, type, shape
and place of each tensor, and then the values. A tensor is named GROUP/NAME, and the metadata in the header have the
CRC-32 of all values. A file may be untrusted: the library safetensors runs no code of it, and refuses a header whose
places do not fill the file.
"""

import contextlib
import errno
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tfdecouple.errors import RunError, one_line
from tfdecouple.storage.files import get_regular_size, write_bytes

Variables = Mapping[str, tf.Variable]

_FILE_NAME = re.compile(r"(?P<kind>step|best)-(?P<step>\d{9})\.safetensors", re.ASCII)
# Name in the metadata of the CRC-32 of all values, in the order of the tensors' names.
_CHECKSUM = "crc32"


class CheckpointFolder:
    """The `checkpoints/` folder of a run, at `path`, which need not exist yet; it keeps `keep` checkpoints of steps.

    `step-NNNNNNNNN` is the complete state of the training after a step. `best-NNNNNNNNN` holds the weights with the
    best validation bits/dim so far (averaged, if the run averages weights).
    """

    def __init__(self, path: pathlib.Path, keep: int = 3):
        self.path = path
        self.keep = keep

    def list_checkpoint_steps(self, kind: str = "step") -> list[int]:
        """Returns the training steps of all checkpoints of a kind ("step", "best") in this folder, the newest first."""
        if not self.path.is_dir():
            return []
        matches = (_FILE_NAME.fullmatch(entry.name) for entry in self.path.iterdir())
        return sorted((int(m["step"]) for m in matches if m and m["kind"] == kind), reverse=True)

    def checkpoint_path(self, kind: str, step: int) -> pathlib.Path:
        """Returns the path of the checkpoint's file."""
        return self.path / f"{kind}-{step:09d}.safetensors"

    def write_checkpoint(self, kind: str, step: int, groups: Mapping[str, Variables]) -> None:
        """Writes a checkpoint of variables, a dict of dicts by group and name; removes old checkpoints of its kind.

        The newest `keep` checkpoints of kind "step" stay, and only the new one of kind "best". RunError is raised if
        the file cannot be written (a full disk, no permission); older checkpoints then stay.
        """
        path = self.checkpoint_path(kind, step)
        values: dict[str, np.ndarray] = {}
        for group, variables in groups.items():
            values |= {f"{group}/{name}": np.asarray(variable.numpy()) for name, variable in variables.items()}
        checksum = 0
        for name in sorted(values):
            checksum = zlib.crc32(values[name].data, checksum)
        try:
            write_bytes(path, save(values, {_CHECKSUM: f"{checksum:08x}"}))
        except OSError as error:
            steps = self.list_checkpoint_steps()
            # The folder of an imported or published model, or of codes, has no training to resume.
            resumes = f", the run resumes from step {steps[0]}" if steps else ""
            remedy = f"{'free some space and ' if error.errno == errno.ENOSPC else ''}start again{resumes}"
            raise RunError(f"cannot write the checkpoint {path}: {error.strerror or error}; {remedy}") from error
        for other in self.list_checkpoint_steps(kind)[self.keep if kind == "step" else 0 :]:
            # The new checkpoint stays even if an older run in this folder has left checkpoints of later steps.
            if other != step:
                self.checkpoint_path(kind, other).unlink(missing_ok=True)

    def read_checkpoint(self, kind: str, step: int, groups: Mapping[str, Variables]) -> None:
        """Loads values from a checkpoint into the variables in `groups`, a dict of dicts by group and name.

        RunError is raised if the checkpoint lacks one of the variables, and DamagedCheckpointError if the file is
        incomplete or does not match its checksum. Then no variable has changed.
        """
        path = self.checkpoint_path(kind, step)
        targets = {f"{group}/{name}": v for group, variables in groups.items() for name, v in variables.items()}
        values, checksum = {}, 0
        with _open_checkpoint(path) as file:
            for name in sorted(file.keys()):
                value = file.get_tensor(name)
                checksum = zlib.crc32(value, checksum)
                if name in targets:
                    values[name] = value
            if (file.metadata() or {}).get(_CHECKSUM) != f"{checksum:08x}":
                raise ValueError("its values do not match their checksum")
        for name, variable in targets.items():
            expected, held = _describe_array(variable), _describe_array(values[name]) if name in values else "missing"
            if held != expected:
                raise RunError(
                    f"the checkpoint {path} does not fit the config beside it: {name} is {expected} by the config, and "
                    f"{held} in the checkpoint"
                )
        for name, variable in targets.items():
            variable.assign(values[name])

    def read_weight_shapes(self, kind: str, step: int) -> dict[str, tuple[int, ...]]:
        """Returns {name: shape} of a checkpoint's weights; DamagedCheckpointError if header or size is wrong."""
        with _open_checkpoint(self.checkpoint_path(kind, step)) as file:
            names = [name for name in sorted(file.keys()) if name.startswith("model/")]
            return {name.removeprefix("model/"): tuple(file.get_slice(name).get_shape()) for name in names}


class DamagedCheckpointError(RunError):
    """Raised when a checkpoint cannot be read because its file is incomplete or corrupted."""


@contextlib.contextmanager
def _open_checkpoint(path: pathlib.Path) -> Iterator[Any]:
    try:
        get_regular_size(path)
        with safe_open(path, "np") as file:
            yield file
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise DamagedCheckpointError(f"the checkpoint {path} is damaged ({one_line(error, first=True)})") from error


def _describe_array(array: Any) -> str:
    return f"{tf.as_dtype(array.dtype).name} of shape {tuple(array.shape)}"
