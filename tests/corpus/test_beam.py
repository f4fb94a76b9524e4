"""The encoding as an Apache Beam pipeline, run on the local runner; needs the extra `beam`."""

import json
import os
import shutil

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from helpers.codes import assert_same_codes, read_codes_by_key
from helpers.commands import command, refuse
from helpers.models import random_images
from helpers.places import PATIENCE, ROOT
from helpers.refusals import refused
from helpers.servers import serve
from PIL import Image

pytest.importorskip("apache_beam")

from tfdecouple.cli import main
from tfdecouple.corpus.beam import make_folder_reader
from tfdecouple.data.image_formats import describe_cropping
from tfdecouple.errors import DataError

IN_MEMORY = ["--", "--runner=DirectRunner", "--direct_running_mode=in_memory"]
# What a file system gives of a name that is not UTF-8.
ODD = os.fsdecode(b"\xe9")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 24 images of two sizes under labels and of none, one of an odd name; one damaged; and other files."""
    folder = tmp_path_factory.mktemp("pictures")
    small, large = iter(random_images(16)), iter(random_images(8, size=13))
    for number in range(24):
        place = folder / ("", "a", "b/deep")[number % 3]
        file = place / f"{number}.png" if number != 4 else folder / ODD / f"{ODD}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(next(large if number % 3 == 2 else small)).save(file)
    (folder / "b" / "damaged.png").write_bytes((folder / "a" / "1.png").read_bytes()[:60])
    (folder / "a" / "notes.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    shutil.copy(folder / "0.png", folder / ".hidden" / "0.png")
    return folder


@pytest.fixture
def encode(exported, pictures, tmp_path):
    def run(*more, model=exported, images=pictures, out=tmp_path / "codes"):
        arguments = ["--model", model, "--images", images, "--out", out, "--batch-size", 4]
        return main(["encode-beam", *map(str, [*arguments, *more])])

    return run


@pytest.fixture(scope="module")
def single(tiny_run, pictures, tmp_path_factory):
    """The codes that the command for one machine writes of the same images."""
    out = tmp_path_factory.mktemp("single") / "codes"
    options = ("--run", tiny_run, "--data", f"folder:{pictures}", "--out", out, "--v", "--on-bad-image", "skip")
    command("encode", *options)
    return out


class TestPipeline:
    @pytest.mark.parametrize("kind", ["tfrecord", "parquet"])
    def test_beam_codes_equal_those_of_encode(
        self, encode, single, tiny_run, pictures, tmp_path, kind, capsys, monkeypatch
    ):
        monkeypatch.setattr("tfdecouple.model.codes.FAR", 0.0)
        assert encode("--v", "--format", kind, "--shards", 3, *IN_MEMORY) == 0
        output = capsys.readouterr().out
        assert "24 images in 3" in output and "24 of the images are far from what" in output
        out = tmp_path / "codes"
        assert_same_codes(out, single)
        codes = read_codes_by_key(single)
        assert len(codes) == 24 and codes[r"\xe9/\xe9.png"]["label"] == 2
        assert (out / "_unreadable.txt").read_text().startswith("b/damaged.png: ")
        assert (out / "_unreadable.txt").read_text().count("\n") == 1
        manifest = json.loads((out / "_manifest.json").read_text())
        assert manifest["label_names"] == ["a", "b", ODD] and manifest["complete"]
        assert (manifest["totals"]["images"], manifest["totals"]["skipped"]) == (24, 1)
        assert {"run": "tiny", "step": 1}.items() <= manifest["model"].items()
        command("encode", "--verify", "--out", out)
        assert f"{out}: all 3 files are what was written" in capsys.readouterr().out
        assert not list(out.glob("beam-temp*"))
        line = refuse(capsys, "encode", "--run", tiny_run, "--data", f"folder:{pictures}", "--out", out)
        assert "was written by encode-beam" in line
        assert "is not empty" in refused(capsys, lambda: encode(*IN_MEMORY))
        if kind == "parquet":
            assert pq.read_table(out).num_rows == 24

    def test_beam_crops_images_as_the_export(self, encode, exported, single, tmp_path):
        model = onnx.load(exported / "onnx" / "encoder.onnx")
        next(entry for entry in model.metadata_props if entry.key == "crop").value = describe_cropping((8, 8, 3), 9)
        onnx.save(model, tmp_path / "encoder.onnx")
        out = tmp_path / "codes"
        assert encode(*IN_MEMORY, model=tmp_path / "encoder.onnx") == 0
        assert json.loads((out / "_manifest.json").read_text())["data"]["centre_crop"] == 9
        # Images of 13 pixels lose some, those of 8 none.
        codes, single = read_codes_by_key(out), read_codes_by_key(single)
        others = {key for key, row in codes.items() if np.abs(row["z"] - single[key]["z"]).max() > 1e-4}
        assert others == {key for key in single if key.startswith("b/")}

    @pytest.mark.slow
    def test_beam_encodes_on_a_job_server_with_a_worker_pool(self, encode, single, tmp_path):
        """Beam's portable runner sends the pipeline to a server, which runs it on workers in another process."""
        runners = "apache_beam.runners"
        with (
            serve(f"{runners}.portability.local_job_service_main", "--job_port", "{port}") as jobs,
            serve(f"{runners}.worker.worker_pool_main", "--service_port", "{port}") as pool,
        ):
            runner = ["--", "--runner=PortableRunner", f"--job_endpoint={jobs}", f"--job_server_timeout={PATIENCE}"]
            assert encode("--v", *runner, "--environment_type=EXTERNAL", f"--environment_config={pool}") == 0
        assert_same_codes(tmp_path / "codes", single)


class TestRefusals:
    def test_encode_beam_refuses_a_missing_or_damaged_encoder(self, encode, pictures, tmp_path, capsys):
        assert "there is no encoder.onnx in" in refused(capsys, lambda: encode(model=pictures))
        (tmp_path / "encoder.onnx").write_text("no model")
        assert "cannot open the encoder" in refused(capsys, lambda: encode(model=tmp_path))
        shutil.copy(ROOT / "README.md", tmp_path / "encoder.onnx")
        assert "cannot open the encoder" in refused(capsys, lambda: encode(model=tmp_path / "encoder.onnx"))

    def test_encode_beam_refuses_a_folder_without_images(self, encode, tmp_path, capsys):
        assert "there are no images in" in refused(capsys, lambda: encode(images=tmp_path / "none"))
        assert not (tmp_path / "codes").exists()


def test_beam_gives_images_the_keys_and_labels_of_a_data_set_in_a_folder():
    """The pipeline above has a folder without splits."""
    paths = ["/data/train/cats/1.PNG", "/data/val/1.png", "/data/other/1.png", "/data/1.png", "/data/train/.1.png"]
    reader = make_folder_reader("/data/", paths, (8, 8, 3), 0)
    keys = [("train/cats/1.PNG", "cats"), ("val/1.png", ""), None, None, None]
    assert reader.labels == ("cats",) and [reader.find_key_and_label(path) for path in paths] == keys


def test_error_in_the_beam_pipeline_is_one_line(encode, tmp_path, monkeypatch, capsys):
    from tfdecouple.corpus import code_files

    def fails(*batch):
        raise DataError("the encoder went away")
        yield

    monkeypatch.setattr(code_files, "serialize_examples", fails)
    line = capsys.readouterr() and refused(capsys, lambda: encode(*IN_MEMORY))
    assert "the pipeline failed" in line and "the encoder went away" in line
    assert f"remove {tmp_path / 'codes'} before the next run" in line
