import os

import pytest
import tensorflow as tf
from helpers.refusals import message_of
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorflow.core.protobuf import tensor_bundle_pb2

from tfdecouple.errors import RunError
from tfdecouple.storage.checkpoints import CheckpointFolder, DamagedCheckpointError, read_index

KEY = "model/{}/.ATTRIBUTES/VARIABLE_VALUE"
MAGIC = bytes.fromhex("57fb808b247547db")


def varint(value):
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def make_block(pairs, restarts=(0,), compression=0):
    """Returns a block with its type and checksum; `restarts` are the offsets that the block says its keys begin at."""
    entries = b"".join(varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in pairs)
    block = entries + b"".join(number.to_bytes(4, "little") for number in (*restarts, len(restarts)))
    block += bytes([compression])
    return block + masked_crc32c(block).to_bytes(4, "little")


def make_table(*blocks, separators):
    """Returns a table with data `blocks`; the key of each in the index of blocks is one of `separators`."""
    content, handles = b"", []
    for block, separator in zip(blocks, separators, strict=True):
        handles.append((separator, varint(len(content)) + varint(len(block) - 5)))
        content += block
    return end_table(content, handles)


def end_table(content, handles):
    """Returns a table of the data blocks in `content`; `handles` are pairs of a key and the place of a block."""
    index, empty = make_block(handles), make_block([])
    places = varint(len(content)) + varint(len(empty) - 5), varint(len(content + empty)) + varint(len(index) - 5)
    return content + empty + index + b"".join(places).ljust(40, b"\0") + MAGIC


def make_entry(dtype=1, shape=(), size=4, **fields):
    """Returns the entry of a tensor, by default a float32 scalar at the beginning of the data file."""
    entry = tensor_bundle_pb2.BundleEntryProto(dtype=dtype, size=size, **fields)
    for dimension in shape:
        entry.shape.dim.add(size=dimension)
    return entry.SerializeToString()


def make_header(num_shards=1, **fields):
    header = tensor_bundle_pb2.BundleHeaderProto(num_shards=num_shards, **fields)
    header.version.producer = 1
    return header.SerializeToString()


def make_index(entries, header=None):
    """Returns the index of the tensors `entries` by key, in one block."""
    pairs = [(b"", make_header() if header is None else header), *sorted(entries.items())]
    return make_table(make_block(pairs), separators=[b"\xff"])


DATA = bytes(range(64))
A, B, Z = (KEY.format(name).encode() for name in "abz")
GOOD = make_entry(crc32c=masked_crc32c(DATA[:4]))
HEADER = b"", make_header()


@pytest.fixture
def folder(tmp_path):
    """A folder of checkpoints with the data file of step 1, of 64 bytes."""
    (tmp_path / "step-000000001.data-00000-of-00001").write_bytes(DATA)
    return CheckpointFolder(tmp_path)


def write_index(folder, content):
    (folder.path / "step-000000001.index").write_bytes(content)


# Tensors that no checkpoint of a run has; at most some of them can be read by TensorFlow.
TENSORS = {
    "negative dimension": make_entry(shape=[-1]),
    "2^62 x 2^62": make_entry(shape=[2**62, 2**62]),
    "reference": make_entry(dtype=101),
    "unknown type": make_entry(dtype=9999),
    "complex": make_entry(dtype=8, size=8),
    "2^40 strings": make_entry(dtype=7, shape=[2**40], size=64),
    "unknown rank": make_entry() + b"\x12\x02\x18\x01",
    "in parts": make_entry(shape=[2], size=8, slices=[{"extent": [{"start": 0, "length": 1}]}]),
    "too few bytes": make_entry(shape=[3]),
    "too many bytes": make_entry(size=8),
    "before the file": make_entry(offset=-4),
    "after the file": make_entry(offset=61),
    "another data file": make_entry(shard_id=1),
    "no message": b"\xff",
}


def make_block_of(*entries):
    return make_table(make_block([HEADER, *entries]), separators=[b"\xff"])


TABLES = {
    "empty": b"",
    "no table": bytes(100),
    "places beyond the file": bytes([1, 1, 0xFF, 0xFF, 0xFF, 0x7F, 1]).ljust(40, b"\0") + MAGIC,
    "place of more than 32 bits": (b"\xff" * 8 + b"\1\1\1\1").ljust(40, b"\0") + MAGIC,
    "no header": make_table(make_block([(A, GOOD)]), separators=[b"\xff"]),
    "two headers": make_block_of(HEADER, (A, GOOD)),
    "header that is no message": make_index({A: GOOD}, header=b"\xff"),
    "no data files": make_index({A: GOOD}, header=make_header(0)),
    "two data files": make_index({A: GOOD}, header=make_header(2)),
    "big-endian": make_index({A: GOOD}, header=make_header(endianness=1)),
    "compressed": make_table(make_block([HEADER, (A, GOOD)], compression=1), separators=[b"\xff"]),
    "a key twice": make_block_of((A, GOOD), (A, make_entry(shape=[-1]))),
    "key that is no UTF-8": make_block_of((b"\xff", GOOD)),
    "blocks out of order": make_table(
        make_block([HEADER, (B, GOOD)]), make_block([(A, GOOD)]), separators=[B, b"\xff"]
    ),
    "block before its last key": make_table(make_block([HEADER, (A, GOOD)]), separators=[b"a"]),
    "restart inside of an entry": make_table(make_block([HEADER, (A, GOOD)], [0, 3]), separators=[b"\xff"]),
    "more restarts than bytes": make_table(b"\xff\xff\xff\x7f" + bytes(5), separators=[b"\xff"]),
    "block without keys": make_table(make_block([]), separators=[b"\xff"]),
    "entry longer than its block": make_table(b"\0\x7f\0abc" + bytes(4) + b"\1\0\0\0" + bytes(5), separators=[b"x"]),
    "more of a key than there is": make_table(b"\5\1\0abc" + bytes(4) + b"\1\0\0\0" + bytes(5), separators=[b"x"]),
}


