import dataclasses
import fcntl
import itertools
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from helpers.codes import assert_same_codes, read_codes_by_key
from helpers.commands import command, refuse
from helpers.models import SMALL, give_effect, random_images, save_images
from helpers.places import PATIENCE, ROOT, user_environment
from helpers.refusals import message_of, refused
from helpers.runs import write_run
from PIL import Image
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from tfdecouple.cli import main
from tfdecouple.config import DataConfig
from tfdecouple.corpus import code_files, read_codes
from tfdecouple.corpus.code_files import Field, make_parquet_table
from tfdecouple.data import image_folder
from tfdecouple.errors import EXIT_FAILED, DataError
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.opened_run import load_model
from tfdecouple.storage.checkpoints import CheckpointFolder

# One test encodes as the command does, which traces.
pytestmark = pytest.mark.usefixtures("eager_file", "quiet")


# Count of images in each split of the folder `pictures`.
COUNTS = {"train": 20, "validation": 6, "test": 5}
# An image that is encoded later has another place in its batch, and some processors then round it differently.
ROUNDING = 1e-4
# Names of the files that `tfdecouple encode` writes for `pictures`, in order, at 7 images a file.
FILES = ["train-00000-of-00003", "train-00001-of-00003", "train-00002-of-00003"]
FILES += ["validation-00000-of-00001", "test-00000-of-00001"]


def read_pixels(folder, keys):
    """Returns the pixels of the image files `folder / key`, for each of `keys`, uint8 `[n, height, width, 3]`."""
    return np.stack([np.asarray(Image.open(folder / key)) for key in keys])


def list_image_keys(folder):
    """Returns the set of keys of all PNG files below `folder`; a key is a file's path relative to `folder`."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


def read_manifest(folder):
    return json.loads((folder / "_manifest.json").read_text())


def read_files(folder, pattern="*.*"):
    """Returns {file name: bytes} of the files in `folder` whose names match the glob `pattern`."""
    return {path.name: path.read_bytes() for path in folder.glob(pattern) if path.is_file()}


def change_weights(run, step):
    weights = give_effect(load_model(run), seed=1).named_variables()
    CheckpointFolder(run / "checkpoints").write_checkpoint("best", step, {"model": weights})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The path of a folder with 20 training images in two classes, 6 validation images and 5 test images."""
    names = [f"train/{('even', 'odd')[number % 2]}/{number}.png" for number in range(COUNTS["train"])]
    names += [f"{split}/{number}.png" for split in ("validation", "test") for number in range(COUNTS[split])]
    images = dict(zip(names, random_images(31, seed=5), strict=True))
    return save_images(tmp_path_factory.mktemp("pictures"), images)


@pytest.fixture(scope="module")
def encode_into(tiny_run, pictures):
    """A function that runs the command `encode` for a folder with further arguments and returns its exit status."""

    def run(out, *more, run=tiny_run, data=pictures):
        options = {"--run": run, "--data": f"folder:{data}", "--out": out, "--images-per-shard": 7, "--batch-size": 4}
        defaults = [word for name, value in options.items() if name not in more for word in (name, value)]
        return main(["encode", *map(str, [*defaults, *more])])

    return run


@pytest.fixture
def encode(encode_into, tmp_path):
    return lambda *more, out=tmp_path / "codes", **options: encode_into(out, *more, **options)


@pytest.fixture(scope="module")
def model(tiny_run):
    return load_model(tiny_run)


