import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers.codes import assert_same_codes, read_files
from helpers.models import give_effect
from helpers.refusals import message_of, refused
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from tfdecouple.cli import main
from tfdecouple.corpus import read_codes
from tfdecouple.corpus.code_files import Field, make_parquet_table
from tfdecouple.errors import DataError
from tfdecouple.runs.opened_run import load_model
from tfdecouple.storage.checkpoints import CheckpointFolder

pytestmark = pytest.mark.usefixtures("eager_file", "quiet")

MANIFEST = "_manifest.json"
KINDS = ("tfrecord", "parquet")


@pytest.fixture(scope="module")
def written(encode_into, tmp_path_factory):
    """Whole folders of codes, by format. Do not change them."""
    folders = {kind: tmp_path_factory.mktemp("codes") / kind for kind in KINDS}
    for kind, out in folders.items():
        assert encode_into(out, "--v", "--format", kind) == 0
    return folders


@pytest.fixture
def codes(written, tmp_path):
    def copied(kind="tfrecord"):
        return shutil.copytree(written[kind], tmp_path / "codes")

    return copied


def flip(path, at=-40):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def verify(out, capsys):
    capsys.readouterr()
    status = main(["encode", "--verify", "--out", str(out)])
    out, err = capsys.readouterr()
    assert err == ""
    return status, out.splitlines()


class TestVerify:
    @pytest.mark.parametrize("kind", KINDS)
    def test_verify_names_each_bad_file_and_returns_1(self, codes, capsys, kind):
        out = codes(kind)
        assert verify(out, capsys) == (0, [f"{out}: all 5 files are what was written"])
        names = [shard["name"] for shard in json.loads((out / MANIFEST).read_text())["shards"]]
        flip(out / names[0])
        (out / names[1]).unlink()
        size = (out / names[2]).stat().st_size
        (out / names[2]).write_bytes((out / names[2]).read_bytes()[:-7])
        shutil.copy(out / names[4], out / f"test-00007-of-00002.{kind}")
        before = read_files(out)
        status, lines = verify(out, capsys)
        assert status == 1
        assert lines == [
            f"{out / names[0]} has another content than was written (its SHA-256 differs)",
            f"{out / names[1]} cannot be read (No such file or directory)",
            f"{out / names[2]} has {size - 7:,} bytes, {size:,} were written",
            f"{out / f'test-00007-of-00002.{kind}'} does not belong to these codes",
            f"{out}: 4 things not as written; the command that wrote them makes bad files anew",
        ]
        assert read_files(out) == before

    def test_verify_finds_changed_or_lost_weights(self, codes, capsys):
        out = codes()
        model = load_model(out / "_run")
        give_effect(model, seed=1)
        CheckpointFolder(out / "_run" / "checkpoints").write_checkpoint("best", 1, {"model": model.named_variables()})
        status, lines = verify(out, capsys)
        assert status == 1 and lines[0] == f"{out / '_run'} holds other weights than made these codes"
        shutil.rmtree(out / "_run")
        status, lines = verify(out, capsys)
        assert status == 1 and "the weights of these codes cannot be read" in lines[0]


def _changed(**values):
    return lambda manifest: json.dumps(manifest | values).encode()


def _within(where, name, value):
    def changed(manifest):
        place = manifest[where][0] if isinstance(manifest[where], list) else manifest[where]
        place[name] = value
        return json.dumps(manifest).encode()

    return changed


DAMAGED = {
    "a list": lambda manifest: b"[]",
    "cut short": lambda manifest: json.dumps(manifest).encode()[:-9],
    "no UTF-8": lambda manifest: json.dumps(manifest).encode().replace(b"tiny", b"t\xe9ny"),
    "nested deeply": lambda manifest: b'{"version":' * 100_000 + b"1" + b"}" * 100_000,
    "a number of 5000 digits": lambda manifest: b'{"version": ' + b"9" * 5000 + b"}",
    "another version": _changed(version=99),
    "a split leads out": _changed(splits={"../train": 3}),
    "too many images": _changed(splits={"train": 10**400}),
    "too many files": _changed(splits={"train": 10**15}, images_per_shard=1),
    "51 MB": _changed(label_names=["x" * 51_000_000]),
    "no images to a file": _changed(images_per_shard=0),
    "fields of other names": _within("fields", "name", "key"),
    "a shape without end": _within("fields", "shape", [10**6] * 4),
    "another format": _changed(format="csv"),
    "totals without images": _changed(totals={}),
    "a shard that leads out": _within("shards", "name", "../../secret"),
    "other shards": _within("shards", "name", "train-00009-of-00002.tfrecord"),
}


class TestDamagedManifest:
    @pytest.mark.parametrize("shape", DAMAGED)
    def test_damaged_manifest_is_one_line(self, written, tmp_path, shape):
        manifest = json.loads((written["tfrecord"] / MANIFEST).read_text())
        (tmp_path / MANIFEST).write_bytes(DAMAGED[shape](manifest))
        with pytest.raises(DataError, match="manifest") as caught:
            read_codes(tmp_path)
        assert str(tmp_path / MANIFEST) in str(caught.value)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 700

    def test_commands_refuse_a_damaged_manifest_and_change_nothing(self, codes, encode_into, capsys):
        out = codes()
        (out / MANIFEST).write_bytes(b'{"version": 1, "splits": []}')
        before = read_files(out)
        for option in ("--v", "--verify"):
            assert "Field required" in refused(capsys, lambda option=option: encode_into(out, option))
        assert read_files(out) == before


