"""Tests of the SavedModel from C: TensorFlow's C++ loader gives what Python gives, and says what is wrong."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from helpers.places import TESTS
from helpers.variants import VARIANTS, fresh
from tensorflow.core.protobuf import saved_model_pb2

from export.deployed.deployed_model import DeployedModel
from export.endpoints import endpoints
from export.formats.saved_model import save_saved_model

COMPILER = shutil.which("cc")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="no C compiler: there is no cc on the PATH"),
]

SOURCE = TESTS / "c" / "round_trip.c"
# Of the largest value. Sums come in another order where nodes of the graph were fused or arrays lie elsewhere in
# memory; with TF_ENABLE_ONEDNN_OPTS=0 on both sides every bit is the same. The flow of a fully trained model stretches
# flat images so much that the last bits of a sum become some 1e-5 of v; that of the small model here does not.
TOLERANCE = 1e-6

KINDS = {
    "noise": lambda rng, shape: rng.integers(0, 256, shape),
    "black": lambda rng, shape: np.zeros(shape),
    "white": lambda rng, shape: np.full(shape, 255),
    "checkerboard": lambda rng, shape: np.broadcast_to(
        255 * (np.indices(shape[1:3]).sum(0) % 2)[None, :, :, None], shape
    ),
    "extremes": lambda rng, shape: 255 * rng.integers(0, 2, shape),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The compiled program."""
    path = tmp_path_factory.mktemp("c") / "round_trip"
    libraries = pathlib.Path(tf.sysconfig.get_lib())
    command = [COMPILER, "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-o", path, SOURCE]
    # As a system's headers: only warnings of our own code count.
    command += ["-isystem", tf.sysconfig.get_include()]
    command += [libraries / "libtensorflow_cc.so.2", libraries / "libtensorflow_framework.so.2"]
    command += [f"-Wl,-rpath,{libraries}"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return path


@pytest.fixture(scope="module")
def saved_model(exported):
    return exported / "savedmodel" / "1"


@pytest.fixture(scope="module")
def loaded(saved_model):
    """The SavedModel as Python loads it."""
    return tf.saved_model.load(saved_model)


def signature_definitions(saved_model):
    message = saved_model_pb2.SavedModel.FromString((saved_model / "saved_model.pb").read_bytes())
    (graph,) = (graph for graph in message.meta_graphs if "serve" in graph.meta_info_def.tags)
    return graph.signature_def


def image_shape(saved_model):
    """Height, width and channels of the images."""
    shape = signature_definitions(saved_model)["encode"].inputs["images"].tensor_shape
    return tuple(dimension.size for dimension in shape.dim[1:])


def images_of(kind, count, saved_model):
    return KINDS[kind](np.random.default_rng(count), (count, *image_shape(saved_model))).astype(np.uint8)


def tensor_names(saved_model):
    """The names of tensors in the order in which the program takes them."""
    definitions = signature_definitions(saved_model)
    encode, decode = definitions["encode"], definitions["decode"]
    names = [encode.inputs["images"], encode.outputs["v"], decode.inputs["v"], decode.outputs["images"]]
    if "z" in encode.outputs:
        names += [encode.outputs["z"], decode.inputs["z"]]
    return [info.name for info in names]


def round_trip(program, saved_model, images, folder, names=None):
    """Runs the program on an array of images, or on a file; returns its exit status, its output and its error."""
    if isinstance(images, np.ndarray):
        images.tofile(folder / "input")
        images = folder / "input"
    command = [program, saved_model, images, folder, *(names or tensor_names(saved_model))]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    # TensorFlow logs a few lines while its library is loaded, before a program could stop it.
    log = re.compile(r"[IWE]\d{4} \d\d|WARNING: All log messages before absl::InitializeLog")
    error = [line for line in result.stderr.splitlines() if not log.match(line)]
    return result.returncode, result.stdout, error


def assert_fails(result, words):
    """Asserts exit status 2, no output and an error of one line that starts with the words."""
    status, output, error = result
    assert (status, output, len(error)) == (2, "", 1), result
    assert error[0].startswith(f"round_trip: error: {words}")


def test_c_runs_a_model_with_variational_dequantisation(program, tmp_path):
    """Its score draws u by a flow of its own, which lies in the same graph and is loaded with it."""
    model = fresh(VARIANTS["dequantization"])
    offered = [endpoint for endpoint in endpoints(model.config) if endpoint.name in ("encode", "decode", "score")]
    save_saved_model(DeployedModel.from_model(model), offered, tmp_path / "saved")
    images = images_of("noise", 3, tmp_path / "saved")
    status, output, error = round_trip(program, tmp_path / "saved", images, tmp_path)
    assert (status, output, error) == (0, f"3 images: 0 of {images.size} subpixels differ\n", [])
    v = np.fromfile(tmp_path / "v", np.float32).reshape(images.shape)
    np.testing.assert_allclose(v, model.encode(images).v, atol=1e-5 * np.abs(v).max())


# A process of its own for each, most of whose time is TensorFlow's start.
@pytest.mark.parametrize(("kind", "count"), zip(KINDS, [17, 3, 1, 3, 17], strict=True))
def test_c_gives_back_the_images_and_the_codes_of_python(kind, count, program, saved_model, loaded, tmp_path):
    images = images_of(kind, count, saved_model)
    status, output, error = round_trip(program, saved_model, images, tmp_path)
    assert (status, output, error) == (0, f"{count} images: 0 of {images.size} subpixels differ\n", [])
    assert (tmp_path / "images").read_bytes() == images.tobytes()
    codes = loaded.signatures["encode"](images=tf.constant(images))
    assert {"z", "v"} == codes.keys()
    for name, code in codes.items():
        of_c, of_python = np.fromfile(tmp_path / name, np.float32).reshape(code.shape), code.numpy()
        assert np.max(np.abs(of_c - of_python)) <= TOLERANCE * np.max(np.abs(of_python)), name


class Halves(tf.Module):
    """A model without z. v is half of the images; where whole numbers are kept only, odd values are lost."""

    def __init__(self, shape, lossy):
        super().__init__()
        half = tf.math.floor if lossy else tf.identity
        # A variable, so that it is loaded as a model is.
        self.half = tf.Variable(0.5)
        self.encode = tf.function(
            lambda images: {"v": half(self.half * tf.cast(images, tf.float32))},
            input_signature=[tf.TensorSpec((None, *shape), tf.uint8, "images")],
        )
        self.decode = tf.function(
            lambda v: {"images": tf.cast(v / self.half, tf.uint8)},
            input_signature=[tf.TensorSpec((None, *shape), tf.float32, "v")],
        )


@pytest.mark.parametrize("lossy", [False, True])
def test_c_counts_the_subpixels_that_differ(lossy, program, saved_model, tmp_path):
    model = Halves(image_shape(saved_model), lossy)
    tf.saved_model.save(model, tmp_path / "halves", {"encode": model.encode, "decode": model.decode})
    images = images_of("noise", 3, saved_model)
    different = np.count_nonzero(images % 2) if lossy else 0
    status, output, error = round_trip(program, tmp_path / "halves", images, tmp_path)
    assert (status, error) == (int(lossy), [])
    assert output == f"3 images: {different} of {images.size} subpixels differ\n"
    assert not (tmp_path / "z").exists()


def change_a_weight(variables):
    """Flips one bit of the largest variable, where it lies in the file."""
    reader = tf.train.load_checkpoint(variables / "variables")
    shapes = reader.get_variable_to_shape_map()
    largest = reader.get_tensor(max(shapes, key=lambda name: np.prod(shapes[name], dtype=int)))
    path = variables / "variables.data-00000-of-00001"
    data = bytearray(path.read_bytes())
    data[data.index(largest.tobytes())] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# Each damage, and what the error starts with. Without an index, TensorFlow takes a SavedModel for one that has no
# variables, as some have none, and misses them only when the graph runs.
UNREADABLE, MISSING = "cannot load the SavedModel: ", "cannot encode: Could not find variable "
DAMAGES = {
    "a bit of a weight": (change_a_weight, UNREADABLE),
    "data cut off": (lambda variables: cut(variables / "variables.data-00000-of-00001"), UNREADABLE),
    "no data": (lambda variables: (variables / "variables.data-00000-of-00001").unlink(), UNREADABLE),
    "index cut off": (lambda variables: cut(variables / "variables.index"), UNREADABLE),
    "no index": (lambda variables: (variables / "variables.index").unlink(), MISSING),
    "no variables": (shutil.rmtree, MISSING),
    "graph cut off": (lambda variables: cut(variables.parent / "saved_model.pb"), UNREADABLE),
    "no graph": (lambda variables: (variables.parent / "saved_model.pb").unlink(), UNREADABLE),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_c_refuses_a_damaged_saved_model(damage, program, saved_model, tmp_path):
    names, images = tensor_names(saved_model), images_of("noise", 1, saved_model)
    copy = tmp_path / "copy"
    shutil.copytree(saved_model, copy)
    change, error = DAMAGES[damage]
    change(copy / "variables")
    result = round_trip(program, copy, images, tmp_path, names)
    assert_fails(result, error)
    assert not (tmp_path / "v").exists()


def test_c_refuses_wrong_arguments(program, saved_model, tmp_path):
    images, names = images_of("noise", 1, saved_model), tensor_names(saved_model)
    encode_images, encode_v, *others = names
    operation, missing, source = encode_images.split(":")[0], tmp_path / "missing", tmp_path / "input"

    def fails(images, names, words):
        assert_fails(round_trip(program, saved_model, images, tmp_path, names), words)

    fails(images, names[:3], "usage: round_trip SAVED_MODEL IMAGES OUT ")
    fails(images, ["nothing:0", encode_v, *others], "the graph has no tensor nothing:0")
    fails(images, [f"{operation}:1", encode_v, *others], f"the graph has no tensor {operation}:1")
    fails(images, [operation, encode_v, *others], f"{operation} is no name of a tensor")
    fails(images, [encode_images, encode_images, *others], f"{encode_images} has data type")
    fails(
        images.ravel()[1:], names, f"{source} has {images.size - 1} bytes, which is no multiple of the {images.size} "
    )
    fails(images[:0], names, f"{source} has 0 bytes")
    fails(tmp_path, names, f"cannot read {tmp_path}: ")
    fails(missing, names, f"cannot open {missing}: ")
