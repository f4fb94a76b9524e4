import math
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers.refusals import message_of
from helpers.runs import read_checkpoint
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorflow.core.protobuf import tensor_bundle_pb2

import tfdecouple
from tfdecouple.errors import RunError
from tfdecouple.storage.checkpoints import CheckpointFolder, DamagedCheckpointError, read_index
from tfdecouple.storage.files import parse_json, write_bytes, write_json


def variables(value):
    return {"model": {"a/b": tf.Variable(np.full(300, value, np.float32)), "c": tf.Variable(np.int64(value))}}


def values(groups):
    return [variable.numpy().tolist() for variable in groups["model"].values()]


@pytest.fixture
def folder(tmp_path):
    """A folder with the checkpoints of steps 1 and 2, which hold ones and twos."""
    folder = CheckpointFolder(tmp_path / "checkpoints")
    for step in (1, 2):
        folder.write_checkpoint("step", step, variables(step))
    return folder


def flip_every_byte_of_the_middle(path):
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, len(content) // 2):
        content[place] ^= 0xFF
    path.write_bytes(content)


# {damage: (end of the file's name, function of its path)}.
DAMAGE = {
    "data cut short": (".data-00000-of-00001", lambda path: os.truncate(path, path.stat().st_size // 2)),
    "data missing": (".data-00000-of-00001", pathlib.Path.unlink),
    "data changed": (".data-00000-of-00001", flip_every_byte_of_the_middle),
    "index empty": (".index", lambda path: os.truncate(path, 0)),
    "index changed": (".index", flip_every_byte_of_the_middle),
}


class TestCheckpointFolder:
    def test_folder_keeps_the_last_checkpoints_and_one_best_which_are_read_as_written(self, tmp_path):
        folder = CheckpointFolder(tmp_path, keep=2)
        for step in range(5):
            folder.write_checkpoint("step", step, variables(step))
            folder.write_checkpoint("best", step, variables(step))
        assert (folder.list_checkpoint_steps(), folder.list_checkpoint_steps("best")) == ([4, 3], [4])
        assert len(list(tmp_path.iterdir())) == 2 * 3
        for kind, step in (("step", 3), ("step", 4), ("best", 4)):
            groups = variables(0)
            folder.read_checkpoint(kind, step, groups)
            assert values(groups) == values(variables(step))

    @pytest.mark.parametrize("kind", DAMAGE)
    def test_damaged_checkpoint_is_refused_and_changes_no_variable(self, folder, kind):
        ending, damage = DAMAGE[kind]
        damage(pathlib.Path(folder.checkpoint_path("step", 2) + ending))
        groups = variables(7)
        message = message_of(DamagedCheckpointError, lambda: folder.read_checkpoint("step", 2, groups))
        assert "step-000000002 is damaged" in message
        assert values(groups) == values(variables(7))

    def test_remove_remains_deletes_only_files_of_interrupted_writes(self, folder):
        # Files of the user stay.
        (folder.path / "backup").mkdir()
        (folder.path / "backup" / "step-000000001.index").touch()
        for name in ("notes.txt", ".hidden", "step-5.index", "step-000000003", "best-000000003.index.txt"):
            (folder.path / name).touch()
        whole = sorted(folder.path.rglob("*"))
        for unfinished in (folder.path / "step-000000003_temp", folder.path / ".best-000000003_temp"):
            unfinished.mkdir()
            (unfinished / "part-00000-of-00001.data-00000-of-00001").write_bytes(b"half")
        (folder.path / "step-000000003.data-00000-of-00001").write_bytes(b"whole, but without an index")
        (folder.path / ".step-000000003.index").touch()
        (folder.path / ".step-000000003.index.tempstate123").touch()
        folder.remove_remains()
        assert sorted(folder.path.rglob("*")) == whole

    def test_checkpoint_of_a_killed_write_is_not_listed(self, folder, monkeypatch):
        def replace(self, target):
            raise KeyboardInterrupt

        whole = sorted(folder.path.iterdir())
        monkeypatch.setattr(pathlib.Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            folder.write_checkpoint("step", 3, variables(3))
        assert folder.list_checkpoint_steps() == [2, 1]
        assert len(list(folder.path.iterdir())) > len(whole)
        folder.remove_remains()
        assert sorted(folder.path.iterdir()) == whole

    def test_failed_write_of_a_checkpoint_gives_one_error_line_and_keeps_the_others(self, folder):
        whole = sorted(folder.path.iterdir())
        # A folder stands where the file must go.
        (folder.path / "step-000000003.data-00000-of-00001" / "inside").mkdir(parents=True)
        message = message_of(RunError, lambda: folder.write_checkpoint("step", 3, variables(3)))
        assert "cannot write the checkpoint" in message and "the run resumes from step 2" in message
        assert sorted(folder.path.iterdir()) == whole


class TestLoadModel:
    @pytest.mark.parametrize("spoil", [pathlib.Path.unlink, lambda file: os.truncate(file, 9)])
    def test_model_loads_averages_of_the_last_step_if_the_best_checkpoint_is_unreadable(
        self, finished_run, tmp_path, spoil
    ):
        run = shutil.copytree(finished_run, tmp_path / "run")
        for path in (run / "checkpoints").glob("best-*"):
            spoil(path)
        newest = read_checkpoint(run, "step-000000010")
        for name, variable in tfdecouple.load_model(run).named_variables().items():
            key = f"{name.replace('.', '..').replace('/', '.S')}/.ATTRIBUTES/VARIABLE_VALUE"
            average = newest.get(f"averages/{key}", newest[f"model/{key}"])
            np.testing.assert_array_equal(variable, average, err_msg=name)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda run: (run / "config.json").unlink(), "is no run folder: it has no config.json"),
            (lambda run: [os.truncate(f, 9) for f in (run / "checkpoints").glob("*.data*")], "is damaged"),
        ],
    )
    def test_run_that_cannot_be_opened_is_refused_in_one_line(self, finished_run, tmp_path, spoil, message):
        run = shutil.copytree(finished_run, tmp_path / "run")
        spoil(run)
        assert message in message_of(RunError, lambda: tfdecouple.load_model(run))


