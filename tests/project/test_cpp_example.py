"""The example for ONNX Runtime in C++, compiled and run as a user would."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import numpy as np
import pytest
from helpers.models import random_images
from helpers.onnx_texts import WITHOUT_Z, in_5_bits, write_models
from helpers.places import PATIENCE, ROOT
from PIL import Image

from tfdecouple.data.image_file import read_image

EXAMPLE = ROOT / "examples" / "onnxruntime_cpp"
MISSING = [name for name in ("g++", "make") if shutil.which(name) is None]
if not pathlib.Path("/usr/include/onnxruntime/onnxruntime_cxx_api.h").is_file():
    MISSING.append("libonnxruntime-dev")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not installed"),
]

# What is brighter than 253 is lost.
LOSSY = {
    **WITHOUT_Z,
    "decoder": WITHOUT_Z["decoder"].replace(
        "images = Cast <to = 2> (v)",
        """
        lowest = Constant <value = float {0.0}> ()
        highest = Constant <value = float {253.0}> ()
        clipped = Clip (v, lowest, highest)
        images = Cast <to = 2> (clipped)
        """,
    ),
}


@pytest.fixture(scope="module")
def switch(tmp_path_factory):
    """Runs the program, built without a warning, in a folder."""
    to = tmp_path_factory.mktemp("cpp") / "onnxruntime_cpp"
    folder = shutil.copytree(EXAMPLE, to, ignore=shutil.ignore_patterns("switch"))
    make = ["make", "CXXFLAGS=-O1 -Wall -Wextra -Wpedantic -Werror"]
    built = subprocess.run(make, cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr

    def run(where, *arguments):
        command = [folder / "switch", *map(str, arguments)]
        return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=PATIENCE)

    return run


@pytest.fixture(scope="module")
def without_z(tmp_path_factory):
    """Files of the models that lose the brightest values."""
    return write_models(tmp_path_factory.mktemp("models"), LOSSY)


def test_known_images_come_back(switch, exported, without_z, tmp_path):
    done = switch(tmp_path, exported / "onnx", "--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "16 of 16 known images come back exactly\n", "")
    lossy = switch(tmp_path, without_z, "--check")
    number, y, x, channel = np.indices((16, 8, 8, 3))
    known = np.minimum(abs((256 * ((number % 4 + 1) * x + (number // 4 + 1) * y) // 8 + 85 * channel) % 512 - 256), 255)
    kept = np.sum(known.max((1, 2, 3)) <= 253)
    assert kept < 16
    assert (lossy.returncode, lossy.stdout) == (1, f"{kept} of 16 known images come back exactly\n")


def test_a_model_of_5_bits_gives_multiples_of_8_back(switch, tmp_path):
    texts = {**LOSSY, "encoder": in_5_bits(LOSSY["encoder"])}
    write_models(tmp_path, texts, n_bits="5")
    done = switch(tmp_path, tmp_path, "--check")
    assert (done.returncode, done.stdout) == (0, "16 of 16 known images come back exactly\n"), done.stderr


def test_a_model_that_encodes_by_labels_is_refused(switch, tmp_path):
    encoder = WITHOUT_Z["encoder"].replace("images) =>", "images, int32[batch] labels) =>")
    write_models(tmp_path, {**WITHOUT_Z, "encoder": encoder})
    done = switch(tmp_path, tmp_path, "--check")
    assert done.returncode == 2 and "encoder.onnx takes images, labels, and this example" in done.stderr
    assert done.stderr.count("\n") == 1


def test_switches_pictures_of_any_size_read_to_the_byte(switch, exported, tmp_path):
    wide = random_images(2, 61)[0][:37]
    for name, pixels in {"a": wide, "b": random_images(1, 8, seed=3)[0]}.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.ppm")
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    done = switch(tmp_path, exported / "onnx", "a.ppm", "b.ppm")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "a.ppm: exactly the same after decoding",
        "b.ppm: exactly the same after decoding",
        "ab.ppm: z of a.ppm, v of b.ppm",
        "ba.ppm: z of b.ppm, v of a.ppm",
    ]
    # Switched with itself it is the image as the program read it.
    for crop in (0, 20):
        assert switch(tmp_path, exported / "onnx", "a.ppm", "a.ppm", "--crop", crop).returncode == 0
        with Image.open(tmp_path / "ab.ppm") as made:
            np.testing.assert_array_equal(np.asarray(made), read_image(str(tmp_path / "a.png"), 8, crop))


@pytest.mark.parametrize("shape", ["8, 12, 1", "8, 12, 3", "8, 8, 1", "8, 8, 5"])
def test_models_of_other_shapes_are_refused(switch, tmp_path, shape):
    write_models(tmp_path, {name: text.replace("8, 8, 3", shape) for name, text in WITHOUT_Z.items()})
    done = switch(tmp_path, tmp_path, "--check")
    assert done.returncode == 2 and f"takes images [{shape}], and this example squares of RGB alone" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_cannot_be_used_is_a_line(switch, exported, without_z, tmp_path):
    pixels = random_images(1, 8)[0].tobytes()
    (tmp_path / "a.ppm").write_bytes(b"P6 # a comment\n8 8\n255\n" + pixels)
    files = {
        "short.ppm": (b"P6\n8 8\n255\n" + pixels[:-1], "it ends before its last pixel"),
        "text.ppm": (b"P3\n8 8\n255\n", "it is no binary PPM file"),
        "deep.ppm": (b"P6\n8 8\n65535\n" + 2 * pixels, "its largest value is 65535"),
        "claims.ppm": (b"P6\n99999 99999\n255\n", "it has 9999800001 pixels; at most 2^27"),
        "header.ppm": (b"P6\n8 eight\n255\n", "its header is damaged"),
    }
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    onnx_files = exported / "onnx"
    tried = [
        ((onnx_files, "a.ppm", name), f"cannot read the image {name}: {words}") for name, (_, words) in files.items()
    ]
    tried += [
        ((onnx_files, "a.ppm", "absent.ppm"), "cannot read the image absent.ppm: it is no regular file"),
        ((onnx_files, "a.ppm"), "usage: "),
        ((onnx_files, "a.ppm", "a.ppm", "--crop", "-5"), "--crop is -5"),
        ((onnx_files, "--chek"), "there is no option --chek"),
        (("absent", "--check"), "cannot open the model absent/encoder.onnx"),
        ((without_z, "a.ppm", "a.ppm"), "without z there is nothing to switch"),
    ]
    for arguments, words in tried:
        done = switch(tmp_path, *arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and words in done.stderr, done.stderr
    # A comment in the header is no fault.
    assert switch(tmp_path, onnx_files, "a.ppm", "a.ppm").returncode == 0