class TestCodes:
    @pytest.mark.parametrize("kind", ["tfrecord", "parquet"])
    def test_stored_codes_decode_to_the_exact_pixels(self, traced, encode, model, pictures, tmp_path, kind, capsys):
        assert encode("--v", "--z-std", "--format", kind) == 0
        out = tmp_path / "codes"
        assert "31 images in 5" in capsys.readouterr().out
        assert {path.name for path in out.glob(f"*.{kind}")} == {f"{name}.{kind}" for name in FILES}
        codes = read_codes_by_key(out)
        assert codes.keys() == list_image_keys(pictures)
        z, v, z_std = (np.stack([row[name] for row in codes.values()]) for name in ("z", "v", "z_std"))
        assert z.dtype == v.dtype == z_std.dtype == np.float32
        images = read_pixels(pictures, codes)
        np.testing.assert_array_equal(model.decode(z, v), images)
        # Other shapes of batches may add in another order.
        np.testing.assert_allclose(z, model.encode(images).z, atol=1e-5)
        np.testing.assert_allclose(z_std, model.posterior(images).stddev(), rtol=1e-5)
        labels = {key: int(row["label"]) for key, row in codes.items()}
        assert labels == {key: {"even": 0, "odd": 1}.get(key.split("/")[1], -1) for key in codes}
        facts = read_manifest(out)
        assert facts["complete"] and facts["label_names"] == ["even", "odd"]
        assert facts["totals"]["images"] == 31 and facts["totals"]["skipped"] == 0
        assert {"run": "tiny", "step": 1, "averaged": False}.items() <= facts["model"].items()
        assert [shard["images"] for shard in facts["shards"]] == [7, 7, 6, 6, 5]
        keys = [row["key"].decode() for row in read_codes(out).as_numpy_iterator()]
        assert keys[20:] == [*(f"validation/{n}.png" for n in range(6)), *(f"test/{n}.png" for n in range(5))]
        assert list(read_codes_by_key(out, split="validation")) == keys[20:26]
        with pytest.raises(DataError, match="no codes of a split 'tests'; it has train, validation, test"):
            read_codes(out, split="tests")
        with pytest.raises(DataError, match="holds no codes"):
            read_codes(tmp_path)
        if kind == "parquet":
            table = pq.read_table(out)
            assert table.num_rows == 31 and table.schema.field("key").type == "string"
            assert table.schema.field("v").metadata == {b"shape": b"8,8,3"}
            z_by_key = dict(zip(table.column("key").to_pylist(), table.column("z").to_pylist(), strict=True))
            np.testing.assert_array_equal([z_by_key[key] for key in codes], z)

    def test_encode_counts_images_far_from_the_training(self, encode, model, pictures, tmp_path, monkeypatch, capsys):
        keys = sorted(key for key in list_image_keys(pictures) if key.startswith("test/"))
        rms = np.sqrt(np.square(model.encode(read_pixels(pictures, keys)).v).mean((1, 2, 3)))
        monkeypatch.setattr("tfdecouple.model.codes.FAR", float(np.sort(rms)[1:3].mean()))
        assert encode("--split", "test", "--v") == 0
        line = re.search(r"^3 of the images, such as (\S+), are far from", capsys.readouterr().out, re.M)
        assert rms[keys.index(line[1])] > np.sort(rms)[1]
        assert encode("--split", "test", out=tmp_path / "z") == 0
        assert "are far from" not in capsys.readouterr().out

    def test_encode_without_z_stores_v(self, encode, pictures, tmp_path_factory, tmp_path, capsys):
        model = DecoupledModel(dataclasses.replace(SMALL, conditioning="none"))
        model.initialize(random_images(16))
        run = write_run(tmp_path_factory.mktemp("glow") / "run", give_effect(model))
        assert "has no z" in refused(capsys, lambda: encode(run=run))
        assert "--z-std needs one" in refused(capsys, lambda: encode("--v", "--z-std", run=run))
        assert not (tmp_path / "codes").exists()
        assert encode("--v", "--split", "test", run=run) == 0
        codes = read_codes_by_key(tmp_path / "codes")
        assert set(next(iter(codes.values()))) == {"key", "label", "v"}
        images = model.decode(None, np.stack([row["v"] for row in codes.values()]))
        np.testing.assert_array_equal(images, read_pixels(pictures, codes))

    def test_encode_names_an_image_with_a_code_that_is_not_finite(self, encode, monkeypatch, tmp_path, capsys):
        posterior = DecoupledModel.posterior

        def broken(self, images):
            images = tf.convert_to_tensor(images)
            bad = tf.reduce_all(images == pixels, axis=(1, 2, 3))
            made = posterior(self, images)
            mean = tf.where(bad[:, None], np.nan, made.mean())
            return type(made)(mean, made.stddev())

        pixels = random_images(31, seed=5)[22]
        monkeypatch.setattr(DecoupledModel, "posterior", broken)
        assert "z of validation is not finite for 1 of 6 images (number 2)" in refused(capsys, encode)
        assert sorted(path.name for path in (tmp_path / "codes").glob("*.tfrecord")) == [
            f"{name}.tfrecord" for name in FILES[:3]
        ]


