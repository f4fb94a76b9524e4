"""The laws that every invertible layer keeps, for the list of layers in tests/helpers/layers.py.

Most laws are checked in float64, where a wrong term shows up far above the rounding.
"""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import (
    BLOCKS,
    CASES,
    CONDITIONAL,
    KINDS,
    assert_close,
    assert_gradients_by_inversion,
    assert_invertible,
    build_layer,
    get_case,
)
from helpers.models import assert_all_close, assert_gradients_reach_weights, give_effect, visit_layers_with

from tfdecouple import layers
from tfdecouple.errors import UserError
from tfdecouple.networks.encoder import Encoder, ResNetBlock
from tfdecouple.networks.flow import FactorOut, FlowStep
from tfdecouple.networks.prior import PriorFlow

# Layers that keep volumes for all weights.
VOLUME_PRESERVING = ("squeeze", "coupling-additive")
# Layers whose weights `initialize` leaves as they are.
NOT_INITIALIZED = ("linear", "conv1x1", "colour-map", "squeeze", "sigmoid")


@pytest.mark.parametrize("name", CASES)
def test_layer_inverts_with_the_log_det_of_its_jacobian(name):
    layer, x, condition = get_case(name)
    y, log_det = assert_invertible(layer, x, condition)
    assert np.all(log_det == 0) == name.startswith(VOLUME_PRESERVING)
    assert np.abs(y - x).max() > 1e-3 if y.shape == x.shape else y.shape[-1] == 4 * x.shape[-1]
    # An array that is no output of the layer; the sigmoid's outputs lie in (0, 1).
    given = tf.sigmoid(y) if name.startswith(("sigmoid", "dequantizing")) else y + 1
    assert_close(layer.forward_and_log_det(layer.inverse_and_log_det(given, condition)[0], condition)[0], given, 1e-7)


@pytest.mark.parametrize("name", KINDS)
def test_output_of_a_layer_for_an_image_ignores_the_other_images(name):
    layer, x, condition = get_case(name)
    together = layer.forward_and_log_det(x, condition)
    alone = layer.forward_and_log_det(x[1:], None if condition is None else condition[1:])
    assert_close(together[0][1:], alone[0])
    assert_close(together[1][1:], alone[1])


@pytest.mark.parametrize("name", KINDS)
def test_every_weight_of_a_layer_receives_a_gradient(name):
    layer, x, condition = get_case(name)

    def negative_log_likelihood():
        y, log_det = layer.forward_and_log_det(x, condition)
        return tf.reduce_sum(tf.square(y)) / 2 - tf.reduce_sum(log_det)

    assert_gradients_reach_weights(layer, negative_log_likelihood)


@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith(("flow", "dequantizing", "sigmoid"))])
def test_gradients_of_a_layer_by_inversion_equal_those_of_autodiff(name):
    assert_gradients_by_inversion(*get_case(name))


@pytest.mark.parametrize("name", KINDS)
def test_initialize_returns_the_output_of_the_initialised_layer(name):
    layer, (_, x, condition) = give_effect(CASES[name].build()), get_case(name)
    before = layer.forward_and_log_det(x, condition)[0]
    output = layer.initialize(x, condition)
    assert_close(output, layer.forward_and_log_det(x, condition)[0], 1e-8)
    assert np.allclose(output, before) == name.startswith(NOT_INITIALIZED)


@pytest.mark.parametrize("name", BLOCKS)
def test_visit_of_a_network_reaches_every_elementary_layer_once(name):
    layer, x, condition = get_case(name)
    visited = []
    output = visit_layers_with(layer, x, condition, lambda leaf, h, z: visited.append(leaf))
    assert_close(output, layer.forward_and_log_det(x, condition)[0])
    variables = {id(variable) for leaf in visited for variable in leaf.variables}
    assert variables == {id(variable) for variable in layer.variables}
    assert len({id(leaf) for leaf in visited}) == len(visited)
    assert isinstance(visited[0], layers.ActNorm | layers.InvertibleConv1x1)


@pytest.mark.parametrize("name", CONDITIONAL)
@pytest.mark.parametrize("direction", ["forward_and_log_det", "inverse_and_log_det"])
def test_layer_refuses_a_missing_or_misshapen_condition(name, direction):
    layer, x, condition = get_case(name)
    what, ndims = ("z", "batch") if len(CASES[name].condition) == 1 else ("a map", "batch, height, width")
    with pytest.raises(UserError, match=rf"pass condition={what} of shape \[{ndims}, \d+\]"):
        getattr(layer, direction)(x)
    # Too many channels, and for maps another batch or size.
    wrong = [tf.concat([condition, condition], -1)]
    if what == "a map":
        wrong += [tf.repeat(condition, 2, axis) for axis in (0, 1)]
    for other in wrong:
        with pytest.raises(UserError, match=rf"condition of shape .*needs \[{ndims}, \d+\]|the same batch, height"):
            getattr(layer, direction)(x, other)