class TestWriting:
    def test_json_files_have_null_for_numbers_that_are_not_finite(self, tmp_path):
        write_json(tmp_path / "file.json", {"a": [math.nan, 1.5], "b": {"c": math.inf, "d": (-math.inf, 2)}})
        assert parse_json((tmp_path / "file.json").read_bytes()) == {"a": [None, 1.5], "b": {"c": None, "d": [None, 2]}}

    @pytest.mark.parametrize("moment", ["open", "fsync", "replace"])
    def test_failed_write_leaves_only_the_old_file(self, moment, monkeypatch, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"old")

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        place = {"open": (pathlib.Path, "write_bytes"), "fsync": (os, "fsync"), "replace": (pathlib.Path, "replace")}
        with monkeypatch.context() as patch:
            patch.setattr(*place[moment], full)
            with pytest.raises(OSError, match="No space"):
                write_bytes(path, b"new")
        assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


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


def make_index(*entries, header=None, **options):
    """Returns an index of one block, which has a header and then the tensors `entries`, pairs of a key and an entry."""
    block = make_block([(b"", make_header() if header is None else header), *entries], **options)
    return make_table(block, separators=[b"\xff"])


DATA = bytes(range(64))
A, B, Z = (KEY.format(name).encode() for name in "abz")
GOOD = make_entry(crc32c=masked_crc32c(DATA[:4]))
HEADER = b"", make_header()


@pytest.fixture
def indexed(tmp_path):
    """A folder of checkpoints that has one file, of 64 bytes: the data of the checkpoint of step 1."""
    (tmp_path / "step-000000001.data-00000-of-00001").write_bytes(DATA)
    return CheckpointFolder(tmp_path)


def write_index(indexed, content):
    (indexed.path / "step-000000001.index").write_bytes(content)


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


def make_index_that_expands():
    """Returns an index in which each key repeats a million bytes of the key before it: a hundred terabytes in all."""
    more = b"".join(b"\xc0\x84\x3d\1" + bytes([len(GOOD), number]) + GOOD for number in range(1, 200))
    block = make_block([HEADER, (b"k" * 10**6 + b"\0", GOOD)])[: -4 * 2 - 5]
    return make_table(block + more + bytes(4) + b"\1\0\0\0" + bytes(5), separators=[b"\xff"])


def make_overlapping_blocks():
    """Returns an index whose second block begins inside a value of the first, where TensorFlow ignores the field."""
    inner = varint(0) + varint(len(B)) + varint(len(GOOD)) + B + GOOD
    block = make_block([HEADER, (A, GOOD + b"\x7a" + varint(len(inner)) + inner)])
    place = block.index(inner)
    handles = [(A, varint(0) + varint(len(block) - 5)), (b"\xff", varint(place) + varint(len(block) - 5 - place))]
    return end_table(block, handles)


TABLES = {
    "empty": b"",
    "no table": bytes(100),
    "places beyond the file": bytes([1, 1, 0xFF, 0xFF, 0xFF, 0x7F, 1]).ljust(40, b"\0") + MAGIC,
    "place of more than 32 bits": (b"\xff" * 8 + b"\1\1\1\1").ljust(40, b"\0") + MAGIC,
    "no header": make_table(make_block([(A, GOOD)]), separators=[b"\xff"]),
    "two headers": make_index(HEADER, (A, GOOD)),
    "header that is no message": make_index((A, GOOD), header=b"\xff"),
    "no data files": make_index((A, GOOD), header=make_header(0)),
    "two data files": make_index((A, GOOD), header=make_header(2)),
    "big-endian": make_index((A, GOOD), header=make_header(endianness=1)),
    "compressed": make_index((A, GOOD), compression=1),
    "a key twice": make_index((A, GOOD), (A, make_entry(shape=[-1]))),
    "key that is no UTF-8": make_index((b"\xff", GOOD)),
    "blocks out of order": make_table(
        make_block([HEADER, (B, GOOD)]), make_block([(A, GOOD)]), separators=[B, b"\xff"]
    ),
    "block before its last key": make_table(make_block([HEADER, (A, GOOD)]), separators=[b"a"]),
    "restart inside of an entry": make_index((A, GOOD), restarts=(0, 3)),
    "keys too long": make_index_that_expands(),
    "blocks overlap": make_overlapping_blocks(),
    "more restarts than bytes": make_table(b"\xff\xff\xff\x7f" + bytes(5), separators=[b"\xff"]),
    "block without keys": make_table(make_block([]), separators=[b"\xff"]),
    "entry longer than its block": make_table(b"\0\x7f\0abc" + bytes(4) + b"\1\0\0\0" + bytes(5), separators=[b"x"]),
    "more of a key than there is": make_table(b"\5\1\0abc" + bytes(4) + b"\1\0\0\0" + bytes(5), separators=[b"x"]),
}