class TestRefusals:
    def test_encode_refuses_a_folder_of_another_job(self, encode, model, tiny_run, pictures, tmp_path, capsys):
        assert encode() == 0
        before = read_files(tmp_path / "codes")
        # The same weights under another name, and the same files elsewhere, are the same job.
        data, renamed = tmp_path / "pictures", tmp_path / "renamed"
        shutil.copytree(pictures, data)
        shutil.copytree(tiny_run, renamed)
        assert encode(run=renamed, data=data) == 0
        (data / "test" / "0.png").rename(data / "test" / "00.png")
        other = DecoupledModel(SMALL)
        other.initialize(random_images(16))
        weights = write_run(tmp_path / "other", give_effect(other))
        cropped = write_run(tmp_path / "tiny", model, data=DataConfig(source="folder:/faces", centre_crop=4))
        for arguments, options, message in (
            (["--format", "parquet"], {}, "format was tfrecord and is now parquet"),
            (["--v"], {}, "fields was z [4] and is now z [4], v [8, 8, 3]"),
            (["--limit", 3], {}, "splits was 'train': 20, 'validation': 6, 'test': 5 and is now 'train': 3"),
            (["--data", "photographs"], {}, "data.title was images in"),
            ([], {"run": weights}, "was started with update 1 of the run tiny, but --run is update 1 of other"),
            # The config of a run on a folder decides how images are cropped.
            ([], {"run": cropped}, "centre_crop was 0 and is now 4"),
            ([], {"data": data}, "was started with other options or files: data.keys_sha256"),
        ):
            capsys.readouterr()
            assert message in refused(capsys, lambda a=arguments, o=options: encode(*a, **o))
        assert read_files(tmp_path / "codes") == before

    def test_encode_refuses_a_folder_in_use(self, encode, tmp_path, capsys):
        (tmp_path / "codes").mkdir()
        with (tmp_path / "codes" / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert "another program is writing to" in refused(capsys, encode)
        assert encode() == 0


class Stop(BaseException):
    """As sudden as a signal."""


@pytest.fixture
def reads(monkeypatch):
    """Keys of the files that are read, from now on."""
    found = []
    read_image = image_folder.read_image

    def noted(path, *rest):
        found.append(pathlib.Path(path).name)
        return read_image(path, *rest)

    monkeypatch.setattr(image_folder, "read_image", noted)
    return found


@pytest.fixture
def stop_after(monkeypatch):
    """A function that makes the program stop when it has written so many images; 0 for never."""
    serialize_examples = code_files.serialize_examples

    def set_left(count):
        written = itertools.count(1)

        def stopping(*rest):
            for example in serialize_examples(*rest):
                yield example
                if next(written) == count:
                    raise Stop

        monkeypatch.setattr(code_files, "serialize_examples", stopping)

    return set_left


class TestRestart:
    def test_resumed_encoding_writes_the_same_codes(self, encode, tmp_path, stop_after, reads, pictures, capsys):
        assert encode("--v", out=tmp_path / "unbroken") == 0
        out = tmp_path / "codes"
        for stop in (10, 9):
            before = set(out.glob("*.tfrecord"))
            stop_after(stop)
            with pytest.raises(Stop):
                encode("--v")
            assert not list(out.glob(".*.tmp"))
            assert before <= set(out.glob("*.tfrecord"))
            assert not read_manifest(out)["complete"]
        whole = len(list(out.glob("*.tfrecord")))
        assert 2 <= whole < 5
        with pytest.raises(DataError, match=f"has {whole} of 5 files; .*partial=True"):
            read_codes(out)
        assert len(read_codes_by_key(out, partial=True)) == [0, 7, 14, 20, 26][whole]
        stop_after(0)
        reads.clear()
        capsys.readouterr()
        assert encode("--v") == 0
        assert f"{whole} of 5 files are there already" in capsys.readouterr().out
        # Images of whole files are not even read.
        assert len(reads) == 31 - [0, 7, 14, 20, 26][whole]
        assert_same_codes(out, tmp_path / "unbroken", ROUNDING)
        assert read_codes_by_key(out).keys() == list_image_keys(pictures)
        reads.clear()
        before = read_files(out)
        assert encode("--v") == 0
        assert not reads and read_files(out) == before

    def test_encode_resumes_with_its_stored_weights(self, encode, tiny_run, tmp_path, stop_after, capsys):
        assert encode(out=tmp_path / "unbroken") == 0
        run = tmp_path / "tiny"
        shutil.copytree(tiny_run, run)
        stop_after(10)
        with pytest.raises(Stop):
            encode(run=run)
        stop_after(0)
        change_weights(run, 20)
        capsys.readouterr()
        line = refused(capsys, lambda: encode(run=run))
        assert "update 1 of the run tiny" in line and f"--run {tmp_path / 'codes'}/_run" in line
        assert encode(run=tmp_path / "codes" / "_run") == 0
        assert_same_codes(tmp_path / "codes", tmp_path / "unbroken", ROUNDING)

    def test_unreadable_files_stop_and_then_are_skipped(self, encode, pictures, tmp_path, capsys):
        data = tmp_path / "pictures"
        shutil.copytree(pictures, data)
        (data / "validation" / "2.png").write_text("no image")
        line = refused(capsys, lambda: encode(data=data))
        assert "cannot read the image" in line and "validation/2.png" in line
        whole = read_files(tmp_path / "codes", "*.tfrecord")
        assert len(whole) == 3
        assert encode("--on-bad-image", "skip", data=data) == 0
        assert "1 unreadable skipped" in capsys.readouterr().out
        out = tmp_path / "codes"
        assert whole.items() <= read_files(out).items()
        assert read_codes_by_key(out).keys() == list_image_keys(data) - {"validation/2.png"}
        assert [shard["images"] for shard in read_manifest(out)["shards"]] == [7, 7, 6, 5, 5]
        assert read_manifest(out)["totals"]["skipped"] == 1


def is_over_before_kills(command, out):
    """Runs a command three times, killed amid its work, and then to its end; True where it was over before a kill."""
    whole = 0
    for kill in (True, True, True, False):
        with subprocess.Popen(command, cwd=ROOT, env=user_environment(), stdout=subprocess.DEVNULL) as process:
            end = time.monotonic() + PATIENCE
            # Early among its 334 files, so that it is hardly ever over before the signal comes.
            while kill and process.poll() is None and len(list(out.glob("*.parquet"))) < whole + 30:
                assert time.monotonic() < end
                time.sleep(0.002)
            if kill:
                process.send_signal(signal.SIGKILL)
            assert process.wait(PATIENCE) in ((-signal.SIGKILL, 0) if kill else (0,))
        if kill and read_manifest(out)["complete"]:
            return True
        before, whole = whole, len(list(out.glob("*.parquet")))
        assert whole >= before
    return False


@pytest.mark.slow
def test_killed_encoding_stores_each_image_once(tiny_run, tmp_path, forked):
    out = tmp_path / "codes"
    program = [sys.executable, "-m", "tfdecouple", "encode", "--run", tiny_run, "--out", out, "--v"]
    program += ["--split", "test", "--images-per-shard", 3, "--batch-size", 8, "--format", "parquet"]
    tries = 1
    while is_over_before_kills(list(map(str, program)), out):
        shutil.rmtree(out)
        assert (tries := tries + 1) < 7, "it is always over before a kill comes"
    assert read_manifest(out)["complete"] and not list(out.glob(".*.tmp"))
    keys = [row["key"].decode() for row in read_codes(out).as_numpy_iterator()]
    assert keys == [f"test/{number}" for number in range(1000)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "room"), [("tfrecord", 0), ("tfrecord", 700), ("parquet", 350)])
