import json

import numpy as np
import onnx
import pytest
import tensorflow as tf
from helpers.exporting import read_vectors
from helpers.models import SMALL, random_images
from helpers.places import run_python
from helpers.program_inputs import (
    WITHOUT_Z,
    draw_smooth_image,
    load_program,
    quantize_to_5_bits,
    write_onnx_models,
)
from PIL import Image, ImageCms

from export import client as source
from export.endpoints import list_endpoints
from export.exported_model import ExportedModel
from export.formats import CLIENT
from export.formats.onnx import build_onnx
from export.pipeline import export
from export.verification.verify import verify_folder
from tfdecouple.cli import main
from tfdecouple.model import codes as of_model
from tfdecouple.visualization.full_size import read_photograph

ALL_COME_BACK = "16 of 16 test images decode exactly\n"
# Models of 5 bits: without z, with a z that is v once more, and with labels as well.
OF_5_BITS = {**WITHOUT_Z, "encoder": quantize_to_5_bits(WITHOUT_Z["encoder"])}
WITH_Z = {
    "encoder": OF_5_BITS["encoder"]
    .replace("3] v)", "3] v, float[batch, 8, 8, 3] z)")
    .replace("v = Mul (whole, step)", "v = Mul (whole, step)\n        z = Identity (v)"),
    "decoder": OF_5_BITS["decoder"].replace("3] v)", "3] v, float[batch, 8, 8, 3] z)"),
}
LABELLED = {**WITH_Z, "encoder": WITH_Z["encoder"].replace("images) =>", "images, int32[batch] labels) =>")}
METADATA = {"image_shape": "[8, 8, 3]", "n_bits": "5", "crop": "largest centre square"}


@pytest.fixture(scope="module")
def client(exported):
    return load_program(exported / "client.py")


@pytest.fixture
def run(exported, tmp_path, monkeypatch, capsys):
    """A function that runs the client in a folder with two pictures; it returns status, output and errors."""
    for number, name in enumerate(("a.png", "b.png")):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)

    def call(*arguments, folder=exported):
        monkeypatch.setattr(source, "FOLDER", folder)
        try:
            status = source.main(list(map(str, arguments)))
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def refused(run):
    """A function that runs the client, asserts one line and status 2."""

    def call(*arguments, **options):
        status, out, err = run(*arguments, **options)
        assert (status, out, err.count("\n")) == (2, "", 1) and err.startswith("error: "), err
        return err.removeprefix("error: ")

    return call


def test_client_is_published_unchanged_and_runs_where_nothing_else_can_be_imported(exported, tmp_path):
    for path in CLIENT:
        assert (exported / path.name).read_bytes() == path.read_bytes()
    others = ("tensorflow", "keras", "tfdecouple", "export", "onnx", "scipy", "PIL")
    code = f"import sys, runpy; sys.modules |= dict.fromkeys({others})"
    code += "; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = run_python("-I", "-B", "-c", code, exported / "client.py", "--check", folder=tmp_path)
    assert (done.stdout, done.returncode) == (ALL_COME_BACK, 0), done.stderr


def test_check_of_right_files_finds_all_images_exact(run, exported, tmp_path):
    write_onnx_models(tmp_path / "5", OF_5_BITS, **METADATA)
    for folder in (exported, exported / "onnx", tmp_path / "5"):
        assert run("--check", folder) == (0, ALL_COME_BACK, "")


def test_check_names_images_that_are_not_exact(run, monkeypatch):
    def decode(self, images=source.Model.decode, **codes):
        found = images(self, **codes)
        return np.concatenate([~found[:2], found[2:]])

    monkeypatch.setattr(source.Model, "decode", decode)
    assert run("--check") == (5, "14 of 16 test images decode exactly; not exact: 0, 1\n", "")


def test_client_returns_the_models_codes_and_switches_in_batches_of_any_size(client, model, eager):
    images = np.random.default_rng(1).integers(0, 256, (10, 8, 8, 3), np.uint8)
    for served in (client.Model(), client.Model(batch=3)):
        assert served.shape == SMALL.image_shape
        codes = encode_exactly(served, model, images)
        # A single z stands for all, as it does in the file.
        one, every = (served.decode(z=z, v=codes["v"]) for z in (codes["z"][:1], np.repeat(codes["z"][:1], 10, 0)))
        np.testing.assert_array_equal(one, every)
    for ours, theirs in zip(served.switch(images[:5], images[5:]), model.switch(images[:5], images[5:]), strict=True):
        assert np.mean(ours != np.asarray(theirs)) < 0.01
        assert np.any(ours != images[:5]) and np.any(ours != images[5:])