OTHER = {"name": "other", "dtype": "float64"}
STEP = {"transform": "additive", "alpha": 0.5, **OTHER}
COUPLINGS = {"hidden": 5, "condition_size": 3, "transform": "additive", "alpha": 0.5}
# A layer of each class with every option off its default, and the shape of an input.
OFF_DEFAULT = {
    layers.ActNorm: (layers.ActNorm(**OTHER), (2, 2, 3)),
    layers.Coupling: (layers.Coupling(5, 3, pattern="alternate", part="first", **STEP), (2, 2, 4)),
    layers.InvertibleLinear: (layers.InvertibleLinear(**OTHER), (4,)),
    layers.InvertibleConv1x1: (layers.InvertibleConv1x1(**OTHER), (2, 2, 4)),
    layers.Squeeze: (layers.Squeeze(**OTHER), (2, 2, 3)),
    layers.ColourMap: (layers.ColourMap(**OTHER), (2, 2, 3)),
    layers.ConditionalWhitening: (layers.ConditionalWhitening(5, 3, **OTHER), (2, 2, 3)),
    FlowStep: (FlowStep(COUPLINGS, ("actnorm",), **OTHER), (2, 2, 4)),
    FactorOut: (FactorOut(1, COUPLINGS, **OTHER), (2, 2, 4)),
    PriorFlow: (PriorFlow(3, 5, **STEP), (4,)),
    Encoder: (Encoder(10, (4, 5), 2, 9, name="other"), (8, 8, 3)),
    ResNetBlock: (ResNetBlock(5, 2, True, name="other"), (4, 4, 3)),
}


@pytest.mark.parametrize("kind", OFF_DEFAULT, ids=lambda kind: kind.__name__)
def test_serialised_layer_keeps_every_option_and_its_results(kind):
    layer, shape = OFF_DEFAULT[kind]
    give_effect(build_layer(layer, (None, *shape)))
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(again) is kind and again.get_config() == layer.get_config()
    assert {*inspect.signature(kind).parameters} - {"kwargs", "dtype"} <= {*layer.get_config()}
    # Keras stores the shapes as well and builds the layer.
    assert again.built and [v.path for v in again.variables] == [v.path for v in layer.variables]
    again.set_weights(layer.get_weights())
    x = np.random.default_rng(0).standard_normal((2, *shape)).astype("float32")
    condition = [np.ones((2, {layers.ColourMap: 9}.get(kind, 3)))] * isinstance(layer, layers.InvertibleLayer)
    assert_all_close(layer(x, *condition), again(x, *condition), rtol=0)


@pytest.mark.parametrize("name", KINDS)
def test_bijector_of_a_layer_agrees_with_it_for_any_leading_axes(name):
    layer, x, condition = get_case(name)
    options = {} if condition is None else {"condition": condition}
    ndims = len(x.shape) - 1
    y, log_det = layer.forward_and_log_det(x, condition)
    assert_close(layer.as_bijector().forward(x, **options), y)
    assert_close(layer.as_bijector().forward_log_det_jacobian(x, event_ndims=ndims, **options), log_det)
    # TFP would remember the very tensor that it returned, so the inverse gets a copy.
    copy = tf.identity(y)
    assert_close(layer.as_bijector().inverse(copy, **options), x, 1e-8)
    assert_close(layer.as_bijector().inverse_log_det_jacobian(copy, event_ndims=ndims, **options), -log_det, 1e-8)
    if name == "squeeze":
        return
    bijector, many = layer.as_bijector(condition), tf.stack([x + 1, x, x - 1])[:, None]
    outputs, log_dets = bijector.forward(many), bijector.forward_log_det_jacobian(many, event_ndims=ndims)
    assert outputs.shape[:3] == log_dets.shape == (3, 1, len(x))
    assert_close(outputs[1, 0], y)
    assert_close(log_dets[1, 0], log_det)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_batch_shape_of_a_bijector_is_that_of_its_condition(name):
    layer, x, condition = get_case(name)
    bijector = layer.as_bijector(tf.stack([condition, condition + 1, condition - 1]))
    assert bijector.experimental_batch_shape() == (3, len(x))
    assert bijector.experimental_batch_shape(x_event_ndims=len(x.shape)) == (3,)
    assert layer.as_bijector().experimental_batch_shape() == ()
    sliced = bijector[1]
    assert sliced.experimental_batch_shape_tensor() == len(x)
    assert_close(sliced.condition, condition + 1)
    assert_close(sliced.forward(x), layer.forward_and_log_det(x, condition + 1)[0])