def test_encode_resumes_after_a_full_disk(tiny_run, disk, capsys, kind, room):
    small_disk = disk(4096)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1024 * (4072 - room)))
    arguments = ("encode", "--run", tiny_run, "--out", small_disk / "codes", "--v", "--split", "test", "--format", kind)
    line = refuse(capsys, *arguments, "--images-per-shard", 50, begun=True)
    assert line.startswith("error: cannot write") and "No space left on device" in line
    filler.unlink()
    before = read_files(small_disk / "codes", f"*.{kind}")
    command(*arguments, "--images-per-shard", 50)
    # What was whole is kept as it was, and the rest comes, each image once.
    assert before.items() <= read_files(small_disk / "codes", f"*.{kind}").items()
    assert list(read_codes_by_key(small_disk / "codes")) == [f"test/{number}" for number in range(1000)]
    command("encode", "--verify", "--out", small_disk / "codes")


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
    def test_verify_names_each_bad_file_and_encode_writes_it_again(self, codes, written, encode_into, capsys, kind):
        out = codes(kind)
        assert verify(out, capsys) == (0, [f"{out}: all 5 files are what was written"])
        names = [shard["name"] for shard in read_manifest(out)["shards"]]
        flip(out / names[0])
        (out / names[1]).unlink()
        size = (out / names[2]).stat().st_size
        (out / names[2]).write_bytes((out / names[2]).read_bytes()[:-7])
        shutil.copy(out / names[4], out / f"test-00007-of-00002.{kind}")
        before = read_files(out)
        status, lines = verify(out, capsys)
        assert status == EXIT_FAILED
        assert lines == [
            f"{out / names[0]} has another content than was written (its SHA-256 differs)",
            f"{out / names[1]} cannot be read (No such file or directory)",
            f"{out / names[2]} has {size - 7:,} bytes, {size:,} were written",
            f"{out / f'test-00007-of-00002.{kind}'} does not belong to these codes",
            f"{out}: 4 things not as written; the command that wrote them makes bad files anew",
        ]
        assert read_files(out) == before
        (out / f".{names[0]}.1.tmp").write_text("what a killed program left")
        assert encode_into(out, "--v", "--format", kind) == 0
        assert not list(out.glob(".*.tmp"))
        assert_same_codes(out, written[kind], ROUNDING)

    def test_verify_finds_changed_or_lost_weights(self, codes, capsys):
        out = codes()
        change_weights(out / "_run", 1)
        status, lines = verify(out, capsys)
        assert status == EXIT_FAILED and lines[0] == f"{out / '_run'} holds other weights than made these codes"
        shutil.rmtree(out / "_run")
        status, lines = verify(out, capsys)
        assert status == EXIT_FAILED and "the weights of these codes cannot be read" in lines[0]


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
    "a number of 5000 digits": lambda manifest: b'{"version": ' + b"9" * 5000 + b"}",
    "another version": _changed(version=99),
    "a split leads out": _changed(splits={"../train": 3}),
    "too many images": _changed(splits={"train": 10**400}),
    "too many files": _changed(splits={"train": 10**15}, images_per_shard=1),
    "no images to a file": _changed(images_per_shard=0),
    "fields of other names": _within("fields", "name", "key"),
    "a shape without end": _within("fields", "shape", [10**6] * 4),
    "2^31 values": _within("fields", "shape", [2**31]),
    "another format": _changed(format="csv"),
    "totals without images": _changed(totals={}),
    "a shard that leads out": _within("shards", "name", "../../secret"),
    "other shards": _within("shards", "name", "train-00009-of-00002.tfrecord"),
}


