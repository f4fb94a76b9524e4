"""A reader of the index of an untrusted checkpoint, for which TensorFlow would end the process if it is malformed.

The index is a table of LevelDB: blocks of keys in ascending order with their values, then a block with the last key and
the place of each block, then 48 bytes with the place of this block. A key begins with as many bytes of the key before
it as the table says, except at the restarts of a block, where a search can begin. The first value is the header; the
others say type, shape and place of one tensor each.
"""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto

from tfdecouple.storage.files import read_bytes

_MOST_BYTES = 2**24
# Bytes of all keys together. A key can repeat the beginning of the previous key, so the keys can exceed the file.
_MOST_KEY_BYTES = 2**26
_MAGIC = bytes.fromhex("57fb808b247547db")
# The types of the tensors in a checkpoint of this project. A string has at least one byte in the file.
_TYPES = {dtype.as_datatype_enum: dtype for dtype in (tf.float32, tf.float64, tf.int32, tf.int64, tf.bool, tf.string)}


class StoredTensor(NamedTuple):
    """The type and the shape of a tensor in a checkpoint."""

    dtype: tf.DType
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype.name} of shape {self.shape}"


def read_index(prefix: str) -> dict[str, StoredTensor]:
    """Returns type and shape of each tensor in the checkpoint `prefix`, a dict by the tensor's key.

    OSError is raised if a file is missing; ValueError or LookupError if the index is damaged, or names a tensor of a
    type that no run has, of parts, or of another size than its place in the data files.
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
    length = 0
    for limit, handle in _read_block(content, *start[2:]):
        place, _ = _read_numbers(handle, 0, 2)
        for key, value in _read_block(content, *place):
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
    # TensorFlow searches from the restarts, and would find other entries if they were elsewhere.
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
