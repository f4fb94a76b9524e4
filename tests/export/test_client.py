"""The client that is published beside ONNX files: one file that needs ONNX Runtime and NumPy alone."""

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers.models import SMALL
from helpers.onnx_texts import WITHOUT_Z, in_5_bits, write_models
from helpers.picture_files import claiming, write_files
from PIL import Image

from export import client as source
from export.pipeline import CLIENT
from tfdecouple.data.image_file import read_image
from tfdecouple.runs.opened_run import load_model

# The noise that the sampler of the tiny model takes, in its order.
NOISE = {"z_noise": (4,), "v_noise": (8, 8, 3)}
# What the client may not need; Pillow only where it opens picture files.
OTHERS = ("tensorflow", "keras", "tfdecouple", "export", "onnx", "scipy", "PIL")


@pytest.fixture(scope="module")
def client(exported):
    """The module as it was published, beside its ONNX files."""
    spec = importlib.util.spec_from_file_location("published_client", exported / "client.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(folder, *arguments, cwd):
    """Runs the published client where nothing else of Python's packages can be imported."""
    blocked = f"import sys, runpy; sys.modules |= dict.fromkeys({OTHERS[: None if '--check' in arguments else -1]})"
    code = f"{blocked}; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-I", "-c", code, str(folder / "client.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("folder", [(), ("",), ("onnx",)])
def test_known_images_come_back_without_tensorflow(exported, tmp_path, folder):
    done = run(exported, "--check", *(exported / one for one in folder), cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("16 of 16 known images come back exactly\n", 0), done.stderr


def test_it_is_published_as_it_is_and_in_the_manifest(exported):
    assert "client.py" in json.loads((exported / "manifest.json").read_text())["files"]
    assert (exported / "client.py").read_bytes() == CLIENT.read_bytes()


def test_codes_and_switches_are_the_models(client, exported, tiny_run):
    images = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), np.uint8)
    served, model = client.Model(), load_model(tiny_run)
    assert served.shape == SMALL.image_shape
    codes = served.encode(images)
    for name, right in zip(("z", "v"), model.encode(images), strict=True):
        np.testing.assert_allclose(codes[name], right, rtol=0, atol=1e-5 * np.abs(right).max())
    np.testing.assert_array_equal(served.decode(**codes), images)
    for ours, theirs in zip(served.switch(images[:2], images[2:]), model.switch(images[:2], images[2:]), strict=True):
        assert np.mean(ours != np.asarray(theirs)) < 0.01
        assert np.any(ours != images[:2]) and np.any(ours != images[2:])


@pytest.mark.parametrize("shape", [(8, 8), (9, 13), (64, 40), (5, 30), (201, 157)])
@pytest.mark.parametrize("crop", [0, 20])
def test_pictures_are_cropped_and_resized_as_in_training(client, shape, crop, tmp_path):
    picture = np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    served = client.Model()
    served.crop = crop
    np.testing.assert_array_equal(served.fit(picture), read_image(str(tmp_path / "picture.png"), (8, 8, 3), crop))


def test_two_files_are_switched(exported, tmp_path):
    for number, name in enumerate(("a.png", "b.png")):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    done = run(exported, "a.png", "b.png", cwd=tmp_path)
    assert done.stdout == "ab.png: z of a.png, v of b.png\nba.png: z of b.png, v of a.png\n", done.stderr
    assert Image.open(tmp_path / "ab.png").size == (8, 8)
    for arguments in (
        ["a.png"],
        ["a.png", "b.png", "--check"],
        ["--sample", "1", "a.png"],
        ["--chek"],
        ["--sample", "0"],
    ):
        done = run(exported, *arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr


def test_new_images_are_drawn(client, exported, tmp_path):
    served = client.Model(exported)
    session = served._open("sampler")
    noise = np.random.default_rng(5)
    given = {name: noise.standard_normal((40, *shape), np.float32) for name, shape in NOISE.items()}
    right = session.run(None, {**given, "temperature": np.full(40, 0.5, np.float32)})[0]
    # More than run at once.
    np.testing.assert_array_equal(served.sample(40, 0.5, seed=5), right)
    assert np.any(served.sample(2) != served.sample(2))
    done = run(exported, "--sample", "3", cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("samples.png: 3 new images\n", 0), done.stderr
    assert Image.open(tmp_path / "samples.png").size == (24, 8)


def test_many_images_are_coded_some_at_a_time(client, exported):
    images = np.random.default_rng(1).integers(0, 256, (10, 8, 8, 3), np.uint8)
    served, whole = client.Model(exported, batch=3), client.Model(exported)
    codes, right = served.encode(images), whole.encode(images)
    for name, array in codes.items():
        np.testing.assert_allclose(array, right[name], rtol=0, atol=1e-5 * np.abs(array).max())
    np.testing.assert_array_equal(served.decode(**codes), images)
    # A single z stands for all, as it does in the file.
    z = codes["z"][:1]
    np.testing.assert_array_equal(served.decode(z=z, v=codes["v"]), whole.decode(z=np.repeat(z, 10, 0), v=codes["v"]))


def test_a_missing_sampler_is_a_line(exported, tmp_path):
    shutil.copytree(exported / "onnx", tmp_path / "onnx")
    (tmp_path / "onnx" / "sampler.onnx").unlink()
    shutil.copy(CLIENT, tmp_path)
    done = run(tmp_path, "--sample", "1", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "sampler.onnx" in done.stderr


def test_the_crop_of_the_card_is_taken(monkeypatch):
    class Session:
        def __init__(self, path, providers):
            assert path.endswith((".onnx",)) and providers == ["CPUExecutionProvider"]

        def get_inputs(self):
            return []

        def get_modelmeta(self):
            told = {"image_shape": "[8, 8, 3]", "crop": "centre square of 140 pixels, or the largest"}
            return type("About", (), {"custom_metadata_map": told})

    monkeypatch.setattr(source.onnxruntime, "InferenceSession", Session)
    assert (source.Model().crop, source.Model().size) == (140, 8)


# Of 5 bits, and what the client asks a file of itself.
OF_5_BITS = {**WITHOUT_Z, "encoder": in_5_bits(WITHOUT_Z["encoder"])}
SAID = {"image_shape": "[8, 8, 3]", "n_bits": "5", "crop": "largest centre square"}


def test_of_fewer_bits_known_images_are_multiples_of_the_step(exported, tmp_path):
    write_models(tmp_path, OF_5_BITS, **SAID)
    done = run(exported, "--check", tmp_path, cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("16 of 16 known images come back exactly\n", 0), done.stderr


@pytest.mark.parametrize(("height", "width", "count"), [(8, 8, 16), (12, 20, 16), (128, 128, 16), (256, 256, 2)])
def test_known_images_are_waves_and_fewer_large_ones(height, width, count):
    images = source.known_images(height, width, 3)
    number, y, x, channel = np.indices(images.shape)
    wave = 256 * ((number % 4 + 1) * x + (number // 4 + 1) * y) // max(height, width) + 85 * channel
    np.testing.assert_array_equal(images, np.minimum(abs(wave % 512 - 256), 255))
    assert len(images) == len(np.unique(images.reshape(count, -1), axis=0)) == count


def test_pictures_are_read_as_in_training(client, tmp_path):
    served = client.Model()
    for name, path in write_files(tmp_path).items():
        found = served.fit(client.read_picture(path, 3))
        np.testing.assert_array_equal(found, read_image(str(path), (8, 8, 3), 0), name)


def test_a_picture_that_cannot_be_read_is_a_line(exported, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.int32)).save(tmp_path / "deep.tif")
    (tmp_path / "claims.png").write_bytes(claiming(12_000, 12_000))
    said = {"deep.tif": "the mode I", "claims.png": "more than 134,217,728", "absent.png": "no regular file"}
    for name, words in said.items():
        done = run(exported, name, name, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith(f"error: cannot read {name}: ") and words in done.stderr


# The same with a z, which is v once more; and such as need labels as well.
WITH_Z = {
    "encoder": OF_5_BITS["encoder"]
    .replace("3] v)", "3] v, float[batch, 8, 8, 3] z)")
    .replace("v = Mul (whole, step)", "v = Mul (whole, step)\n        z = Identity (v)"),
    "decoder": OF_5_BITS["decoder"].replace("3] v)", "3] v, float[batch, 8, 8, 3] z)"),
}
LABELLED = {**WITH_Z, "encoder": WITH_Z["encoder"].replace("images) =>", "images, int32[batch] labels) =>")}
NOT_SWITCHED = "this model needs labels, or has no z to switch; call Model in a program"


@pytest.mark.parametrize(
    ("texts", "shape", "said"),
    [
        pytest.param(OF_5_BITS, [8, 8, 3], NOT_SWITCHED, id="without z"),
        pytest.param(LABELLED, [8, 8, 3], NOT_SWITCHED, id="labels"),
        pytest.param(WITH_Z, [8, 8, 5], "files have no 5 channels here; call Model in a program", id="channels"),
        pytest.param(WITH_Z, [8, 8, 3], "cannot read a.png: it is no regular file", id="none of these"),
    ],
)
def test_a_model_whose_pictures_are_not_switched_is_refused_in_a_line(tmp_path, texts, shape, said):
    shutil.copy(CLIENT, tmp_path)
    write_models(tmp_path / "onnx", texts, **{**SAID, "image_shape": json.dumps(shape)})
    done = run(tmp_path, "a.png", "b.png", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {said}\n")


@pytest.mark.parametrize("arguments", [("a.png", "b.png"), ("--check",), ("--check", "elsewhere")], ids=" ".join)
def test_files_that_are_missing_or_damaged_are_a_line(tmp_path, arguments):
    shutil.copy(CLIENT, tmp_path)
    folder = tmp_path / ("elsewhere" if "elsewhere" in arguments else "onnx")
    for state in ("missing", "damaged"):
        if state == "damaged":
            write_models(folder, OF_5_BITS, **SAID)
            (folder / "decoder.onnx").write_bytes(b"no model")
        done = run(tmp_path, *arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        said = "elsewhere" if "elsewhere" in arguments else tmp_path
        assert done.stderr.startswith(f"error: cannot open encoder.onnx and decoder.onnx of an export in {said}: ")


class TestWhatCannotBeDone:
    """One line and status 2: 1 says that images are lost."""

    @pytest.fixture
    def refuses(self, tmp_path, monkeypatch, capsys):
        """Returns what the client says of two pictures, or of other arguments."""
        write_models(tmp_path / "onnx", WITH_Z, **SAID)
        for name in ("a.png", "b.png"):
            Image.new("RGB", (8, 8)).save(tmp_path / name)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(source, "FOLDER", tmp_path / "onnx")

        def run(*arguments):
            assert source.main(list(arguments or ("a.png", "b.png"))) == 2
            out, err = capsys.readouterr()
            assert (out, err.count("\n")) == ("", 1)
            return err

        return run

    def test_without_pillow(self, refuses, monkeypatch):
        monkeypatch.setitem(sys.modules, "PIL", None)
        assert refuses().startswith("error: picture files need Pillow (pip install pillow): ")

    def test_where_nothing_can_be_written(self, refuses, tmp_path):
        (tmp_path / "ab.png").mkdir()
        assert refuses().startswith("error: cannot write ab.png: ")

    @pytest.mark.parametrize("arguments", [(), ("--check",)])
    def test_with_an_encoder_and_a_decoder_of_different_exports(self, refuses, tmp_path, arguments):
        write_models(tmp_path / "onnx", {"decoder": WITHOUT_Z["decoder"]})
        said = f"error: cannot encode and decode with the files in {tmp_path / 'onnx'}: "
        assert refuses(*arguments).startswith(said)


def test_one_that_loses_images_names_them(exported, tmp_path):
    lossy = tmp_path / "client.py"
    # Its decoder turns the first two images of a batch over.
    turned = 'self._run(self.decoder, codes)["images"]'
    text = CLIENT.read_text()
    assert turned in text
    lossy.write_text(text.replace(turned, f"np.concatenate([~{turned}[:2], {turned}[2:]])"))
    done = run(tmp_path, "--check", exported / "onnx", cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("14 of 16 known images come back exactly; lost: 0, 1\n", 1), done.stderr