def test_interrupted_folder_is_verified_and_completed(codes, written, encode_into, capsys):
    out = codes()
    manifest = json.loads((out / MANIFEST).read_text())
    first, second, third, *others = manifest["shards"]
    for shard in others:
        (out / shard["name"]).unlink()
    (out / MANIFEST).write_text(json.dumps(manifest | {"complete": False, "totals": {}, "shards": [third, second]}))
    flip(out / second["name"])
    status, lines = verify(out, capsys)
    assert status == 1 and lines[0] == f"{out / first['name']} has no SHA-256 on record"
    assert lines[1].startswith(f"{out / second['name']} has another content")
    assert lines[2] == f"{out} has 3 of 5 files: it is not complete"
    assert encode_into(out, "--v") == 0
    assert "1 of 5 files are there already" in capsys.readouterr().out
    assert_same_codes(out, written["tfrecord"])


def rewrite_records(change):
    """Returns a damage of the first code file: `change` gets the bytes of its first record, and returns others."""

    def rewrite(path):
        records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in [change(records[0]), *records[1:]]:
                writer.write(record)

    return rewrite


def rename_feature(record):
    return record.replace(b"\x01z\x12", b"\x01y\x12")


def claim_length(length):
    """Returns a damage: a file whose first record claims `length` bytes, with the right checksum of the length."""

    def claim(path):
        header = length.to_bytes(8, "little")
        path.write_bytes(header + masked_crc32c(header).to_bytes(4, "little") + bytes(64))

    return claim


def change_table(change):
    def rewrite(path):
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(change(pq.read_table(path)), path)

    return rewrite


def repeat_zeros(table):
    """Returns a table whose z is a list of 10^6 zeros in a row; as a Parquet file it has few bytes."""
    import pyarrow as pa

    zeros = pa.ListArray.from_arrays([0, 10**6], pa.array(np.zeros(10**6, np.float32)))
    return table.slice(0, 1).set_column(table.schema.get_field_index("z"), "z", zeros)


# Damages of a code file, by format and description.
DAMAGED_FILES = {
    "tfrecord: flipped bit": flip,
    "tfrecord: flipped bit in a length": lambda path: flip(path, 9),
    "tfrecord: cut within a record": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "tfrecord: cut within a length": lambda path: path.write_bytes(path.read_bytes() + b"\1\2"),
    "tfrecord: 2^40 bytes in a record": claim_length(2**40),
    "tfrecord: 2^64 - 1 bytes in a record": claim_length(2**64 - 1),
    "tfrecord: 2^63 bytes in a record": claim_length(2**63),
    "tfrecord: no bytes in a record": claim_length(0),
    "tfrecord: no example": rewrite_records(lambda record: b"\xff" * len(record)),
    "tfrecord: another feature": rewrite_records(rename_feature),
    "parquet: no Parquet": lambda path: path.write_bytes(b"PAR1" + bytes(64) + b"PAR1"),
    "parquet: empty": lambda path: path.write_bytes(b""),
    "parquet: flipped bit": lambda path: flip(path, 60),
    "parquet: cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "parquet: no column z": change_table(lambda table: table.drop_columns("z")),
    "parquet: columns in another order": change_table(lambda table: table.select(table.column_names[::-1])),
    "parquet: 10^6 zeros in a row": change_table(repeat_zeros),
}


@pytest.mark.parametrize("damage", DAMAGED_FILES)
def test_damaged_code_file_is_one_data_error(codes, damage):
    out = codes(damage.partition(":")[0])
    name = json.loads((out / MANIFEST).read_text())["shards"][0]["name"]
    DAMAGED_FILES[damage](out / name)
    assert f"cannot read the codes {out}" in message_of(DataError, lambda: list(read_codes(out).as_numpy_iterator()))


@pytest.mark.parametrize("kind", KINDS)
def test_manifest_that_claims_large_codes_is_refused_before_memory_is_taken(codes, kind):
    out = codes(kind)
    manifest = json.loads((out / MANIFEST).read_text())
    for values in (2**31, 2**24):
        manifest["fields"][0]["shape"] = [values]
        (out / MANIFEST).write_text(json.dumps(manifest))
        message_of(DataError, lambda: read_codes(out))


def test_parquet_file_with_long_keys_or_strong_compression_is_refused(tmp_path, codes):
    pq = pytest.importorskip("pyarrow.parquet")
    out = codes("parquet")
    manifest = json.loads((out / MANIFEST).read_text())
    (path, *_), fields = [out / shard["name"] for shard in manifest["shards"]], manifest["fields"]
    fields = [Field.model_validate(field) for field in fields]
    arrays = {field.name: np.zeros((1000, *field.shape), np.float32) for field in fields}

    def write(keys, **options):
        pq.write_table(make_parquet_table(keys, [0] * len(keys), arrays, fields), path, **options)

    # The file has this key once, in 5 KB.
    write([b"k" * 10**5] * 1000)
    assert "more than 65,536 bytes" in message_of(DataError, lambda: list(read_codes(out).as_numpy_iterator()))
    write([b"k"] * 1000, compression="zstd")
    assert "another codec" in message_of(DataError, lambda: read_codes(out))