def test_client_warns_of_images_far_from_the_training(client, model, monkeypatch):
    images = np.random.default_rng(1).integers(0, 256, (10, 8, 8, 3), np.uint8)
    lengths = np.sqrt(np.square(model.encode(images).v).mean((1, 2, 3)))
    bound = np.sort(lengths)[7:9].mean()
    monkeypatch.setattr(client, "FAR", bound)
    numbers = ", ".join(map(str, np.flatnonzero(lengths > bound)))
    with pytest.warns(UserWarning, match=f"^image {numbers} is unlike the training images"):
        client.Model().encode(images)
    assert source.FAR == of_model.FAR


def test_client_switches_photographs_as_the_command_does(exported, tiny_run, tmp_path):
    """The client runs where neither TensorFlow nor SciPy can be imported; one photograph has a colour profile."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # This profile exchanges red and green.
    profile = profile.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")
    for name, (height, width), options in (("a", (40, 70), {}), ("b", (51, 33), {"icc_profile": profile})):
        pixels = draw_smooth_image(height, width)[:, :, :: 1 if name == "a" else -1] // (1 if name == "a" else 2)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png", **options)
    extra = ["--strength", "0.4"]
    others = ("tensorflow", "keras", "tfdecouple", "export", "onnx", "scipy")
    code = f"import sys, runpy; sys.modules |= dict.fromkeys({others}); sys.argv = sys.argv[1:]"
    code += "; sys.path.insert(0, sys.argv[0].rpartition('/')[0]); runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = ["-I", "-B", "-c", code, exported / "client.py", "--own-size", *extra, "a.png", "b.png"]
    done = run_python(*arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    command = ["switch", "--run", str(tiny_run), *extra, *(str(tmp_path / name) for name in ("a.png", "b.png"))]
    assert main([*command, "--out", str(tmp_path)]) == 0
    for ours, theirs, size in (("ab", "b-z-of-a", (33, 51)), ("ba", "a-z-of-b", (70, 40))):
        one, other = (read_photograph(str(tmp_path / f"{name}.png"), 3, 99).pixels for name in (ours, theirs))
        assert one.shape == (*size[::-1], 3)
        change = np.abs(one.astype(int) - other)
        # ONNX Runtime rounds otherwise than TensorFlow, which moves a few values of the small images by 1.
        assert np.mean(change) < 0.2 and change.max() <= 3
    with Image.open(tmp_path / "ab.png") as one, Image.open(tmp_path / "b.png") as photograph:
        assert np.abs(np.asarray(one).astype(int) - np.asarray(photograph)).mean() > 10


def test_client_samples_images_from_its_seed(client, run, tmp_path):
    served, rng = client.Model(), np.random.default_rng(5)
    shapes = {"z_noise": (4,), "v_noise": (8, 8, 3)}
    given = {name: rng.standard_normal((40, *shape), np.float32) for name, shape in shapes.items()}
    right = served._open_session("sampler").run(None, {**given, "temperature": np.full(40, 0.5, np.float32)})[0]
    # These are more images than run at once.
    np.testing.assert_array_equal(served.sample(40, 0.5, seed=5), right)
    assert np.any(served.sample(2) != served.sample(2))
    assert run("--sample", 3) == (0, "samples.png: 3 new images\n", "")
    assert Image.open(tmp_path / "samples.png").size == (24, 8)


class TestOneLine:
    def test_wrong_arguments_are_refused(self, refused):
        for arguments in (
            *("a.png", "a.png b.png --check", "--sample 1 a.png", "--chek", "--sample 0", "--own-size"),
            *("--own-size a.png b.png --strength nan", "--own-size a.png a.png a.png", "--own-size --check a.png"),
        ):
            assert refused(*arguments.split()), arguments

    def test_picture_that_cannot_be_read_is_refused(self, refused, tmp_path):
        Image.fromarray(np.zeros((8, 8), np.int32)).save(tmp_path / "deep.tif")
        said = {"deep.tif": "the mode I", "absent.png": "no regular file"}
        for name, words in said.items():
            message = refused(name, name)
            assert message.startswith(f"cannot read {name}: ") and words in message

    def test_switch_is_refused_for_unsuitable_models(self, refused, tmp_path):
        unsuitable = [(OF_5_BITS, 3, "or has no z"), (LABELLED, 3, "needs labels, or"), (WITH_Z, 5, "no 5 channels")]
        for texts, channels, words in unsuitable:
            write_onnx_models(tmp_path / "onnx", texts, **{**METADATA, "image_shape": f"[8, 8, {channels}]"})
            line = refused("a.png", "b.png", folder=tmp_path)
            assert words in line and "call Model in a program" in line

    @pytest.mark.parametrize("arguments", [("a.png", "b.png"), ("--check",)], ids=" ".join)
    def test_missing_damaged_and_foreign_files_are_refused(self, refused, tmp_path, arguments):
        cannot_open = f"cannot open encoder.onnx and decoder.onnx of an export in {tmp_path}: "
        assert refused(*arguments, folder=tmp_path).startswith(cannot_open)
        write_onnx_models(tmp_path / "onnx", {**WITH_Z, "decoder": WITHOUT_Z["decoder"]}, **METADATA)
        said = f"cannot encode and decode with the files in {tmp_path / 'onnx'}: "
        assert refused(*arguments, folder=tmp_path).startswith(said)
        (tmp_path / "onnx" / "decoder.onnx").write_bytes(b"no model")
        assert refused(*arguments, folder=tmp_path).startswith(cannot_open)


@pytest.fixture(scope="module")
def sized_files(model, tmp_path_factory):
    """A folder with an encoder and a decoder whose height and width are free."""
    folder, exported = tmp_path_factory.mktemp("any_size"), ExportedModel(model, channels_first=True, any_size=True)
    metadata = {"image_shape": json.dumps(model.config.image_shape), "crop": "largest centre square"}
    for endpoint in list_endpoints(model.config, any_size=True):
        onnx.save(build_onnx(exported, endpoint, metadata), folder / f"{endpoint.onnx}.onnx")
    return folder


def encode_exactly(served, model, images):
    """Asserts that a client encodes images as the model does, and decodes them exactly; returns the codes."""
    codes = served.encode(images)
    for name, right in zip(("z", "v"), model.encode(images)[:2], strict=True):
        np.testing.assert_allclose(codes[name], right, rtol=0, atol=1e-5 * np.abs(right).max())
    np.testing.assert_array_equal(served.decode(**codes), images)
    return codes


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (13, 21), (30, 4)], ids=str)
def test_onnx_files_of_any_size_return_the_models_codes_and_the_same_pixels(sized_files, model, eager, size):
    encode_exactly(source.Model(sized_files), model, random_images(3, (*size, 3)))


def test_the_client_decodes_a_picture_at_its_own_size(sized_files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(source, "FOLDER", sized_files)
    (pixels,) = random_images(1, (11, 7, 3))
    Image.fromarray(pixels).save("a.png")
    assert source.main(["--own-size", "a.png"]) == 0
    assert capsys.readouterr().out == "own_size.png: a.png decoded at 7 x 11; 0 of 231 values are lost\n"
    np.testing.assert_array_equal(np.asarray(Image.open("own_size.png")), pixels)
    monkeypatch.setattr(source.Model, "decode", lambda self, **codes: pixels[None] // 2)
    assert source.main(["--own-size", "a.png"]) == 5


@pytest.mark.slow
def test_all_formats_are_verified_at_three_sizes(tiny_run, tmp_path):
    to = tmp_path / "to"
    export(tiny_run, to, ("savedmodel", "onnx", "litert"), any_size=True)
    card = json.loads((to / "model_card.json").read_text())
    sizes = ["8x8", "5x9", "21x9"]
    assert card["endpoints"].keys() == {"encode", "decode"}
    assert read_vectors(to)["sizes"].tolist() == sizes
    for entry in card["formats"].values():
        assert [*entry["parity"]] == [f"{name} {size}" for size in sizes for name in ("encode", "decode")]
        assert {f"real {size}" for size in sizes} < entry["round_trip"].keys()
        assert all(trip["identical"] == trip["images"] for trip in entry["round_trip"].values())
    assert verify_folder(to) == ([], [])
    images = random_images(2, (14, 19, 3))
    signatures = tf.saved_model.load(str(to / "savedmodel" / "1")).signatures
    decoded = signatures["decode"](**signatures["encode"](images=tf.constant(images)))["images"]
    np.testing.assert_array_equal(decoded[:, :14, :19], images)
