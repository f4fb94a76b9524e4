"""Invertible layers with test inputs and conditions, by name, and a check that every invertible layer must pass."""

import functools
import itertools
import pkgutil

import numpy as np
import tensorflow as tf

from helpers.models import give_effect, jacobian_log_det
from tfdecouple.config import STEP_LAYERS
from tfdecouple.layers import (
    ActNorm,
    ColourMap,
    ConditionalWhitening,
    Coupling,
    InvertibleConv1x1,
    InvertibleLinear,
    Squeeze,
)
from tfdecouple.transforms import TRANSFORMS

BATCH = 2
CONDITION = 3
PATTERNS = list(itertools.product(("continuous", "alternate"), ("last", "first")))
# {name: options of a coupling}, for each transform with `alpha` 1 and 0.6. An additive coupling has no scale, and so
# needs no second `alpha`, the bound of the scale.
SCALES = {
    f"{name}-{alpha}": {"transform": name, "alpha": alpha}
    for name in TRANSFORMS
    for alpha in ((1.0,) if name == "additive" else (1.0, 0.6))
}


def list_layers(layer):
    """Returns a list of a Keras layer and all layers inside it, at any depth; Keras has no public method for this."""
    return layer._flatten_layers()


def coupling_cases():
    for (pattern, part), scale in itertools.product(PATTERNS, SCALES):
        options = {"pattern": pattern, "part": part, "dtype": "float64", **SCALES[scale]}
        name = f"coupling-{pattern}-{part}-{scale}"
        yield f"{name}-image", functools.partial(Coupling, 4, **options), (2, 2, 6), 0
        yield f"{name}-image-conditional", functools.partial(Coupling, 4, CONDITION, **options), (2, 2, 6), CONDITION
        yield f"{name}-vector", functools.partial(Coupling, 4, **options), (6,), 0
    for pattern, part in PATTERNS:
        options = {"pattern": pattern, "part": part, "dtype": "float64"}
        name = f"coupling-{pattern}-{part}-odd"
        yield name, functools.partial(Coupling, 4, CONDITION, **options), (2, 2, 5), CONDITION
    options = {"transformed": 1, "dtype": "float64"}
    yield "coupling-one-of-four", functools.partial(Coupling, 4, CONDITION, **options), (2, 2, 4), CONDITION


whitening = functools.partial(ConditionalWhitening, 5, CONDITION, dtype="float64")

# {name of a case: (constructor of a layer, input shape without batch axis, length of the condition, 0 for none)}.
CASES = {
    "actnorm-image": (functools.partial(ActNorm, dtype="float64"), (3, 2, 3), 0),
    "actnorm-vector": (functools.partial(ActNorm, dtype="float64"), (5,), 0),
    "conv1x1": (functools.partial(InvertibleConv1x1, dtype="float64"), (3, 2, 4), 0),
    "linear": (functools.partial(InvertibleLinear, dtype="float64"), (5,), 0),
    "squeeze": (functools.partial(Squeeze, dtype="float64"), (4, 2, 3), 0),
    "whitening-image": (whitening, (2, 2, 3), CONDITION),
    "colour-map": (functools.partial(ColourMap, CONDITION, dtype="float64"), (2, 2, 3), CONDITION),
    "whitening-vector": (whitening, (5,), CONDITION),
    **{
        f"step-layer-{name}": (functools.partial(pkgutil.resolve_name(place), dtype="float64"), (3, 2, 3), 0)
        for name, place in STEP_LAYERS.items()
    },
    **{name: (make, shape, condition) for name, make, shape, condition in coupling_cases()},
}
# Names of cases for tests of methods that ignore a coupling's options: all other layers, and only two couplings.
KINDS = [name for name in CASES if not name.startswith("coupling")] + [
    "coupling-alternate-first-affine-1.0-image-conditional",
    "coupling-continuous-first-additive-1.0-vector",
]
# Names of four cases, one for each pattern in which a coupling splits the channels.
SPLITS = [f"coupling-{pattern}-{part}-affine-0.6-image-conditional" for pattern, part in PATTERNS]
CONDITIONAL = [name for name in KINDS if CASES[name][2]]


@functools.cache
def get_case(name):
    """Returns (layer, inputs, conditions) of the case CASES[name], which `build_case` makes once for all tests."""
    return build_case(name, *CASES[name])


def build_case(name, make, shape, condition_size):
    """Returns a layer with random weights, inputs `[2, *shape]`, and conditions `[2, condition_size]`, None for 0."""
    rng = np.random.default_rng(1)
    layer = make(name=name.replace(".", "_").replace("-", "_"))
    layer.build((None, *shape))
    give_effect(layer, scale=0.3)
    x = tf.constant(rng.standard_normal((BATCH, *shape)))
    condition = tf.constant(rng.standard_normal((BATCH, condition_size))) if condition_size else None
    return layer, x, condition


def assert_close(a, b, tolerance=1e-9):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def build_layer(layer, shape):
    layer.build(shape)
    return layer


def check_layer(layer, shape):
    """Builds `layer`; asserts that inverse and log-determinant are right for random inputs `shape`, `[batch, ...]`."""
    give_effect(build_layer(layer, (None, *shape[1:])), scale=0.3)
    rng = np.random.default_rng(0)
    x, condition = tf.constant(rng.standard_normal(shape)), tf.constant(rng.standard_normal((shape[0], CONDITION)))
    y, log_det = layer.forward_and_log_det(x, condition)
    assert_close(layer.inverse_and_log_det(y, condition)[0], x, 1e-8)
    assert_close(log_det, jacobian_log_det(layer.forward_and_log_det, x, condition), 1e-8)
