"""The example for ONNX Runtime in Node.js, run as a user would."""

import json
import os
import re
import shutil
import subprocess

import numpy as np
import onnxruntime
import pytest
from helpers.models import random_images
from helpers.onnx_texts import WITHOUT_Z, in_5_bits, write_models
from helpers.picture_files import claiming
from helpers.places import PATIENCE, ROOT, user_environment
from PIL import Image

EXAMPLES = ROOT / "examples"
NODE_EXAMPLE = EXAMPLES / "onnxruntime_node"
ABSENT = [name for name in ("node", "npm") if shutil.which(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(ABSENT), reason=f"{' and '.join(ABSENT)} not installed"),
]

# Models of 8 x 8 images with codes of known values: z is the mean colour, v what is left of the image.
ENCODER = """
    encoder (uint8[batch, 8, 8, 3] images) => (float[batch, 3] z, float[batch, 8, 8, 3] v) {
        pixels = Cast <to = 1> (images)
        z = ReduceMean <axes = [1, 2], keepdims = 0> (pixels)
        mean = ReduceMean <axes = [1, 2], keepdims = 1> (pixels)
        v = Sub (pixels, mean)
    }
"""
# Up to a brightness: with 200 it loses what is brighter.
DECODER = """
    decoder (float[batch, 3] z, float[batch, 8, 8, 3] v) => (uint8[batch, 8, 8, 3] images) {
        axes = Constant <value = int64[2] {1, 2}> ()
        mean = Unsqueeze (z, axes)
        sum = Add (v, mean)
        lowest = Constant <value = float {0.0}> ()
        highest = Constant <value = float {BRIGHTEST.0}> ()
        clipped = Clip (sum, lowest, highest)
        pixels = Round (clipped)
        images = Cast <to = 2> (pixels)
    }
"""
ENCODER_OF_5_BITS = in_5_bits(ENCODER)
ENCODER_WITH_LABELS = ENCODER.replace("images) =>", "images, int32[batch] labels) =>")


