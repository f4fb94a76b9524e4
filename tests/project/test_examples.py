import functools
import os
import pathlib
import shutil

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from helpers.models import random_images
from helpers.places import ROOT, TESTS, read_output, run_command
from helpers.program_inputs import WITHOUT_Z, make_png_header, quantize_to_5_bits, write_onnx_models
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

from export.client import make_test_images
from tfdecouple.data.image_file import read_image

EXAMPLES = ROOT / "examples"
NEEDED = {"node": ("node", "npm"), "cpp": ("g++", "make")}
ENDINGS = {"node": ".png", "cpp": ".ppm"}
COLUMNS, ROWS = 61, 37
CHECKED = "of 16 test images decode exactly\n"

pytestmark = pytest.mark.slow

# ONNX models of 8 x 8 images, as text. Their codes are simple: z is the mean colour, v is the image minus z.
ENCODER = """
    encoder (uint8[batch, 8, 8, 3] images) => (float[batch, 3] z, float[batch, 8, 8, 3] v) {
        pixels = Cast <to = 1> (images)
        z = ReduceMean <axes = [1, 2], keepdims = 0> (pixels)
        mean = ReduceMean <axes = [1, 2], keepdims = 1> (pixels)
        v = Sub (pixels, mean)
    }
"""
DECODER = """
    decoder (float[batch, 3] z, float[batch, 8, 8, 3] v) => (uint8[batch, 8, 8, 3] images) {
        axes = Constant <value = int64[2] {1, 2}> ()
        mean = Unsqueeze (z, axes)
        sum = Add (v, mean)
        lowest = Constant <value = float {0.0}> ()
        highest = Constant <value = float {255.0}> ()
        clipped = Clip (sum, lowest, highest)
        pixels = Round (clipped)
        images = Cast <to = 2> (pixels)
    }
"""


class Example:
    """Runs the command of an example, in a folder, when called with the arguments of the command line."""

    def __init__(self, command, ending, folder):
        self.command, self.ending, self.folder = command, ending, folder

    def __call__(self, *arguments):
        return run_command(*self.command, *arguments, folder=self.folder)

    def save(self, name, pixels):
        Image.fromarray(pixels).save(self.folder / f"{name}{self.ending}")
        return f"{name}{self.ending}"

    def pixels(self, name):
        with Image.open(self.folder / f"{name}{self.ending}") as image:
            assert image.mode == "RGB"
            return np.asarray(image)

    def refuses(self, arguments, *words):
        """Asserts that the example ends with status 2 and one line of error with all `words`, and writes no picture."""
        ended = self(*arguments)
        assert (ended.returncode, ended.stdout) == (2, ""), arguments
        assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1, ended.stderr
        assert all(word in ended.stderr for word in words), ended.stderr
        assert not list(self.folder.glob(f"ab{self.ending}"))


@functools.cache
def built(folder):
    """Builds the C++ example in a copy at `folder`, asserts that no warning occurs, and returns the program's path."""
    shutil.copytree(EXAMPLES / "onnxruntime_cpp", folder, ignore=shutil.ignore_patterns("switch"))
    read_output("make", "CXXFLAGS=-O1 -Wall -Wextra -Wpedantic -Werror", folder=folder)
    return folder / "switch"


@pytest.fixture(params=list(NEEDED))
def example(request, npm_example, tmp_path_factory, tmp_path):
    missing = [name for name in NEEDED[request.param] if shutil.which(name) is None]
    if request.param == "cpp" and not pathlib.Path("/usr/include/onnxruntime/onnxruntime_cxx_api.h").is_file():
        missing.append("libonnxruntime-dev")
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    if request.param == "node":
        command = ["node", npm_example("onnxruntime_node") / "switch.mjs"]
    else:
        command = [built(tmp_path_factory.getbasetemp() / "onnxruntime_cpp")]
    return Example(command, ENDINGS[request.param], tmp_path)


def mean_colours(folder, highest=255, encoder=ENCODER, shape="8, 8, 3", **metadata):
    texts = {"encoder": encoder, "decoder": DECODER.replace("255.0", f"{highest}.0")}
    for name, text in texts.items():
        texts[name] = text.replace("8, 8, 3]", f"{shape}]").replace("batch, 3]", f"batch, {shape[-1]}]")
    return write_onnx_models(folder / "models", texts, **metadata)