class TestIndex:
    @pytest.mark.parametrize("needed", [True, False], ids=["of the model", "that no model needs"])
    @pytest.mark.parametrize("kind", TENSORS)
    def test_index_with_an_impossible_tensor_is_refused_before_tensorflow_reads_it(
        self, folder, kind, needed, monkeypatch
    ):
        monkeypatch.setattr(tf.train, "load_checkpoint", lambda prefix: pytest.fail("TensorFlow opens the index"))
        write_index(folder, make_index({A: TENSORS[kind]} if needed else {A: GOOD, Z: TENSORS[kind]}))
        for read in (
            lambda: folder.read_checkpoint("step", 1, {"model": {"a": tf.Variable(0.0)}}),
            lambda: folder.read_weight_shapes("step", 1),
        ):
            assert "step-000000001 is damaged" in message_of(DamagedCheckpointError, read)

    @pytest.mark.parametrize("kind", TABLES)
    def test_malformed_index_is_refused_before_tensorflow_reads_it(self, folder, kind, monkeypatch):
        monkeypatch.setattr(tf.train, "load_checkpoint", lambda prefix: pytest.fail("TensorFlow opens the index"))
        write_index(folder, TABLES[kind])
        message_of(DamagedCheckpointError, lambda: folder.read_weight_shapes("step", 1))
        groups = {"model": {"a": tf.Variable(0.0)}}
        message_of(DamagedCheckpointError, lambda: folder.read_checkpoint("step", 1, groups))

    def test_index_whose_keys_expand_to_terabytes_is_refused(self, folder):
        # Each of these keys repeats a million bytes of the key before it and adds one: a hundred terabytes in all.
        million = b"k" * 10**6
        more = b"".join(b"\xc0\x84\x3d\1" + bytes([len(GOOD), number]) + GOOD for number in range(1, 200))
        block = make_block([HEADER, (million + b"\0", GOOD)])[: -4 * 2 - 5] + more + bytes(4) + b"\1\0\0\0" + bytes(5)
        write_index(folder, make_table(block, separators=[b"\xff"]))
        assert "too long" in message_of(DamagedCheckpointError, lambda: folder.read_weight_shapes("step", 1))

    def test_index_whose_blocks_overlap_is_refused(self, folder):
        # The second block begins inside the value of the first one, where TensorFlow sees an unknown field.
        inner = varint(0) + varint(len(B)) + varint(len(GOOD)) + B + GOOD
        block = make_block([HEADER, (A, GOOD + b"\x7a" + varint(len(inner)) + inner)])
        place = block.index(inner)
        handles = [(A, varint(0) + varint(len(block) - 5)), (b"\xff", varint(place) + varint(len(block) - 5 - place))]
        write_index(folder, end_table(block, handles))
        assert "overlap" in message_of(DamagedCheckpointError, lambda: folder.read_weight_shapes("step", 1))

    def test_index_of_300_megabytes_is_refused(self, folder):
        write_index(folder, b"")
        os.truncate(folder.path / "step-000000001.index", 300_000_000)
        assert "300,000,000 bytes" in message_of(DamagedCheckpointError, lambda: folder.read_weight_shapes("step", 1))

    def test_tensor_of_another_dtype_than_the_weight_is_refused(self, folder):
        write_index(folder, make_index({A: make_entry(dtype=3)}))
        read = folder.read_checkpoint
        says = message_of(RunError, lambda: read("step", 1, {"model": {"a": tf.Variable(0.0)}}))
        assert "model/a is float32 of shape () by the config, and int32 of shape () in the checkpoint" in says

    def test_only_requested_tensors_of_a_checkpoint_are_read_and_checked(self, folder):
        # The checksum of the second tensor is wrong.
        write_index(folder, make_index({A: GOOD, B: make_entry(offset=4)}))
        a, b = tf.Variable(0.0), tf.Variable(0.0)
        folder.read_checkpoint("step", 1, {"model": {"a": a}})
        assert a.numpy().tobytes() == DATA[:4]
        a.assign(0.0)
        message_of(DamagedCheckpointError, lambda: folder.read_checkpoint("step", 1, {"model": {"a": a, "b": b}}))
        assert (a.numpy(), b.numpy()) == (0, 0)

    def test_index_of_several_blocks_and_data_files_is_read_as_by_tensorflow(self, folder):
        blocks = make_block([(b"", make_header(2)), (A, GOOD)]), make_block([(B, make_entry(shape=[0, 3], size=0))])
        blocks = *blocks, make_block([(Z, make_entry(dtype=9, shape=[2, 2], size=32, shard_id=1, offset=32))])
        write_index(folder, make_table(*blocks, separators=[A, B + b"\0", b"\xff"]))
        for shard in range(2):
            (folder.path / f"step-000000001.data-0000{shard}-of-00002").write_bytes(DATA)
        reader = tf.train.load_checkpoint(folder.checkpoint_path("step", 1))
        types = reader.get_variable_to_dtype_map()
        expected = {key: (types[key], tuple(shape)) for key, shape in reader.get_variable_to_shape_map().items()}
        assert read_index(folder.checkpoint_path("step", 1)) == expected
        assert expected[Z.decode()] == (tf.int64, (2, 2))
