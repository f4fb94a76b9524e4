"""A bijector of TFP that loses static shapes in a graph is a transform of couplings: trained, evaluated, exported."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.models import LEAST, give_effect, random_images
from helpers.runs import read_log, run_config
from tensorflow_probability import bijectors as tfb

from export.pipeline import ExportConfig, export
from tfdecouple.bijectors import with_log_det
from tfdecouple.layers import Coupling
from tfdecouple.registry import TRANSFORMS
from tfdecouple.runs.opened_run import load_model
from tfdecouple.training import train
from tfdecouple.transforms import Transform


def make_spline(width, height, slope, alpha):
    """A spline of two bins between -3 and 3, the identity outside."""
    widths, heights = (tf.stack([3 + alpha * tf.tanh(x), 3 - alpha * tf.tanh(x)], -1) for x in (width, height))
    return tfb.RationalQuadraticSpline(widths, heights, tf.exp(alpha * tf.tanh(slope))[..., None], range_min=-3.0)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(TRANSFORMS.entries, "spline", Transform(make_spline, 3))


def test_shapes_of_a_coupling_stay_known_in_a_graph_of_unknown_batch():
    layer = Coupling(hidden=3, transform="spline", alpha=0.5, pattern="alternate")
    layer.build((None, 4, 4, 6))
    give_effect(layer)
    for method in (layer.forward_and_log_det, layer.inverse_and_log_det):
        function = tf.function(method, input_signature=[tf.TensorSpec([None, 4, 4, 6])], autograph=False)
        shapes = [tensor.shape.as_list() for tensor in function.get_concrete_function().structured_outputs]
        assert shapes == [[None, 4, 4, 6], [None]]
    x = tf.random.stateless_normal([2, 4, 4, 6], [0, 1])
    y, log_det = layer.forward_and_log_det(x)
    assert float(tf.reduce_max(tf.abs(log_det))) > 1e-3
    np.testing.assert_allclose(layer.inverse_and_log_det(y)[0], x, atol=1e-5)


def test_bijector_that_changes_the_shape_keeps_its_own():
    y, _ = with_log_det(tfb.Reshape([12], [2, 6])).forward_and_log_det(tf.ones([3, 2, 6]))
    assert y.shape == (3, 12)


@pytest.mark.slow
def test_model_is_trained_evaluated_saved_opened_and_exported(image_folder, tmp_path):
    config = dataclasses.replace(LEAST, transform="spline", multiscale_transform="spline", alpha=0.5)
    options = {"steps": 1, "evaluate_every": 1, "checkpoint_every": 1, "log_every": 1, "pictures": 0}
    train(run_config(image_folder, model=config, **options), tmp_path / "run")
    assert np.isfinite(read_log(tmp_path / "run")["validation", 1]["bits_per_dim"])
    model, images = load_model(tmp_path / "run"), random_images(8)
    v = model.encode(images).v
    decode = tf.function(lambda v: model.decode(None, v), input_signature=[tf.TensorSpec([None, 8, 8, 3])])
    np.testing.assert_array_equal(decode(v), images)
    model.save(tmp_path / "x.keras")
    np.testing.assert_allclose(keras.saving.load_model(tmp_path / "x.keras").encode(images).v, v, atol=1e-5)
    chosen = {"formats": ("savedmodel",), "endpoints": ("encode", "decode")}
    assert export(ExportConfig(run=tmp_path / "run", to=tmp_path / "to", **chosen), str)