class TestDamagedManifest:
    @pytest.mark.parametrize("shape", DAMAGED)
    def test_damaged_manifest_is_one_line(self, written, tmp_path, shape):
        manifest = read_manifest(written["tfrecord"])
        (tmp_path / MANIFEST).write_bytes(DAMAGED[shape](manifest))
        assert str(tmp_path / MANIFEST) in message_of(DataError, lambda: read_codes(tmp_path))

    def test_commands_refuse_a_damaged_manifest_and_change_nothing(self, codes, encode_into, capsys):
        out = codes()
        (out / MANIFEST).write_bytes(b'{"version": 1, "splits": []}')
        before = read_files(out)
        for option in ("--v", "--verify"):
            assert "Field required" in refused(capsys, lambda option=option: encode_into(out, option))
        assert read_files(out) == before


def test_interrupted_folder_is_verified_and_completed(codes, written, encode_into, capsys):
    out = codes()
    manifest = read_manifest(out)
    first, second, third, *others = manifest["shards"]
    for shard in others:
        (out / shard["name"]).unlink()
    (out / MANIFEST).write_text(json.dumps(manifest | {"complete": False, "totals": {}, "shards": [third, second]}))
    flip(out / second["name"])
    status, lines = verify(out, capsys)
    assert status == EXIT_FAILED and lines[0] == f"{out / first['name']} has no SHA-256 on record"
    assert lines[1].startswith(f"{out / second['name']} has another content")
    assert lines[2] == f"{out} has 3 of 5 files: it is not complete"
    assert encode_into(out, "--v") == 0
    assert "1 of 5 files are there already" in capsys.readouterr().out
    assert_same_codes(out, written["tfrecord"], ROUNDING)


