"""One way to read an image: training, commands and every client make the same pixels of the same file."""

import json
import shutil
import types

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import TINY, random_images
from helpers.places import ROOT, read_output
from helpers.program_inputs import SIZE, load_program, write_picture_files
from PIL import Image

from tfdecouple.cli.run_images import read_image_files
from tfdecouple.config import Config, DataConfig
from tfdecouple.data.image_file import crop_and_resize, crop_and_resize_tensor, read_image
from tfdecouple.data.tfds import decode_tfds_image
from tfdecouple.model.quantizer import Quantizer

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_picture_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def wanted(files):
    return {name: read_image(str(path), (SIZE, SIZE, 3), 0) for name, path in files.items()}


def assert_same(pixels, right, name, levels=0):
    change = np.abs(pixels.reshape(right.shape).astype(int) - right)
    assert change.max() <= levels, f"{name}: {(change > 0).mean():.1%} differ, by up to {change.max()}"


def test_resizing_filter_is_bilinear_with_antialiasing():
    """By its definition, in float64 and rounded once: an independent statement of what the card promises."""
    image = random_images(1, 61)[0]
    for size in (7, SIZE, 90):
        scale = len(image) / size
        centres = (np.arange(size)[:, None] + 0.5) * scale
        weights = np.maximum(0, 1 - np.abs(np.arange(len(image)) + 0.5 - centres) / max(scale, 1))
        weights /= weights.sum(1, keepdims=True)
        right = np.einsum("yi,xj,ijc->yxc", weights, weights, image.astype(np.float64))
        # Rounded twice, a value is off by at most one half and, under weights that sum to one, one half more.
        assert np.abs(crop_and_resize(image, (size, size, 3), 0) - right).max() < 1.001


@pytest.mark.parametrize("crop", [0, 20])
def test_python_clients_read_images_as_training_does(files, crop):
    served = load_program(EXAMPLES / "tf_serving" / "client.py")
    client = load_program(ROOT / "export" / "client.py")
    for name, path in files.items():
        # Squares of RGB, and grey rectangles.
        for shape in ((SIZE, SIZE, 3), (SIZE, 12, 1)):
            right = read_image(str(path), shape, crop)
            of_shape = types.SimpleNamespace(shape=shape, crop=crop)
            assert_same(client.Model.fit(of_shape, client.read_picture(path, shape[-1])), right, name)
            assert_same(served.read_picture(path, shape, crop), right, name)


def test_commands_read_images_as_training_does(files, wanted):
    model = types.SimpleNamespace(quantizer=Quantizer(8))
    config = Config(name="tiny", model=TINY, data=DataConfig(source="cifar10"))
    run = types.SimpleNamespace(model=model, config=config, note=lambda: "")
    images = read_image_files(run, [str(path) for path in files.values()]).pixels
    for name, pixels in zip(files, images, strict=True):
        assert_same(pixels, wanted[name], name)


def test_tensorflow_datasets_are_read_as_image_files_are(files, wanted):
    """All but what TFDS' own features do not hold, such as palettes, and EXIF data, which it does not heed."""
    tfds = pytest.importorskip("tensorflow_datasets")
    colours = ("exact.png", "odd.png", "tall.png", "one.png", "photograph.jpg", "photograph_444.jpg", "progressive.jpg")
    for names, channels in ((colours, 3), (("grey.png", "grey.jpg"), 1)):
        feature = tfds.features.Image(shape=(None, None, channels))
        encoded = tf.data.Dataset.from_tensor_slices([files[name].read_bytes() for name in names])

        def read(content, feature=feature):
            return crop_and_resize_tensor(decode_tfds_image(content, feature), (SIZE, SIZE, 3), 0)

        read_images = encoded.map(read, tf.data.AUTOTUNE).as_numpy_iterator()
        for name, pixels in zip(names, read_images, strict=True):
            assert_same(pixels, wanted[name], name)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("node") is None, reason="node not installed")
def test_javascript_filter_gives_the_bytes_of_the_python_filter(tmp_path):
    program = tmp_path / "resize.mjs"
    shutil.copyfile(ROOT / "export" / "page" / "resize.js", tmp_path / "filter.mjs")
    program.write_text(
        'import { readFileSync, writeFileSync } from "node:fs";\n'
        'import { resizeSquare } from "./filter.mjs";\n'
        'for (const [name, side, size] of JSON.parse(readFileSync("cases.json")))\n'
        "  writeFileSync(`${name}.out`, resizeSquare(readFileSync(name), side, size));\n"
    )
    rng = np.random.default_rng(0)
    cases = [(int(side), int(size)) for side, size in rng.integers(1, 150, (60, 2))]
    cases += [(1, 1), (32, 32), (1, 5), (5, 1), (64, 32), (2000, 32), (999, 256), (33, 32), (31, 32)]
    right = []
    for number, (side, size) in enumerate(cases):
        # Values at both ends find sums that leave the range.
        image = rng.integers(0, 256, (side, side, 3), np.uint8) if number % 2 else rng.choice([0, 255], (side, side, 3))
        image = image.astype(np.uint8)
        image.tofile(tmp_path / str(number))
        right.append(crop_and_resize(image, (size, size, 3), 0))
    listed = [[str(number), side, size] for number, (side, size) in enumerate(cases)]
    (tmp_path / "cases.json").write_text(json.dumps(listed))
    read_output("node", program, folder=tmp_path)
    for number, image in enumerate(right):
        assert_same(np.fromfile(tmp_path / f"{number}.out", np.uint8), image, str(cases[number]))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm not installed")
def test_node_example_reads_images_as_training_does(files, wanted, exported, npm_example, tmp_path):
    example = npm_example("onnxruntime_node") / "switch.mjs"
    for name, path in files.items():
        # An image switched with itself is the image as the example read it.
        assert "exactly the same" in read_output("node", example, exported / "onnx", path, path, folder=tmp_path), name
        assert_same(np.asarray(Image.open(tmp_path / "ab.png")), wanted[name], name)
