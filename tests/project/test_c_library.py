"""A SavedModel from C: TensorFlow's C++ loader gives the same codes as Python, and reports what is wrong."""

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
# Relative to the largest value: sums may be taken in another order. With TF_ENABLE_ONEDNN_OPTS=0 all bits are equal.
TOLERANCE = 1e-6

KINDS = {
    "noise": lambda rng, shape: rng.integers(0, 256, shape),
    "black": lambda rng, shape: np.zeros(shape),
    "extremes": lambda rng, shape: 255 * rng.integers(0, 2, shape),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The compiled program."""
    path = tmp_path_factory.mktemp("c") / "round_trip"
    libraries = pathlib.Path(tf.sysconfig.get_lib())
    command = [COMPILER, "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-o", path, SOURCE]
    # As system headers, so that only our own code gives warnings.
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
    """Runs the program on images, and returns its exit status, its output and the lines of its error."""
    images.tofile(folder / "input")
    command = [program, saved_model, folder / "input", folder, *(names or tensor_names(saved_model))]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    # TensorFlow logs a few lines while its library is loaded, before a program could stop it.
    log = re.compile(r"[IWE]\d{4} \d\d|WARNING: All log messages before absl::InitializeLog")
    error = [line for line in result.stderr.splitlines() if not log.match(line)]
    return result.returncode, result.stdout, error


def test_c_runs_a_model_with_variational_dequantisation(program, tmp_path):
    """The flow of u is in the same graph and is loaded with it."""
    model = fresh(VARIANTS["dequantization"])
    offered = [endpoint for endpoint in endpoints(model.config) if endpoint.name in ("encode", "decode", "score")]
    save_saved_model(DeployedModel(model), offered, tmp_path / "saved")
    images = images_of("noise", 3, tmp_path / "saved")
    status, output, error = round_trip(program, tmp_path / "saved", images, tmp_path)
    assert (status, output, error) == (0, f"3 images: 0 of {images.size} subpixels differ\n", [])
    v = np.fromfile(tmp_path / "v", np.float32).reshape(images.shape)
    np.testing.assert_allclose(v, model.encode(images).v, atol=1e-5 * np.abs(v).max())


@pytest.mark.parametrize(("kind", "count"), zip(KINDS, [17, 1, 3], strict=True))
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


def change_a_weight(variables):
    """Flips one bit of the largest variable in the file."""
    reader = tf.train.load_checkpoint(variables / "variables")
    shapes = reader.get_variable_to_shape_map()
    largest = reader.get_tensor(max(shapes, key=lambda name: np.prod(shapes[name], dtype=int)))
    path = variables / "variables.data-00000-of-00001"
    data = bytearray(path.read_bytes())
    data[data.index(largest.tobytes())] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# Each damage, and the start of the error. Without an index TensorFlow misses the variables only when the graph runs.
UNREADABLE, MISSING = "cannot load the SavedModel: ", "cannot encode: Could not find variable "
DAMAGES = {
    "a bit of a weight": (change_a_weight, UNREADABLE),
    "data cut off": (lambda variables: cut(variables / "variables.data-00000-of-00001"), UNREADABLE),
    "no index": (lambda variables: (variables / "variables.index").unlink(), MISSING),
    "graph cut off": (lambda variables: cut(variables.parent / "saved_model.pb"), UNREADABLE),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_c_refuses_a_damaged_saved_model(damage, program, saved_model, tmp_path):
    names, images = tensor_names(saved_model), images_of("noise", 1, saved_model)
    copy = tmp_path / "copy"
    shutil.copytree(saved_model, copy)
    change, error = DAMAGES[damage]
    change(copy / "variables")
    status, output, messages = round_trip(program, copy, images, tmp_path, names)
    assert (status, output, len(messages)) == (2, "", 1), messages
    assert messages[0].startswith(f"round_trip: error: {error}")
    assert not (tmp_path / "v").exists()
