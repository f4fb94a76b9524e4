"""The recipe of docs/extending.md for a coupling transform, carried out literally in a copy of the packages."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import jacobian_log_det
from helpers.recipes import append_rows, copy_packages, insert_text, read_recipe, run_in_copy

from tfdecouple.bijectors import closed_form
from tfdecouple.transforms import TRANSFORMS

USE = """
import dataclasses
import numpy as np, tensorflow as tf
from tfdecouple.bijectors import forward_and_log_det
from tfdecouple.config import ModelConfig
from tfdecouple.model import DecoupledModel
from tfdecouple.networks.architecture import count_parameters
from tfdecouple.transforms import TRANSFORMS

config = ModelConfig(
    image_shape=(4, 4, 3), latent_dim=4, steps=(1, (1,), 1), hidden_channels=(4, 4, 4), encoder_channels=(4,),
    encoder_out_channels=2, prior_steps=1, prior_hidden=6, transform=NAME, multiscale_transform=NAME,
    prior_transform=NAME, alpha=0.5,
)
# Where a function would run a few times it is not traced, which takes its time.
tf.config.run_functions_eagerly(True)
model = DecoupledModel(config)
assert model.parameter_count() == count_parameters(config)
affine = dataclasses.replace(config, transform="affine", multiscale_transform="affine", prior_transform="affine")
assert count_parameters(config)["total"] > count_parameters(affine)["total"]

images = np.random.default_rng(0).integers(100, 150, (16, 4, 4, 3), dtype=np.uint8)
model.initialize(images, seed=0)
for variable in model.trainable_variables:
    variable.assign_add(0.1 * np.random.default_rng(1).standard_normal(variable.shape))
codes = model.encode(images)
np.testing.assert_array_equal(model.decode(*codes), images)
assert np.isfinite(model.elbo(images, seed=0).bits_per_dim).all()

transform = TRANSFORMS[NAME]
x, *raw = tf.unstack(tf.random.stateless_normal([1 + transform.parameters, 1, 2, 2, 3], [0, 1], dtype="float64"))
with tf.GradientTape() as tape:
    tape.watch(x)
    y, log_det = forward_and_log_det(transform.bijector(raw, 0.5), x)
slopes = tape.gradient(y, x)
np.testing.assert_allclose(log_det, tf.reduce_sum(tf.math.log(tf.abs(slopes)), [1, 2, 3]), rtol=1e-9)
assert abs(float(log_det[0])) > 1e-3
"""


def test_bijector_recipe_is_invertible_with_the_right_log_determinant():
    written = {**vars(closed_form)}
    exec(
        compile(read_recipe("bijector"), "recipe", "exec", dont_inherit=True, flags=annotations.compiler_flag), written
    )
    rng = np.random.default_rng(0)
    x = tf.constant(rng.standard_normal((2, 2, 2, 3)))
    bijector = written["SignedPower"](0.3 * rng.standard_normal(3))
    y, log_det = bijector.forward_and_log_det(x)
    back, inverse = bijector.inverse_and_log_det(y)
    np.testing.assert_allclose(back, x, atol=1e-12)
    right = jacobian_log_det(lambda x, _: bijector.forward_and_log_det(x), x)
    np.testing.assert_allclose(log_det, right, atol=1e-9)
    np.testing.assert_allclose(inverse, -log_det, atol=1e-9)
    # As TFP sees it, which would take a constant Jacobian for that of all x.
    for value in (x, 2 * x):
        slopes = bijector.forward_log_det_jacobian(value, event_ndims=3)
        np.testing.assert_allclose(slopes, bijector.forward_and_log_det(value)[1], atol=1e-9)


@pytest.fixture(scope="module")
def with_transform(tmp_path_factory):
    """A copy of the packages with the transform of the recipe, and its name."""
    folder = copy_packages(tmp_path_factory.mktemp("transform"))
    file = folder / "tfdecouple" / "transforms.py"
    transform, _, line = read_recipe("coupling transform").partition("# in `TRANSFORMS`\n")
    insert_text(file, "TRANSFORMS: dict", transform + "\n")
    append_rows(file, "TRANSFORMS", line)
    (name,) = (
        line.split('"')[1] for line in read_recipe("coupling transform").splitlines() if line.startswith("    name =")
    )
    return folder, name


def test_transform_recipe_trains_decodes_exactly_and_is_named_in_errors(with_transform):
    folder, name = with_transform
    used = run_in_copy(folder, "-c", f"NAME = {name!r}\n{USE}")
    assert used.returncode == 0, used.stderr
    shown = run_in_copy(folder, "train.py", "--set", "model.transform=else", "--workdir", "run")
    assert shown.returncode == 2 and all(repr(one) in shown.stderr for one in (*TRANSFORMS, name))


@pytest.mark.slow
def test_run_with_the_transform_recipe_is_trained_and_exported(with_transform):
    folder, name = with_transform
    model = [
        *("image_shape=[8,8,3]", "latent_dim=4", "steps=[1,1]", "hidden_channels=[4,6]", "encoder_channels=[4]"),
        *("encoder_out_channels=2", "prior_steps=1", "prior_hidden=6", "alpha=0.5", "prior_alpha=0.5"),
        *(f"{where}transform={name}" for where in ("", "multiscale_", "prior_")),
    ]
    training = ["batch_size=8", "init_images=16", "evaluation_images=8", "pictures=0", "learning_rate=0.01"]
    options = [f"--set=model.{value}" for value in model] + [f"--set=training.{value}" for value in training]
    options += ["--set=data.photograph_crops=32", "--steps", "3", "--workdir", "run"]
    trained = run_in_copy(folder, "train.py", "--preset", "quickstart", *options)
    assert trained.returncode == 0, trained.stderr
    # Both ways through the flow, and the log-determinant; what the others add knows no transform.
    exported = run_in_copy(
        folder, "-m", "export", "--run", "run", "--to", "out", "--endpoints", "encode", "decode", "score"
    )
    assert exported.returncode == 0, exported.stdout + exported.stderr
    assert {"encoder.onnx", "decoder.onnx"} <= {file.name for file in (folder / "out" / "onnx").iterdir()}
