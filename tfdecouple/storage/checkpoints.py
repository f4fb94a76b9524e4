"""The checkpoints of a run: writing, reading and removal; a checkpoint is listed only if it is complete.

A checkpoint may be untrusted, and TensorFlow would end the process if its index is malformed, so `read_index` reads the
index first. The index is a table of LevelDB: blocks of keys in ascending order with their values, then a block with the
last key and the place of each block, then 48 bytes with the place of this block. A key begins with as many bytes of the
key before it as the table says, except at the restarts of a block, where a search can begin. The first value is the
header; the others say type, shape and place of one tensor each.
"""

import contextlib
import errno
import math
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import keras
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto

from tfdecouple.errors import RunError, one_line
from tfdecouple.storage.files import convert_tensorflow_errors, read_bytes

Variables = Mapping[str, tf.Variable]

# End of the keys that TensorFlow gives variables in a checkpoint.
_KEY_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
# Pattern of the name of the index file of a checkpoint.
_INDEX_NAME = re.compile(r"(?P<kind>step|best)-(?P<step>\d{9})\.index")
# Pattern of the names of all files of checkpoints, including the files that an interrupted write leaves behind.
_FILE_NAMES = re.compile(r"\.?(step|best)-\d{9}(_temp.*|\.data-.*|\.index(\.tempstate.*)?)")
# Most bytes of an index, and of all its keys together. A key can repeat the beginning of the previous key, so the keys
# can exceed the file.
_MOST_BYTES, _MOST_KEY_BYTES = 2**24, 2**26
_MAGIC = bytes.fromhex("57fb808b247547db")
# The types of the tensors in a checkpoint of this project. A string has at least one byte in the file.
_TYPES = {dtype.as_datatype_enum: dtype for dtype in (tf.float32, tf.float64, tf.int32, tf.int64, tf.bool, tf.string)}


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
        matches = (_INDEX_NAME.fullmatch(entry.name) for entry in self.path.iterdir())
        return sorted((int(m["step"]) for m in matches if m and m["kind"] == kind), reverse=True)

    def checkpoint_path(self, kind: str, step: int) -> str:
        """Returns the path that TensorFlow needs for a checkpoint: the common beginning of its files' paths."""
        return str(self.path / f"{kind}-{step:09d}")

    def write_checkpoint(self, kind: str, step: int, groups: Mapping[str, Variables]) -> None:
        """Writes a checkpoint of variables, a dict of dicts by group and name; removes old checkpoints of its kind.

        The newest `keep` checkpoints of kind "step" stay, and only the new one of kind "best". The files are written
        under temporary names and renamed when they are complete, the index last. So a checkpoint that is listed
        is complete, even if the program is killed at any moment. RunError is raised if the files cannot be written (a
        full disk, no permission); older checkpoints then stay.
        """
        unfinished = f".{kind}-{step:09d}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Keras' variables are unwrapped, because `tf.train.Checkpoint` accepts TensorFlow's variables only.
            unwrapped = {
                group: {name: v.value if isinstance(v, keras.Variable) else v for name, v in variables.items()}
                for group, variables in groups.items()
            }
            with convert_tensorflow_errors():
                tf.train.Checkpoint(**unwrapped).write(str(self.path / unfinished))
            # TensorFlow's own rename would copy the index, and a kill could leave half of the copy.
            for file in (*self.path.glob(f"{unfinished}.data-*"), self.path / f"{unfinished}.index"):
                file.replace(file.with_name(file.name[1:]))
        except OSError as error:
            self.remove_remains()
            steps = self.list_checkpoint_steps()
            # The folder of an imported or published model, or of codes, has no training to resume.
            resumes = f", the run resumes from step {steps[0]}" if steps else ""
            remedy = f"{'free some space and ' if error.errno == errno.ENOSPC else ''}start again{resumes}"
            path = self.checkpoint_path(kind, step)
            raise RunError(f"cannot write the checkpoint {path}: {error.strerror or error}; {remedy}") from error
        for other in self.list_checkpoint_steps(kind)[self.keep if kind == "step" else 0 :]:
            # The new checkpoint stays even if an older run in this folder has left checkpoints of later steps.
            if other != step:
                self.remove_checkpoint(kind, other)

    def read_checkpoint(self, kind: str, step: int, groups: Mapping[str, Variables]) -> None:
        """Loads values from a checkpoint into the variables in `groups`, a dict of dicts by group and name.

        RunError is raised if the checkpoint lacks one of the variables, and DamagedCheckpointError if files are
        incomplete or do not match their checksums.
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


class StoredTensor(NamedTuple):
    """The type and the shape of a tensor in a checkpoint."""

    dtype: tf.DType
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype.name} of shape {self.shape}"


def read_index(prefix: str) -> dict[str, StoredTensor]:
    """Returns type and shape of each tensor in the checkpoint `prefix`, a dict by the tensor's key.

    OSError is raised if a file is missing; ValueError or LookupError if the index is damaged, or a tensor in it has
    a type that no run has, is stored in parts, or does not fit into the data files.
    """
    table = _read_table(read_bytes(pathlib.Path(f"{prefix}.index"), _MOST_BYTES))
    try:
        key, value = next(table)
        header = BundleHeaderProto.FromString(value)
        count = header.num_shards
        if key or count < 1 or header.endianness != BundleHeaderProto.LITTLE:
            raise ValueError(f"its index names {count} data files, in byte order {header.endianness}")
        files = [os.path.getsize(f"{prefix}.data-{shard:05d}-of-{count:05d}") for shard in range(count)]
        entries = ((key.decode(), BundleEntryProto.FromString(value)) for key, value in table)
        return {key: _check_entry(key, entry, files) for key, entry in entries}
    except DecodeError as error:
        raise ValueError(f"its index cannot be decoded: {error}") from error


def _check_entry(key: str, entry: BundleEntryProto, files: list[int]) -> StoredTensor:
    shape, dtype = tuple(dimension.size for dimension in entry.shape.dim), _TYPES.get(entry.dtype)
    shard = entry.shard_id
    stored = files[shard] if 0 <= shard < len(files) else 0
    if (
        dtype is None
        or entry.slices
        or entry.shape.unknown_rank
        or len(shape) > 8
        or min(shape, default=0) < 0
        # TensorFlow multiplies the dimensions one after another, so that a zero among them may come too late.
        or math.prod(filter(None, shape)) > max(stored, 1)
        or not 0 <= entry.offset <= entry.offset + entry.size <= stored
        or (math.prod(shape) > entry.size if dtype == tf.string else math.prod(shape) * dtype.size != entry.size)
    ):
        name = dtype.name if dtype else f"the unknown type {entry.dtype}"
        raise ValueError(
            f"{key[:100]!r} of {name} and shape {shape[:8]} has {entry.size:,} bytes at {entry.offset:,} of "
            f"data file {shard}, which has {stored:,} bytes"
        )
    return StoredTensor(dtype, shape)


def _read_table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(content) < 48 or content[-8:] != _MAGIC:
        raise ValueError("its index is no table")
    start, _ = _read_numbers(content, len(content) - 48, 4)
    last: bytes | None = None
    length = end = 0
    for limit, handle in _read_block(content, *start[2:]):
        (place, size), _ = _read_numbers(handle, 0, 2)
        # Bytes that many blocks share would be read for each of them.
        if place < end:
            raise ValueError("the blocks of its index overlap")
        end = place + size
        for key, value in _read_block(content, place, size):
            length += len(key)
            if (last is not None and key <= last) or key > limit or length > _MOST_KEY_BYTES:
                raise ValueError("the keys of its index are not in order, or too long")
            yield key, value
            last = key
        last = limit


def _read_block(content: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields (key, value) of each entry in a block of a table; raises ValueError or LookupError if it is damaged."""
    if content[start + size]:
        raise ValueError("its index is compressed")
    block, key, begins = content[start : start + size], b"", set()
    end = size - 4 * (int.from_bytes(block[-4:], "little") + 1)
    if end < 0:
        raise ValueError("a block of its index has more restarts than bytes")
    restarts = [int.from_bytes(block[place : place + 4], "little") for place in range(end, size - 4, 4)]
    place = 0
    while place < end:
        (shared, fresh, length), begin = _read_numbers(block, place, 3)
        if not shared:
            begins.add(place)
        place = begin + fresh + length
        if shared > len(key) or place > end:
            raise ValueError("an entry of its index is longer than its block")
        key = key[:shared] + block[begin : begin + fresh]
        yield key, block[begin + fresh : place]
    # TensorFlow does a binary search over the block's restart points (entries with a complete key). With wrong restart
    # points it would read other entries than this loop.
    if restarts[:1] != [0] or restarts != sorted(restarts) or not begins.issuperset(restarts):
        raise ValueError("a block of its index has wrong restarts")


def _read_numbers(content: bytes, place: int, count: int) -> tuple[list[int], int]:
    """Returns `count` integers of 7 bits a byte, the least significant first, and the position after them."""
    numbers = []
    for _ in range(count):
        number = shift = 0
        while content[place] & 128:
            number |= (content[place] & 127) << shift
            place, shift = place + 1, shift + 7
            if shift > 28:
                raise ValueError("a number of its index has more than 32 bits")
        numbers.append(number | content[place] << shift)
        place += 1
    return numbers, place