@pytest.fixture
def switch(npm_example, tmp_path):
    """Runs the example in `tmp_path` with the arguments given, and returns the ended process."""
    command = ["node", npm_example("onnxruntime_node") / "switch.mjs"]

    def run(*arguments):
        return subprocess.run(
            [*command, *arguments],
            cwd=tmp_path,
            env=user_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    return run


def open_models(folder):
    """The folder of ONNX files, and sessions of its encoder and its decoder."""
    sessions = (
        onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("encoder", "decoder")
    )
    return folder, *sessions


@pytest.fixture(scope="module")
def models(exported):
    return open_models(exported / "onnx")


@pytest.fixture(scope="module")
def size(models):
    return models[1].get_inputs()[0].shape[1]


def known_images(size):
    """The images of `--check`, written down once more."""
    number, y, x, channel = np.indices((16, size, size, 3))
    wave = 256 * ((number % 4 + 1) * x + (number // 4 + 1) * y) // size + 85 * channel
    return np.minimum(abs(wave % 512 - 256), 255)


def of_shape(text, shape):
    """A model of mean colours for images of another shape, "height, width, channels", and of any brightness."""
    text = text.replace("8, 8, 3]", f"{shape}]").replace("batch, 3]", f"batch, {shape[-1]}]")
    return text.replace("BRIGHTEST", "255")


def write_pair(folder, encoder, decoder, **metadata):
    return write_models(folder, {"encoder": encoder, "decoder": decoder}, **metadata)


def pixels_of(path):
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def succeeded(ended):
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


def refused(ended, folder, *words):
    """Asserts that an example ended with one line that has all the words, and wrote nothing."""
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1 and ended.stderr.endswith("\n"), ended.stderr
    assert ended.stderr.startswith("error: ")
    assert all(word in ended.stderr for word in words), ended.stderr
    assert not list(folder.glob("*b*.png"))


class TestSwitch:
    # The tiny model's z changes no pixel; that of the model of mean colours changes nearly all.
    @pytest.mark.parametrize("of", ["exported", "mean colours"])
    def test_gives_what_the_models_give(self, switch, models, tmp_path, of):
        if of == "mean colours":
            models = open_models(write_pair(tmp_path / "models", ENCODER, DECODER.replace("BRIGHTEST", "255")))
        folder, encoder, decoder = models
        images = random_images(2, encoder.get_inputs()[0].shape[1]) // np.array([1, 3], np.uint8)[:, None, None, None]
        for name, image in zip("pq", images, strict=True):
            Image.fromarray(image).save(tmp_path / f"{name}.png")
        z, v = encoder.run(["z", "v"], {"images": images})
        expected = decoder.run(["images"], {"z": z, "v": v[::-1]})[0]
        if of == "mean colours":
            assert np.mean(expected != images[::-1]) > 0.9, "z must have an effect"

        assert succeeded(switch(folder, "p.png", "q.png")) == [
            "p.png: exactly the same after decoding",
            "q.png: exactly the same after decoding",
            "ab.png: z of p.png, v of q.png",
            "ba.png: z of q.png, v of p.png",
        ]
        for name, wanted in zip(("ab.png", "ba.png"), expected, strict=True):
            differing = np.count_nonzero(pixels_of(tmp_path / name) != wanted)
            assert differing == 0, f"{differing} of {wanted.size} values of {name} differ"

    def test_below_8_bits_the_levels_of_a_picture_come_back(self, switch, tmp_path):
        decoder = DECODER.replace("BRIGHTEST", "240")
        folder = write_pair(tmp_path / "models", ENCODER_OF_5_BITS, decoder, n_bits="5", run="tiny")
        pixels = random_images(1)[0]
        for name, image in {"p.png": pixels // 2, "q.png": pixels}.items():
            Image.fromarray(image).save(tmp_path / name)
        lost = np.count_nonzero(pixels >= 248)
        assert lost > 0
        assert succeeded(switch(folder, "p.png", "q.png"))[:2] == [
            "p.png: exactly the same after decoding",
            f"q.png: {lost} of {pixels.size} values differ after decoding",
        ]

    def test_says_what_is_lost(self, switch, tmp_path):
        folder = write_pair(tmp_path / "models", ENCODER, DECODER.replace("BRIGHTEST", "200"))
        bright, dark = random_images(1)[0], random_images(1)[0] // 2
        Image.fromarray(bright).save(tmp_path / "p.png")
        Image.fromarray(dark).save(tmp_path / "q.png")
        lost = np.count_nonzero(bright > 200)
        assert 0 < lost < bright.size
        assert succeeded(switch(folder, "p.png", "q.png"))[:2] == [
            f"p.png: {lost} of {bright.size} values differ after decoding",
            "q.png: exactly the same after decoding",
        ]


class TestCheck:
    """`--check` sends known images through."""

    def test_a_model_that_gives_them_back(self, switch, models, tmp_path):
        assert succeeded(switch(models[0], "--check")) == ["16 of 16 known images come back exactly"]

    def test_a_model_without_z(self, switch, tmp_path):
        folder = write_models(tmp_path / "models", WITHOUT_Z)
        assert succeeded(switch(folder, "--check")) == ["16 of 16 known images come back exactly"]

    @pytest.mark.parametrize("brightest", [255, 240])
    def test_a_model_of_5_bits(self, switch, tmp_path, brightest):
        decoder = DECODER.replace("BRIGHTEST", str(brightest))
        folder = write_pair(tmp_path / "models", ENCODER_OF_5_BITS, decoder, run="tiny", n_bits="5", step="9")
        kept = np.sum(known_images(8).max((1, 2, 3)) < brightest + 8)
        assert (kept == 16) == (brightest == 255)
        ended = switch(folder, "--check")
        assert ended.stdout == f"{kept} of 16 known images come back exactly\n", ended.stderr
        assert (ended.returncode, ended.stderr) == (int(kept < 16), "")

    def test_what_is_lost_is_counted_and_ends_with_status_1(self, switch, tmp_path):
        # Only the images whose colours do not reach the brightest levels come back.
        folder = write_pair(tmp_path / "models", ENCODER, DECODER.replace("BRIGHTEST", "253"))
        ended = switch(folder, "--check")
        said = re.fullmatch(r"(\d+) of 16 known images come back exactly\n", ended.stdout)
        assert said and int(said[1]) == np.sum(known_images(8).max((1, 2, 3)) <= 253) < 16, ended.stdout
        assert (ended.returncode, ended.stderr) == (1, "")

    def test_it_takes_no_images(self, switch, models, tmp_path):
        refused(switch(models[0], "p.png", "--check"), tmp_path, "usage: ")


class TestReading:
    """An image switched with itself is the image as the example read it: its codes give the very same pixels."""

    @pytest.mark.parametrize(
        "kind",
        ["grey", "grey of 16 bits", "transparent", "palette", "transparent palette", "on its side", "wide", "tall"],
    )
    def test_keeps_the_pixels_of_a_square_of_the_right_size(self, switch, models, size, tmp_path, kind):
        pixels = random_images(1, size)[0]
        image, options = Image.fromarray(pixels), {}
        if kind == "grey":
            image = image.convert("L")
            pixels = np.repeat(np.asarray(image)[..., None], 3, axis=2)
        elif kind == "grey of 16 bits":
            # The lower byte is rounded down.
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 256 + 255)
            pixels = np.repeat(pixels[..., :1], 3, axis=2)
        elif kind == "transparent":
            image.putalpha(Image.fromarray(pixels[..., 0]))
        elif "palette" in kind:
            image = image.quantize(16)
            pixels = np.asarray(image.convert("RGB"))
            options = {"transparency": bytes(range(0, 160, 10))} if "transparent" in kind else {}
        elif kind == "on its side":
            exif = Image.Exif()
            exif[0x0112] = 6  # orientation: to be turned by 90 degrees clockwise
            options = {"exif": exif}
            pixels = np.rot90(pixels, -1)
        else:
            # 7 pixels more than the square: 3 before it and 4 after it.
            around = [(0, 0), (3, 4), (0, 0)] if kind == "wide" else [(3, 4), (0, 0), (0, 0)]
            image = Image.fromarray(np.pad(pixels, around, constant_values=255))
        image.save(tmp_path / "p.png", **options)
        succeeded(switch(models[0], "p.png", "p.png"))
        np.testing.assert_array_equal(pixels_of(tmp_path / "ab.png"), pixels)

    def test_crop_keeps_the_middle(self, switch, models, size, tmp_path):
        pixels = random_images(1, size + 7)[0]
        Image.fromarray(pixels).save(tmp_path / "p.png")
        succeeded(switch(models[0], "p.png", "p.png", "--crop", str(size)))
        np.testing.assert_array_equal(pixels_of(tmp_path / "ab.png"), pixels[3 : 3 + size, 3 : 3 + size])

    def test_turns_a_photograph_upright_before_it_is_cut(self, switch, models, size, tmp_path):
        # Upright, it has 3 red rows above the square and 4 below; cut before it is turned, one of them would get in.
        upright = np.full([size + 7, size, 3], [200, 0, 0], np.uint8)
        square = upright[3 : 3 + size]
        square[: size // 2], square[size // 2 :] = [0, 200, 0], [0, 0, 200]
        exif = Image.Exif()
        exif[0x0112] = 8  # orientation: to be turned by 90 degrees anticlockwise
        Image.fromarray(np.rot90(upright, -1)).save(tmp_path / "p.jpg", exif=exif, quality=100, subsampling=0)
        succeeded(switch(models[0], "p.jpg", "p.jpg"))
        # JPEG is not exact, but this near.
        assert np.abs(pixels_of(tmp_path / "ab.png").astype(int) - square).max() <= 10

    def test_shrinks_without_aliasing_or_shift(self, switch, models, size, tmp_path):
        # A ramp under a chequerboard as fine as pixels: a filter too narrow would let that through.
        factor = 8
        ramp = np.linspace(60, 180, size * factor)
        chequers = np.indices([size * factor] * 2).sum(0) % 2 * 80 - 40
        fine = np.stack([ramp[:, None] + chequers, ramp[None] + chequers, chequers + 128], axis=-1)
        Image.fromarray(fine.round().astype(np.uint8)).save(tmp_path / "p.png")
        succeeded(switch(models[0], "p.png", "p.png"))
        coarse = ramp.reshape(size, factor).mean(1)
        wanted = np.stack(np.broadcast_arrays(coarse[:, None], coarse[None], 128.0), axis=-1)
        # At the border the filter has fewer pixels to average.
        inner = slice(1, -1)
        assert np.abs(pixels_of(tmp_path / "ab.png") - wanted)[inner, inner].max() <= 2


class TestRefusals:
    @pytest.fixture
    def picture(self, size, tmp_path):
        Image.fromarray(random_images(1, size)[0]).save(tmp_path / "p.png")
        return "p.png"

    def test_too_few_arguments(self, switch, tmp_path):
        refused(switch("folder", "p.png"), tmp_path, "usage: ", "FOLDER")

    def test_a_crop_that_is_none(self, switch, models, picture, tmp_path):
        refused(switch(models[0], picture, picture, "--crop=-5"), tmp_path, "-5", "usage: ")

    def test_no_such_option(self, switch, models, picture, tmp_path):
        refused(switch(models[0], picture, picture, "--chek"), tmp_path, "--chek", "usage: ")

    def test_no_such_image(self, switch, models, picture, tmp_path):
        refused(switch(models[0], picture, "absent.png"), tmp_path, "cannot read the image absent.png")

    def test_no_image(self, switch, models, picture, tmp_path):
        (tmp_path / "text.png").write_text("not an image")
        refused(switch(models[0], "text.png", picture), tmp_path, "cannot read the image text.png")

    def test_drawing_that_could_name_other_files(self, switch, models, picture, tmp_path):
        (tmp_path / "x.png").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>')
        refused(switch(models[0], "x.png", picture), tmp_path, "cannot read the image x.png")

    def test_too_many_pixels(self, switch, models, picture, tmp_path):
        (tmp_path / "x.png").write_bytes(claiming(12_000, 12_000))
        refused(switch(models[0], "x.png", picture), tmp_path, "cannot read the image x.png", "pixel")

    def test_a_pipe(self, switch, models, picture, tmp_path):
        os.mkfifo(tmp_path / "x.png")
        refused(switch(models[0], "x.png", picture), tmp_path, "cannot read the image x.png: it is no regular file")

    def test_half_an_image(self, switch, models, picture, tmp_path):
        whole = tmp_path / "whole.jpg"
        Image.fromarray(random_images(1, 64)[0]).save(whole)
        (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        refused(switch(models[0], "half.jpg", picture), tmp_path, "cannot read the image half.jpg")

    def test_no_such_model(self, switch, picture, tmp_path):
        path = os.path.join("absent", "encoder.onnx")
        refused(switch("absent", picture, picture), tmp_path, f"cannot open the model {path}")

    def test_no_model(self, switch, models, picture, tmp_path):
        folder = tmp_path / "models"
        folder.mkdir()
        shutil.copy(models[0] / "encoder.onnx", folder)
        (folder / "decoder.onnx").write_bytes(b"not a model")
        refused(switch(folder, picture, picture), tmp_path, f"cannot open the model {folder / 'decoder.onnx'}")

    def test_a_model_without_z(self, switch, picture, tmp_path):
        folder = write_models(tmp_path / "models", WITHOUT_Z)
        refused(
            switch(folder, picture, picture),
            tmp_path,
            str(folder / "encoder.onnx"),
            "without z there is nothing to switch",
        )

    def test_a_model_that_encodes_by_labels(self, switch, picture, tmp_path):
        folder = write_pair(tmp_path / "models", ENCODER_WITH_LABELS, DECODER.replace("BRIGHTEST", "255"))
        for arguments in (["--check"], [picture, picture]):
            ended = switch(folder, *arguments)
            refused(ended, tmp_path, f"{folder / 'encoder.onnx'} takes images, labels, ", "client.py")

    def test_a_model_that_takes_other_numbers(self, switch, tmp_path):
        encoder = WITHOUT_Z["encoder"].replace("uint8", "float").replace("Cast <to = 1>", "Identity")
        folder = write_models(tmp_path / "models", {**WITHOUT_Z, "encoder": encoder})
        refused(switch(folder, "--check"), tmp_path, f"cannot encode with {folder / 'encoder.onnx'}: ")

    def test_a_model_of_other_channels(self, switch, picture, tmp_path):
        folder = write_pair(tmp_path / "models", *(of_shape(text, "8, 8, 5") for text in (ENCODER, DECODER)))
        refused(switch(folder, picture, picture), tmp_path, f"{folder / 'encoder.onnx'} takes ", "5")

    @pytest.mark.parametrize("shape", ["8, 8, 1", "8, 12, 3"])
    def test_grey_and_rectangles(self, switch, picture, tmp_path, shape):
        folder = write_pair(tmp_path / "models", *(of_shape(text, shape) for text in (ENCODER, DECODER)))
        for arguments in (["--check"], [picture, picture]):
            said = f"{folder / 'encoder.onnx'} takes images [{shape}], and this example squares of RGB alone; "
            refused(switch(folder, *arguments), tmp_path, said, "client.py")

    def test_two_halves_of_different_models(self, switch, models, picture, tmp_path):
        folder = write_pair(tmp_path / "models", ENCODER, DECODER.replace("BRIGHTEST", "255"))
        shutil.copy(models[0] / "decoder.onnx", folder)
        refused(switch(folder, picture, picture), tmp_path, f"cannot decode with {folder / 'decoder.onnx'}")


def test_node_names_exact_versions():
    package = json.loads((NODE_EXAMPLE / "package.json").read_text())
    assert package["private"] is True and package["type"] == "module"
    assert package["dependencies"].keys() == {"onnxruntime-node", "sharp"}
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in package["dependencies"].values())
