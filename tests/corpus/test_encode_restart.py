import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers.codes import FILES, assert_same_codes, list_image_keys, read_codes_by_key, read_files, read_manifest
from helpers.models import give_effect
from helpers.places import PATIENCE, ROOT, user_environment
from helpers.refusals import refused

from tfdecouple.cli import main
from tfdecouple.corpus import code_files, read_codes
from tfdecouple.data import image_folder
from tfdecouple.errors import DataError
from tfdecouple.runs.opened_run import load_model
from tfdecouple.storage.checkpoints import CheckpointFolder

pytestmark = pytest.mark.usefixtures("eager_file", "quiet")


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
    left = [0]

    def stopping(*rest):
        for example in serialize_examples(*rest):
            yield example
            left[0] -= 1
            if left[0] == 0:
                raise Stop

    monkeypatch.setattr(code_files, "serialize_examples", stopping)

    def set_left(count):
        left[0] = count

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
        assert_same_codes(out, tmp_path / "unbroken")
        assert read_codes_by_key(out).keys() == list_image_keys(pictures)
        reads.clear()
        before = read_files(out)
        assert encode("--v") == 0
        assert not reads and read_files(out) == before

    def test_encode_writes_lost_and_cut_files_again(self, encode, tmp_path):
        assert encode() == 0
        out = tmp_path / "codes"
        unbroken = tmp_path / "unbroken"
        shutil.copytree(out, unbroken)
        (out / f"{FILES[1]}.tfrecord").unlink()
        cut = out / f"{FILES[3]}.tfrecord"
        cut.write_bytes(cut.read_bytes()[:-40])
        (out / ".train-00001-of-00003.tfrecord.1.tmp").write_text("what a killed program left")
        assert encode() == 0
        assert not list(out.glob(".*.tmp"))
        assert_same_codes(out, unbroken)

    def test_encode_resumes_with_its_stored_weights(self, encode, tiny_run, tmp_path, stop_after, capsys):
        assert encode(out=tmp_path / "unbroken") == 0
        run = tmp_path / "tiny"
        shutil.copytree(tiny_run, run)
        stop_after(10)
        with pytest.raises(Stop):
            encode(run=run)
        stop_after(0)
        trained = load_model(run)
        give_effect(trained, seed=1)
        CheckpointFolder(run / "checkpoints").write_checkpoint("best", 20, {"model": trained.named_variables()})
        capsys.readouterr()
        line = refused(capsys, lambda: encode(run=run))
        assert "update 1 of the run tiny" in line and f"--run {tmp_path / 'codes'}/_run" in line
        assert encode(run=tmp_path / "codes" / "_run") == 0
        assert_same_codes(tmp_path / "codes", tmp_path / "unbroken")

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


@pytest.mark.slow
class TestKill:
    def kill_amid(self, command, out):
        """Runs the command to its end, killed three times before; False where it was over before a kill came."""
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
                status = process.wait(PATIENCE)
            assert status in ((-signal.SIGKILL, 0) if kill else (0,))
            if kill and read_manifest(out)["complete"]:
                return False
            found = len(list(out.glob("*.parquet")))
            assert found >= whole
            whole = found
        return True

    def test_killed_encoding_stores_each_image_once(self, tiny_run, tmp_path, forked):
        out = tmp_path / "codes"
        command = [sys.executable, "-m", "tfdecouple", "encode", "--run", tiny_run, "--out", out, "--v"]
        command += ["--split", "test", "--images-per-shard", 3, "--batch-size", 8, "--format", "parquet"]
        command = list(map(str, command))
        for _ in range(6):
            if self.kill_amid(command, out):
                break
            shutil.rmtree(out)
        else:
            raise AssertionError("it is always over before a kill comes")
        assert read_manifest(out)["complete"] and not list(out.glob(".*.tmp"))
        keys = [row["key"].decode() for row in read_codes(out).as_numpy_iterator()]
        assert keys == [f"test/{number}" for number in range(1000)]


@pytest.mark.slow
class TestFullDisk:
    @pytest.mark.parametrize(("kind", "room"), [("tfrecord", 0), ("tfrecord", 700), ("parquet", 350)])
    def test_encode_resumes_after_a_full_disk(self, tiny_run, disk, capsys, kind, room):
        small_disk = disk(4096)
        filler = small_disk / "filler"
        filler.write_bytes(bytes(1024 * (4072 - room)))
        arguments = ["--run", tiny_run, "--out", small_disk / "codes", "--v", "--split", "test", "--format", kind]
        arguments = list(map(str, ["encode", *arguments, "--images-per-shard", 50]))
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert err.startswith("error: cannot write") and err.count("\n") == 1
        assert "No space left on device" in err
        filler.unlink()
        before = read_files(small_disk / "codes", f"*.{kind}")
        assert main(arguments) == 0
        # What was whole is kept as it was, and the rest comes, each image once.
        assert before.items() <= read_files(small_disk / "codes", f"*.{kind}").items()
        assert list(read_codes_by_key(small_disk / "codes")) == [f"test/{number}" for number in range(1000)]
        assert main(["encode", "--verify", "--out", str(small_disk / "codes")]) == 0
