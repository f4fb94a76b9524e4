import dataclasses
import fcntl
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from helpers.codes import FILES, list_image_keys, read_codes_by_key, read_files, read_manifest, read_pixels
from helpers.models import SMALL, give_effect, random_images
from helpers.refusals import refused
from helpers.runs import write_run

from tfdecouple.config import DataConfig
from tfdecouple.corpus import read_codes
from tfdecouple.errors import DataError
from tfdecouple.model import DecoupledModel

# One test encodes as the command does, which traces.
pytestmark = pytest.mark.usefixtures("eager_file", "quiet")


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
        assert [(field["name"], field["shape"]) for field in facts["fields"]] == [
            ("z", [4]), ("z_std", [4]), ("v", [8, 8, 3])
        ]  # fmt: skip
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
        v = np.asarray(model.encode(read_pixels(pictures, keys)).v)
        by_rms = sorted(zip(np.sqrt(np.square(v).mean((1, 2, 3))), keys, strict=True))
        # All but the two nearest are far.
        monkeypatch.setattr("tfdecouple.model.codes.FAR", float(by_rms[1][0] + by_rms[2][0]) / 2)
        far = {key for _, key in by_rms[2:]}
        assert encode("--split", "test", "--v") == 0
        output = capsys.readouterr().out
        line = re.search(
            r"^(\d+) of the images, such as (\S+), are far from what the model was trained on", output, re.M
        )
        assert int(line[1]) == len(far) and line[2] in far
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