def rewrite_records(change):
    """Returns a damage of the first code file: `change` gets the bytes of its first record, and returns others."""

    def rewrite(path):
        records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in [change(records[0]), *records[1:]]:
                writer.write(record)

    return rewrite


def claim_length(length):
    """Returns a damage: a file whose first record claims `length` bytes, with the right checksum of the length."""

    def claim(path):
        header = length.to_bytes(8, "little")
        path.write_bytes(header + masked_crc32c(header).to_bytes(4, "little") + bytes(64))

    return claim


def change_table(change):
    def rewrite(path):
        pq.write_table(change(pq.read_table(path)), path)

    return rewrite


def repeat_zeros(table):
    """Returns a table whose z is a list of 10^6 zeros in a row; as a Parquet file it has few bytes."""
    zeros = pa.ListArray.from_arrays([0, 10**6], pa.array(np.zeros(10**6, np.float32)))
    return table.slice(0, 1).set_column(table.schema.get_field_index("z"), "z", zeros)


def claim_values(path):
    manifest = read_manifest(path.parent)
    manifest["fields"][0]["shape"] = [2**24]
    (path.parent / MANIFEST).write_text(json.dumps(manifest))


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
    "tfrecord: another feature": rewrite_records(lambda record: record.replace(b"\x01z\x12", b"\x01y\x12")),
    "tfrecord: 2^24 values by the manifest": claim_values,
    "parquet: 2^24 values by the manifest": claim_values,
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
    name = read_manifest(out)["shards"][0]["name"]
    DAMAGED_FILES[damage](out / name)
    assert f"cannot read the codes {out}" in message_of(DataError, lambda: list(read_codes(out).as_numpy_iterator()))


def test_parquet_file_with_long_keys_or_strong_compression_is_refused(tmp_path, codes):
    out = codes("parquet")
    manifest = read_manifest(out)
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