class TestExample:
    def test_example_switches_as_the_onnx_models_do(self, example, tmp_path):
        folder = mean_colours(tmp_path)
        open_model = functools.partial(onnxruntime.InferenceSession, providers=["CPUExecutionProvider"])
        encoder, decoder = (open_model(folder / f"{name}.onnx") for name in ("encoder", "decoder"))
        images = random_images(2) // np.array([1, 3], np.uint8)[:, None, None, None]
        a, b = (example.save(name, image) for name, image in zip("pq", images, strict=True))
        z, v = encoder.run(["z", "v"], {"images": images})
        (expected,) = decoder.run(["images"], {"z": z, "v": v[::-1]})
        assert np.mean(expected != images[::-1]) > 0.9
        ended = example(folder, a, b)
        lines = [f"{name}: exactly the same after decoding" for name in (a, b)]
        lines += [f"ab{example.ending}: z of {a}, v of {b}", f"ba{example.ending}: z of {b}, v of {a}"]
        assert (ended.returncode, ended.stderr, ended.stdout.splitlines()) == (0, "", lines)
        for name, right in zip(("ab", "ba"), expected, strict=True):
            np.testing.assert_array_equal(example.pixels(name), right)

    @pytest.mark.parametrize("n_bits", [8, 5])
    def test_example_counts_values_that_differ_after_decoding(self, example, tmp_path, n_bits):
        """With 5 bits, the example compares values after rounding them down to multiples of 8, the model's bins."""
        highest = 200 if n_bits == 8 else 240
        encoder = ENCODER if n_bits == 8 else quantize_to_5_bits(ENCODER)
        folder = mean_colours(tmp_path, highest, encoder, n_bits=str(n_bits))
        bright = random_images(1)[0]
        lost = np.count_nonzero(bright > (highest if n_bits == 8 else 247))
        assert lost > 0
        ended = example(folder, example.save("p", bright), example.save("q", bright // 2))
        lines = [f"p{example.ending}: {lost} of {bright.size} values differ after decoding"]
        assert ended.stdout.splitlines()[:2] == [*lines, f"q{example.ending}: exactly the same after decoding"]

    def test_check_of_an_example_counts_exactly_decoded_images(self, example, exported, tmp_path):
        of_5_bits = {"encoder": quantize_to_5_bits(ENCODER), "n_bits": "5"}
        for make in (
            lambda: exported / "onnx",
            lambda: mean_colours(tmp_path, **of_5_bits),
            lambda: write_onnx_models(tmp_path / "without z", WITHOUT_Z),
        ):
            ended = example(make(), "--check")
            assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"16 {CHECKED}", "")
        exact = np.sum(make_test_images(8, 8, 3).max((1, 2, 3)) <= 253)
        ended = example(mean_colours(tmp_path, 253), "--check")
        assert exact < 16 and (ended.returncode, ended.stdout) == (5, f"{exact} {CHECKED}")

    def test_example_reads_pictures_of_any_size_as_training_does(self, example, exported, tmp_path):
        """A picture that is switched with itself stays the same, so the output shows how the example read the file."""
        picture = example.save("p", random_images(1, COLUMNS)[0][:ROWS])
        Image.open(tmp_path / picture).save(tmp_path / "right.png")
        for crop in (0, 20):
            assert example(exported / "onnx", picture, picture, "--crop", crop).returncode == 0
            right = read_image(str(tmp_path / "right.png"), (8, 8, 3), crop)
            np.testing.assert_array_equal(example.pixels("ab"), right)

    def test_example_refuses_wrong_arguments_and_pictures_in_one_line(self, example, exported, tmp_path):
        folder, good = exported / "onnx", example.save("p", random_images(1, 8)[0])
        bad = f"x{example.ending}"
        example.refuses([folder, good], "usage: ")
        crop = ["--crop=-5"] if example.ending == ".png" else ["--crop", "-5"]
        example.refuses([folder, good, good, *crop], "-5")
        example.refuses([folder, good, good, "--chek"], "--chek")
        example.refuses([folder, good, "--check"], "usage: ")
        example.refuses([folder, good, "absent.png"], "cannot read the image absent.png")
        example.refuses(["absent", good, good], f"cannot open the model {os.path.join('absent', 'encoder.onnx')}")
        whole = (tmp_path / good).read_bytes()
        contents = [b"not an image", whole[: len(whole) // 2], b""]
        if example.ending == ".ppm":
            contents += [b"P3\n8 8\n255\n", b"P6\n8 8\n65535\n" + whole]
            contents += [b"P6\n8193 8192\n255\n" + bytes(9), b"P6\n8 eight\n255\n"]
        else:
            vectors = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'
            contents += [make_png_header(8193, 8192), vectors]
        for content in contents:
            (tmp_path / bad).write_bytes(content)
            example.refuses([folder, bad, good], f"cannot read the image {bad}: ")
        (tmp_path / bad).unlink()
        os.mkfifo(tmp_path / bad)
        example.refuses([folder, bad, good], f"cannot read the image {bad}: it is no regular file")


# Relative to the largest value: sums may be taken in another order. With TF_ENABLE_ONEDNN_OPTS=0 all bits are equal.
TOLERANCE = 1e-6


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler: there is no cc on the PATH")
def test_c_program_computes_the_images_and_codes_of_python(exported, tmp_path):
    program, libraries = tmp_path / "round_trip", pathlib.Path(tf.sysconfig.get_lib())
    command = ["cc", "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", TESTS / "c" / "round_trip.c"]
    # As system headers, so that only our own code gives warnings.
    command += ["-o", program, "-isystem", tf.sysconfig.get_include()]
    command += [libraries / "libtensorflow_cc.so.2", libraries / "libtensorflow_framework.so.2"]
    read_output(*command, f"-Wl,-rpath,{libraries}")
    saved_model, images = exported / "savedmodel" / "1", random_images(17)
    message = saved_model_pb2.SavedModel.FromString((saved_model / "saved_model.pb").read_bytes())
    encode, decode = (message.meta_graphs[0].signature_def[name] for name in ("encode", "decode"))
    tensors = [encode.inputs["images"], encode.outputs["v"], decode.inputs["v"], decode.outputs["images"]]
    # The program takes the names of tensors in this order.
    names = [info.name for info in [*tensors, encode.outputs["z"], decode.inputs["z"]]]
    images.tofile(tmp_path / "input")
    printed = read_output(program, saved_model, tmp_path / "input", tmp_path, *names, TF_CPP_MIN_LOG_LEVEL="3")
    assert printed == f"17 images: 0 of {images.size} subpixels differ\n"
    assert (tmp_path / "images").read_bytes() == images.tobytes()
    codes = tf.saved_model.load(saved_model).signatures["encode"](images=tf.constant(images))
    assert {"z", "v"} == codes.keys()
    for name, code in codes.items():
        of_c, of_python = np.fromfile(tmp_path / name, np.float32).reshape(code.shape), code.numpy()
        assert np.max(np.abs(of_c - of_python)) <= TOLERANCE * np.max(np.abs(of_python)), name