class TestIndex:
    @pytest.mark.parametrize("needed", [True, False], ids=["of the model", "that no model needs"])
    @pytest.mark.parametrize("kind", TENSORS)
    def test_index_with_an_impossible_tensor_is_refused_before_tensorflow_reads_it(
        self, indexed, kind, needed, monkeypatch
    ):
        monkeypatch.setattr(tf.train, "load_checkpoint", lambda prefix: pytest.fail("TensorFlow opens the index"))
        write_index(indexed, make_index((A, TENSORS[kind])) if needed else make_index((A, GOOD), (Z, TENSORS[kind])))
        for read in (
            lambda: indexed.read_checkpoint("step", 1, {"model": {"a": tf.Variable(0.0)}}),
            lambda: indexed.read_weight_shapes("step", 1),
        ):
            assert "step-000000001 is damaged" in message_of(DamagedCheckpointError, read)

    @pytest.mark.parametrize("kind", TABLES)
    def test_malformed_index_is_refused_before_tensorflow_reads_it(self, indexed, kind, monkeypatch):
        monkeypatch.setattr(tf.train, "load_checkpoint", lambda prefix: pytest.fail("TensorFlow opens the index"))
        write_index(indexed, TABLES[kind])
        message = message_of(DamagedCheckpointError, lambda: indexed.read_weight_shapes("step", 1))
        assert {"keys too long": "too long", "blocks overlap": "overlap"}.get(kind, "damaged") in message
        groups = {"model": {"a": tf.Variable(0.0)}}
        message_of(DamagedCheckpointError, lambda: indexed.read_checkpoint("step", 1, groups))

    def test_index_of_300_megabytes_is_refused(self, indexed):
        write_index(indexed, b"")
        os.truncate(indexed.path / "step-000000001.index", 300_000_000)
        assert "300,000,000 bytes" in message_of(DamagedCheckpointError, lambda: indexed.read_weight_shapes("step", 1))

    def test_tensor_of_another_dtype_than_the_weight_is_refused(self, indexed):
        write_index(indexed, make_index((A, make_entry(dtype=3))))
        groups = {"model": {"a": tf.Variable(0.0)}}
        says = message_of(RunError, lambda: indexed.read_checkpoint("step", 1, groups))
        assert "model/a is float32 of shape () by the config, and int32 of shape () in the checkpoint" in says

    def test_only_requested_tensors_of_a_checkpoint_are_read_and_checked(self, indexed):
        # The checksum of the second tensor is wrong.
        write_index(indexed, make_index((A, GOOD), (B, make_entry(offset=4))))
        a, b = tf.Variable(0.0), tf.Variable(0.0)
        indexed.read_checkpoint("step", 1, {"model": {"a": a}})
        assert a.numpy().tobytes() == DATA[:4]
        a.assign(0.0)
        message_of(DamagedCheckpointError, lambda: indexed.read_checkpoint("step", 1, {"model": {"a": a, "b": b}}))
        assert (a.numpy(), b.numpy()) == (0, 0)

    def test_index_of_several_blocks_and_data_files_is_read_as_by_tensorflow(self, indexed):
        blocks = make_block([(b"", make_header(2)), (A, GOOD)]), make_block([(B, make_entry(shape=[0, 3], size=0))])
        blocks = *blocks, make_block([(Z, make_entry(dtype=9, shape=[2, 2], size=32, shard_id=1, offset=32))])
        write_index(indexed, make_table(*blocks, separators=[A, B + b"\0", b"\xff"]))
        for shard in range(2):
            (indexed.path / f"step-000000001.data-0000{shard}-of-00002").write_bytes(DATA)
        reader = tf.train.load_checkpoint(indexed.checkpoint_path("step", 1))
        types = reader.get_variable_to_dtype_map()
        expected = {key: (types[key], tuple(shape)) for key, shape in reader.get_variable_to_shape_map().items()}
        assert read_index(indexed.checkpoint_path("step", 1)) == expected
        assert expected[Z.decode()] == (tf.int64, (2, 2))
