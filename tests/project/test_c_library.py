"""A SavedModel from C: TensorFlow's C++ loader gives the same images and codes as Python."""

import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import random_images
from helpers.places import TESTS
from tensorflow.core.protobuf import saved_model_pb2

COMPILER = shutil.which("cc")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="no C compiler: there is no cc on the PATH"),
]

SOURCE = TESTS / "c" / "round_trip.c"
# Relative to the largest value: sums may be taken in another order. With TF_ENABLE_ONEDNN_OPTS=0 all bits are equal.
TOLERANCE = 1e-6


def test_c_program_computes_the_images_and_codes_of_python(exported, tmp_path):
    program, libraries = tmp_path / "round_trip", pathlib.Path(tf.sysconfig.get_lib())
    command = [COMPILER, "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-o", program, SOURCE]
    # As system headers, so that only our own code gives warnings.
    command += ["-isystem", tf.sysconfig.get_include()]
    command += [libraries / "libtensorflow_cc.so.2", libraries / "libtensorflow_framework.so.2"]
    built = subprocess.run([*command, f"-Wl,-rpath,{libraries}"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    saved_model, images = exported / "savedmodel" / "1", random_images(17)
    message = saved_model_pb2.SavedModel.FromString((saved_model / "saved_model.pb").read_bytes())
    encode, decode = (message.meta_graphs[0].signature_def[name] for name in ("encode", "decode"))
    tensors = [encode.inputs["images"], encode.outputs["v"], decode.inputs["v"], decode.outputs["images"]]
    # The program takes the names of tensors in this order.
    names = [info.name for info in [*tensors, encode.outputs["z"], decode.inputs["z"]]]
    images.tofile(tmp_path / "input")
    command = [program, saved_model, tmp_path / "input", tmp_path, *names]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stdout) == (0, f"17 images: 0 of {images.size} subpixels differ\n"), result.stderr
    assert (tmp_path / "images").read_bytes() == images.tobytes()
    codes = tf.saved_model.load(saved_model).signatures["encode"](images=tf.constant(images))
    assert {"z", "v"} == codes.keys()
    for name, code in codes.items():
        of_c, of_python = np.fromfile(tmp_path / name, np.float32).reshape(code.shape), code.numpy()
        assert np.max(np.abs(of_c - of_python)) <= TOLERANCE * np.max(np.abs(of_python)), name
