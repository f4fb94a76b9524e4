"""A writer of TensorFlow checkpoint indices, which can say what TensorFlow would never write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tensorflow.core.protobuf import tensor_bundle_pb2

KEY = "model/{}/.ATTRIBUTES/VARIABLE_VALUE"
MAGIC = bytes.fromhex("57fb808b247547db")


def _make_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _make_table()


def mask_crc(content: bytes) -> bytes:
    """Returns the masked CRC-32C of `content` as LevelDB stores it, four bytes."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def varint(value: int) -> bytes:
    """Returns an unsigned integer in seven bits a byte, the least significant first."""
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def make_block(pairs: Iterable[tuple[bytes, bytes]], restarts: Sequence[int] = (0,), compression: int = 0) -> bytes:
    """Returns a block with its type and checksum; `restarts` are the offsets that the block says its keys begin at."""
    entries = b"".join(varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in pairs)
    block = entries + b"".join(number.to_bytes(4, "little") for number in (*restarts, len(restarts)))
    block += bytes([compression])
    return block + mask_crc(block)


def make_table(*blocks: bytes, separators: Sequence[bytes]) -> bytes:
    """Returns a table with data `blocks`; the key of each in the index of blocks is one of `separators`."""
    content, handles = b"", []
    for block, separator in zip(blocks, separators, strict=True):
        handles.append((separator, varint(len(content)) + varint(len(block) - 5)))
        content += block
    index, empty = make_block(handles), make_block([])
    places = varint(len(content)) + varint(len(empty) - 5), varint(len(content + empty)) + varint(len(index) - 5)
    return content + empty + index + b"".join(places).ljust(40, b"\0") + MAGIC


def make_entry(dtype: int = 1, shape: Sequence[int] = (), size: int = 4, **fields) -> bytes:
    """Returns the entry of a tensor, by default a float32 scalar at the beginning of the data file."""
    entry = tensor_bundle_pb2.BundleEntryProto(dtype=dtype, size=size, **fields)
    for dimension in shape:
        entry.shape.dim.add(size=dimension)
    return entry.SerializeToString()


def make_header(num_shards: int = 1, **fields) -> bytes:
    """Returns the header of an index, by default of a checkpoint with one data file."""
    header = tensor_bundle_pb2.BundleHeaderProto(num_shards=num_shards, **fields)
    header.version.producer = 1
    return header.SerializeToString()


def make_index(entries: Mapping[bytes, bytes], header: bytes | None = None) -> bytes:
    """Returns the index of the tensors `entries` by key, in one block."""
    pairs = [(b"", make_header() if header is None else header), *sorted(entries.items())]
    return make_table(make_block(pairs), separators=[b"\xff"])
