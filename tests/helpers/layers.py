"""The list of invertible layers, with options, shapes and conditions, for which tests check the laws of a layer."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from helpers import variants
from helpers.models import give_effect, jacobian_log_det
from helpers.variants import SMALLEST, STAGES, VARIANTS
from tfdecouple import layers
from tfdecouple.networks.dequantizer import DequantizingFlow
from tfdecouple.networks.flow import FactorOut, Flow, FlowStep
from tfdecouple.networks.prior import PriorFlow, PriorStep
from tfdecouple.registry import TRANSFORMS

BATCH = 2
CONDITION = 3
# {name: options of a coupling}, for each transform with `alpha` 1 and 0.6. An additive coupling has no scale, and so
# needs no second `alpha`, the bound of the scale.
SCALES = {
    f"{name}-{alpha}": {"transform": name, "alpha": alpha}
    for name in TRANSFORMS
    for alpha in ((1.0,) if name == "additive" else (1.0, 0.6))
}


class Case(NamedTuple):
    """A layer, the shapes of its input and of its condition (None for no condition), both without the batch axis."""

    make: Callable[..., Any]
    shape: tuple[int, ...]
    condition: tuple[int, ...] | None = None

    def build(self, **options):
        """Returns the layer, built for its shapes, in float64 unless `options` say otherwise."""
        layer = self.make(**{"dtype": "float64", **options})
        shapes = (None, *self.shape), None if self.condition is None else (None, *self.condition)
        layer.build(*shapes[: 1 if self.condition is None else 2])
        return layer


def couplings():
    alone, with_z = functools.partial(layers.Coupling, 4), functools.partial(layers.Coupling, 4, CONDITION)
    for scale, options in SCALES.items():
        yield f"coupling-{scale}-image", Case(functools.partial(alone, **options), (2, 2, 6))
        yield f"coupling-{scale}-image-z", Case(functools.partial(with_z, **options), (2, 2, 6), (CONDITION,))
        yield f"coupling-{scale}-vector", Case(functools.partial(alone, **options), (6,))
    for pattern, part in itertools.product(("continuous", "alternate"), ("last", "first")):
        name, options = f"coupling-{pattern}-{part}", {"pattern": pattern, "part": part}
        yield f"{name}-image-z", Case(functools.partial(with_z, **options), (2, 2, 6), (CONDITION,))
        yield f"{name}-vector", Case(functools.partial(alone, **options), (6,))
        yield f"{name}-odd", Case(functools.partial(with_z, **options), (2, 2, 5), (CONDITION,))
    yield "coupling-one-of-four", Case(functools.partial(with_z, transformed=1), (2, 2, 4), (CONDITION,))


Z, OPTIONS, ADDITIVE = (CONDITION,), {"hidden": 4, "condition_size": CONDITION}, {"hidden": 4, "transform": "additive"}
# Mean and covariance of three colours.
COLOURS = (9,)
# A learned dequantisation with channels that leave the flow, as in the paper's config for CelebA-HQ.
THREE_LEVELS = dataclasses.replace(
    SMALLEST, **{**variants.DEQUANTIZATION_OF_THREE_LEVELS, "dequantization_map_channels": 3}
)
_PLAIN = {"conditioning": "none", "transform": "additive", "multiscale_transform": "additive"}
_ADDITIVE_LEVELS = dataclasses.replace(THREE_LEVELS, dequantization_transform="additive")
_FLOWS = {
    "base": dataclasses.replace(STAGES, conditioning="base", base_hidden=5),
    "grey": VARIANTS["grey"],
    "plain": dataclasses.replace(STAGES, **_PLAIN),
    "factor-3": dataclasses.replace(STAGES, steps=(1, (1, 1), 1), factors=(3,), hidden_channels=(3, 3, 3)),
}
# Layers that contain layers.
BLOCKS = {
    "step": Case(functools.partial(FlowStep, OPTIONS), (2, 2, 4), Z),
    "step-odd": Case(functools.partial(FlowStep, {**OPTIONS, "alpha": 0.6}), (2, 2, 3), Z),
    "step-one-pixel": Case(functools.partial(FlowStep, OPTIONS), (1, 1, 2), Z),
    "step-additive": Case(functools.partial(FlowStep, ADDITIVE), (2, 2, 4)),
    "factor-out": Case(functools.partial(FactorOut, 2, OPTIONS), (2, 2, 6), Z),
    "factor-out-map": Case(functools.partial(FactorOut, 4, OPTIONS), (2, 1, 9), (2, 1, CONDITION)),
    "factor-out-additive": Case(functools.partial(FactorOut, 1, ADDITIVE), (2, 2, 3)),
    "prior-step-additive": Case(functools.partial(PriorStep, ADDITIVE), (5,)),
    "prior-flow": Case(functools.partial(PriorFlow, 2, 5, alpha=0.6), (6,)),
    "dequantizing-flow": Case(functools.partial(DequantizingFlow, THREE_LEVELS), (4, 4, 3), (4, 4, 3)),
    "dequantizing-additive": Case(functools.partial(DequantizingFlow, _ADDITIVE_LEVELS), (4, 4, 3), (4, 4, 3)),
}
for _name, _config in _FLOWS.items():
    _condition = (_config.latent_dim,) if _config.has_latent else None
    BLOCKS[f"flow-{_name}"] = Case(functools.partial(Flow, _config), _config.image_shape, _condition)
CASES = {
    "actnorm-image": Case(layers.ActNorm, (3, 2, 3)),
    "actnorm-vector": Case(layers.ActNorm, (5,)),
    "conv1x1": Case(layers.InvertibleConv1x1, (3, 2, 4)),
    "linear": Case(layers.InvertibleLinear, (5,)),
    "squeeze": Case(layers.Squeeze, (4, 2, 3)),
    "sigmoid": Case(layers.Sigmoid, (2, 2, 3)),
    "whitening-image": Case(functools.partial(layers.ConditionalWhitening, 5, CONDITION), (2, 2, 3), Z),
    "whitening-vector": Case(functools.partial(layers.ConditionalWhitening, 5, CONDITION), (5,), Z),
    "colour-map": Case(layers.ColourMap, (2, 2, 3), COLOURS),
    "coupling-map": Case(functools.partial(layers.Coupling, **OPTIONS), (2, 3, 4), (2, 3, CONDITION)),
    **dict(couplings()),
    **BLOCKS,
}
# Names of cases for laws that do not depend on a coupling's options: all other layers, and three couplings.
KINDS = [name for name in CASES if not name.startswith("coupling-") or name == "coupling-map"]
KINDS += ["coupling-alternate-first-image-z", "coupling-additive-1.0-vector"]
CONDITIONAL = [name for name in KINDS if CASES[name].condition]


@functools.cache
def get_case(name):
    """Returns (layer, inputs, conditions) of CASES[name]: random weights, inputs `[2, *shape]`, conditions or None."""
    case, rng = CASES[name], np.random.default_rng(1)
    # Larger weights of a whole flow would multiply rounding errors.
    scale = 0.1 if name.startswith(("flow", "dequantizing")) else 0.3
    layer = give_effect(case.build(name=name.replace(".", "_").replace("-", "_")), scale=scale)
    x = tf.constant(rng.standard_normal((BATCH, *case.shape)))
    return layer, x, None if case.condition is None else tf.constant(rng.standard_normal((BATCH, *case.condition)))


def list_layers(layer):
    """Returns a list of a Keras layer and all layers inside it, at any depth; Keras has no public method for this."""
    return layer._flatten_layers()


def assert_close(a, b, tolerance=1e-9):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def assert_invertible(layer, x, condition=None):
    """Asserts that a layer or bijector inverts, with the log-det of its Jacobian; returns output and log-det."""

    def forward(x, z):
        return layer.forward_and_log_det(*(array for array in (x, z) if array is not None))

    y, log_det = forward(x, condition)
    assert_close(log_det, jacobian_log_det(forward, x, condition), 1e-8)
    recovered, inverse = layer.inverse_and_log_det(*(array for array in (y, condition) if array is not None))
    assert_close(recovered, x, 1e-8)
    assert_close(log_det + inverse, tf.zeros_like(log_det), 1e-8)
    return y, log_det


def assert_gradients_by_inversion(layer, x, condition=None):
    """Asserts that the gradients that a layer computes from its output alone are those of automatic differentiation."""
    inputs = [value for value in (x, condition) if value is not None]
    weights = [variable.value for variable in layer.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y, log_det = layer.forward_and_log_det(x, condition)
    upstream = [tf.cos(y), tf.cast(tf.range(1, len(x) + 1), y.dtype)]
    right = tape.gradient([y, log_det], [*inputs, *weights], upstream, unconnected_gradients="zero")
    result = layer.inverse_and_gradients(y, condition, *upstream)
    ours = [result.x_gradient, result.condition_gradient][: len(inputs)] + result.weight_gradients
    assert_close(result.x, x, 1e-8)
    for gradient, expected in zip(ours, right, strict=True):
        assert_close(tf.zeros_like(expected) if gradient is None else gradient, expected, 1e-7)


def build_layer(layer, shape):
    layer.build(shape)
    return layer
