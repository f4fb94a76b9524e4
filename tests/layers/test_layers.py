"""Tests of tfdecouple.layers: each layer is what it says, exactly invertible, with the log-determinant of its Jacobian.

The properties are checked in float64, where a wrong term shows up far above the rounding.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.models import every_weight_has_a_gradient, give_effect, jacobian_log_det, negative_log_likelihood
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

from tfdecouple.errors import ConfigError, UserError
from tfdecouple.layers import (
    MLP,
    ActNorm,
    ConditionalWhitening,
    ConvNet,
    Coupling,
    InvertibleConv1x1,
    InvertibleLinear,
    RegisteredLayer,
    Squeeze,
    net_precision,
)
from tfdecouple.layers.split import ChannelSplit
from tfdecouple.runtime.products import channel_product
from tfdecouple.runtime.tracing import Traces
from tfdecouple.step_layers import STEP_LAYERS
from tfdecouple.transforms import TRANSFORMS

BATCH = 2
CONDITION = 3
PATTERNS = list(itertools.product(("continuous", "alternate"), ("last", "first")))
# Of every transform that is registered, whose bound matters for all but the additive one.
SCALES = {
    f"{name}-{alpha}": {"transform": name, "alpha": alpha}
    for name in TRANSFORMS
    for alpha in ((1.0,) if name == "additive" else (1.0, 0.6))
}
FEW = settings(max_examples=12, deadline=None, derandomize=True)


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

# name: constructor, shape of one input, size of the condition
CASES = {
    "actnorm-image": (functools.partial(ActNorm, dtype="float64"), (3, 2, 3), 0),
    "actnorm-vector": (functools.partial(ActNorm, dtype="float64"), (5,), 0),
    "conv1x1-full": (functools.partial(InvertibleConv1x1, "full", dtype="float64"), (3, 2, 4), 0),
    "conv1x1-lu": (functools.partial(InvertibleConv1x1, "lu", dtype="float64"), (3, 2, 4), 0),
    "linear-full": (functools.partial(InvertibleLinear, "full", dtype="float64"), (5,), 0),
    "linear-lu": (functools.partial(InvertibleLinear, "lu", dtype="float64"), (5,), 0),
    "squeeze": (functools.partial(Squeeze, dtype="float64"), (4, 2, 3), 0),
    "whitening-image": (whitening, (2, 2, 3), CONDITION),
    "whitening-vector": (whitening, (5,), CONDITION),
    **{
        f"registered-{name}": (functools.partial(RegisteredLayer, name, dtype="float64"), (3, 2, 3), 0)
        for name in STEP_LAYERS
    },
    **{name: (make, shape, condition) for name, make, shape, condition in coupling_cases()},
}
# One of each kind, for what does not depend on the options.
KINDS = [name for name in CASES if not name.startswith("coupling")] + [
    "coupling-alternate-first-affine-1.0-image-conditional",
    "coupling-continuous-first-additive-1.0-vector",
]
# And one of each split pattern of a coupling.
SPLITS = [f"coupling-{pattern}-{part}-affine-0.6-image-conditional" for pattern, part in PATTERNS]
CONDITIONAL = [name for name in KINDS if CASES[name][2]]


@functools.cache
def case(name):
    """A built layer whose weights all have an effect, with inputs and conditions."""
    make, shape, condition_size = CASES[name]
    rng = np.random.default_rng(1)
    layer = make(name=name.replace(".", "_"))
    layer.build((None, *shape))
    give_effect(layer, scale=0.3)
    x = tf.constant(rng.standard_normal((BATCH, *shape)))
    condition = tf.constant(rng.standard_normal((BATCH, condition_size))) if condition_size else None
    return layer, x, condition


def close(a, b, tolerance=1e-9):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


class TestProperties:
    """What every layer promises."""

    @pytest.mark.parametrize("name", CASES)
    def test_log_det_is_that_of_the_jacobian(self, name):
        layer, x, condition = case(name)
        log_det = layer.forward_and_log_det(x, condition)[1]
        close(log_det, jacobian_log_det(layer.forward_and_log_det, x, condition))
        # Additive couplings and the squeeze keep volumes; nothing else does, once its weights have an effect. (What is
        # registered may.)
        if not name.startswith("registered"):
            assert np.all(log_det == 0) == ("additive" in name or name == "squeeze")

    @pytest.mark.parametrize("name", CASES)
    def test_inverse_undoes_forward_and_forward_undoes_inverse(self, name):
        layer, x, condition = case(name)
        y, forward = layer.forward_and_log_det(x, condition)
        back, inverse = layer.inverse_and_log_det(y, condition)
        assert np.abs(y - x).max() > 1e-3 if y.shape == x.shape else y.shape[-1] == 4 * x.shape[-1]
        close(back, x)
        close(forward + inverse, tf.zeros(BATCH, tf.float64))
        # The other way round, from an array that did not come out of the layer.
        close(layer.forward_and_log_det(layer.inverse_and_log_det(y + 1, condition)[0], condition)[0], y + 1)

    @pytest.mark.parametrize("name", KINDS)
    def test_log_det_of_the_inverse_is_that_of_its_jacobian(self, name):
        layer, x, condition = case(name)
        y = layer.forward_and_log_det(x, condition)[0]
        close(layer.inverse_and_log_det(y, condition)[1], jacobian_log_det(layer.inverse_and_log_det, y, condition))

    @pytest.mark.parametrize("name", KINDS)
    def test_images_of_a_batch_do_not_touch_each_other(self, name):
        layer, x, condition = case(name)
        together = layer.forward_and_log_det(x, condition)
        alone = layer.forward_and_log_det(x[1:], None if condition is None else condition[1:])
        close(together[0][1:], alone[0])
        close(together[1][1:], alone[1])

    @pytest.mark.parametrize("name", KINDS)
    def test_calling_the_layer_is_its_forward_direction(self, name):
        layer, x, condition = case(name)
        for called, forward in zip(layer(x, condition), layer.forward_and_log_det(x, condition), strict=True):
            np.testing.assert_array_equal(called, forward)

    @pytest.mark.parametrize("name", KINDS)
    def test_every_weight_receives_a_gradient(self, name):
        layer, x, condition = case(name)
        every_weight_has_a_gradient(layer, lambda: negative_log_likelihood(layer, x, condition))

    @pytest.mark.parametrize("name", KINDS)
    def test_initialize_returns_the_output_of_the_initialised_layer(self, name):
        make, shape, condition_size = CASES[name]
        layer, (_, x, condition) = make(), case(name)
        layer.build((None, *shape))
        give_effect(layer)
        before = layer.forward_and_log_det(x, condition)[0]
        output = layer.initialize(x, condition)
        close(output, layer.forward_and_log_det(x, condition)[0])
        # Linear maps, registered layers and the squeeze have nothing to set.
        sets_nothing = name.startswith(("linear", "conv1x1", "registered", "squeeze"))
        assert np.allclose(output, before) == sets_nothing

    @pytest.mark.parametrize("name", CONDITIONAL)
    def test_a_conditional_layer_depends_on_the_condition(self, name):
        layer, x, condition = case(name)
        y, log_det = layer.forward_and_log_det(x, condition)
        other, other_log_det = layer.forward_and_log_det(x, condition + 1)
        assert np.abs(y - other).max() > 1e-3
        assert np.abs(log_det - other_log_det).max() > 1e-3

    @pytest.mark.parametrize("name", KINDS)
    def test_results_are_of_the_layers_dtype_and_shape(self, name):
        make, shape, condition_size = CASES[name]
        layer = make(dtype="float32")
        condition = np.zeros((BATCH, condition_size)) if condition_size else None
        # Neither built nor of its dtype: a float64 numpy array.
        y, log_det = layer.forward_and_log_det(np.ones((BATCH, *shape)), condition)
        x, inverse = layer.inverse_and_log_det(y, condition)
        assert [t.dtype for t in (y, log_det, x, inverse)] == [tf.float32] * 4
        assert log_det.shape == inverse.shape == (BATCH,) and x.shape == (BATCH, *shape)
        assert math.prod(y.shape) == math.prod(x.shape)

    @pytest.mark.parametrize("name", ["actnorm-image", "conv1x1-lu", "squeeze", KINDS[-2]])
    def test_layer_runs_in_a_function_of_unknown_batch_size(self, name):
        layer, x, condition = case(name)
        inputs = [x] if condition is None else [x, condition]
        signature = [tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype) for tensor in inputs]
        results = tf.function(layer.forward_and_log_det, input_signature=signature)(*inputs)
        for result, expected in zip(results, layer.forward_and_log_det(x, condition), strict=True):
            close(result, expected, 1e-12)

    @pytest.mark.parametrize("name", KINDS)
    def test_layer_and_its_gradient_compile_with_xla(self, name):
        layer, x, condition = case(name)

        def run(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y, log_det = layer.forward_and_log_det(x, condition)
                loss = tf.reduce_sum(y**2) + tf.reduce_sum(log_det)
            return y, log_det, tape.gradient(loss, x)

        for result, expected in zip(tf.function(run, jit_compile=True)(x), run(x), strict=True):
            close(result, expected)


class TestBijector:
    """The TFP face of every layer."""

    @pytest.mark.parametrize("name", [*KINDS, *SPLITS])
    def test_bijector_agrees_with_the_layer_and_its_own_inverse(self, name):
        layer, x, condition = case(name)
        bijector = layer.as_bijector()
        kwargs = {} if condition is None else {"condition": condition}
        ndims = len(x.shape) - 1
        y = bijector.forward(x, **kwargs)
        forward = bijector.forward_log_det_jacobian(x, event_ndims=ndims, **kwargs)
        close(forward, layer.forward_and_log_det(x, condition)[1])
        # A copy: of the very tensor that it returned, TFP would remember where it came from.
        copy = tf.identity(y)
        close(layer.as_bijector().inverse(copy, **kwargs), x)
        close(layer.as_bijector().inverse_log_det_jacobian(copy, event_ndims=ndims, **kwargs), -forward)

    @pytest.mark.parametrize("name", KINDS)
    def test_bijector_takes_any_leading_dimensions(self, name):
        layer, x, condition = case(name)
        x = tf.stack([x, x + 1, x - 1])[:, None]
        bijector = layer.as_bijector(condition)
        y = bijector.forward(x)
        log_det = bijector.forward_log_det_jacobian(x, event_ndims=len(x.shape) - 3)
        assert y.shape[:3] == log_det.shape == (3, 1, BATCH)
        expected = layer.forward_and_log_det(x[1, 0], condition)
        close(y[1, 0], expected[0])
        close(log_det[1, 0], expected[1])

    @pytest.mark.parametrize("name", CONDITIONAL)
    def test_the_calls_condition_comes_before_the_constructors(self, name):
        layer, x, condition = case(name)
        close(
            layer.as_bijector(condition + 1).forward(x, condition=condition), layer.forward_and_log_det(x, condition)[0]
        )

    @pytest.mark.parametrize("name", CONDITIONAL)
    def test_one_input_is_paired_with_every_condition(self, name):
        layer, x, condition = case(name)
        y = layer.as_bijector(condition).forward(x[0])
        assert y.shape == x.shape
        close(y[1:], layer.forward_and_log_det(x[:1], condition[1:])[0])


class TestAgainstTFP:
    """Each layer equals the elementary TFP bijector of the same numbers."""

    @pytest.mark.parametrize("name", ["actnorm-image", "actnorm-vector"])
    def test_actnorm_is_a_scale_and_a_shift(self, name):
        layer, x, _ = case(name)
        theirs = tfb.Shift(layer.bias.value)(tfb.Scale(log_scale=layer.log_scale.value))
        y, log_det = layer.forward_and_log_det(x)
        close(y, theirs.forward(x))
        close(log_det, theirs.forward_log_det_jacobian(x, event_ndims=len(x.shape) - 1))

    @pytest.mark.parametrize("name", ["conv1x1-full", "conv1x1-lu", "linear-full", "linear-lu"])
    def test_linear_map_is_a_matrix_at_every_position(self, name):
        layer, x, _ = case(name)
        if layer.form == "full":
            theirs = tfb.ScaleMatvecLinearOperator(tf.linalg.LinearOperatorFullMatrix(layer.kernel.value))
        else:
            theirs = tfb.ScaleMatvecLU(layer.factors.value, layer.permutation.value)
        y, log_det = layer.forward_and_log_det(x)
        close(y, theirs.forward(x))
        close(layer.inverse_and_log_det(y)[0], theirs.inverse(tf.identity(y)))
        # TFP's is that of one application; the layer applies the matrix at every position.
        once = theirs.forward_log_det_jacobian(tf.reshape(x, [-1, x.shape[-1]])[0], event_ndims=1)
        close(log_det, tf.fill([BATCH], math.prod(x.shape[1:-1]) * once))

    @pytest.mark.parametrize("scale", ["affine-1.0", "affine-0.6", "additive-1.0"])
    def test_coupling_of_vectors_is_a_real_nvp(self, scale):
        layer, x, _ = case(f"coupling-continuous-last-{scale}-vector")

        def shift_and_log_scale(kept, units, **kwargs):
            parameters = layer.net(kept)
            if layer.transform == "additive":
                return parameters, None
            shift, raw = tf.split(parameters, 2, -1)
            return shift, tf.math.log(1 + layer.alpha * tf.tanh(raw / 2))

        theirs = tfb.RealNVP(num_masked=3, shift_and_log_scale_fn=shift_and_log_scale)
        y, log_det = layer.forward_and_log_det(x)
        close(y, theirs.forward(x))
        close(log_det, theirs.forward_log_det_jacobian(x, event_ndims=1))

    def test_squeeze_is_a_reshape_and_a_transpose(self):
        layer, x, _ = case("squeeze")
        theirs = tfb.Chain(
            [
                tfb.Reshape(event_shape_out=[2, 1, 12], event_shape_in=[2, 1, 2, 2, 3]),
                tfb.Transpose([0, 2, 1, 3, 4]),
                tfb.Reshape(event_shape_out=[2, 2, 1, 2, 3], event_shape_in=[4, 2, 3]),
            ]
        )
        np.testing.assert_array_equal(layer.forward_and_log_det(x)[0], theirs.forward(x))

    @pytest.mark.parametrize("name", ["whitening-image", "whitening-vector"])
    def test_whitening_gives_the_density_of_a_conditional_gaussian(self, name):
        layer, x, condition = case(name)
        zero = tf.zeros_like(x)
        mean = layer.inverse_and_log_det(zero, condition)[0]
        scale = layer.inverse_and_log_det(zero + 1, condition)[0] - mean
        v, log_det = layer.forward_and_log_det(x, condition)
        axes = list(range(1, len(x.shape)))
        whitened = tf.reduce_sum(tfd.Normal(tf.zeros([], tf.float64), 1.0).log_prob(v), axes) + log_det
        close(whitened, tf.reduce_sum(tfd.Normal(mean, scale).log_prob(x), axes))


class TestActNorm:
    @pytest.mark.parametrize("shape", [(64, 5, 4, 3), (500, 6)])
    def test_initialised_output_has_mean_0_and_deviation_1_in_every_channel(self, shape):
        x = np.random.default_rng(0).standard_normal(shape) * np.arange(1, shape[-1] + 1) + 7
        layer = ActNorm(dtype="float64")
        layer.build(shape)
        layer.initialize(tf.constant(x))
        y = np.reshape(layer.forward_and_log_det(x)[0], [-1, shape[-1]])
        close(y.mean(0), np.zeros(shape[-1]))
        close(y.std(0, ddof=1), np.ones(shape[-1]))

    def test_a_constant_channel_is_shifted_and_not_scaled(self):
        x = np.random.default_rng(0).standard_normal((4, 3, 3, 2)).astype("float32")
        x[..., 1] = -0.75
        layer = ActNorm()
        layer.build(x.shape)
        layer.initialize(tf.constant(x))
        assert layer.log_scale.numpy()[1] == 0 and layer.log_scale.numpy()[0] != 0
        np.testing.assert_array_equal(layer.forward_and_log_det(x)[0][..., 1], np.zeros((4, 3, 3)))

    def test_channels_that_vary_by_one_level_of_a_pixel_are_scaled(self):
        x = np.zeros((2, 4, 4, 1), "float32")
        x[0, 0, 0, 0] = 2 / 256
        layer = ActNorm()
        layer.build(x.shape)
        layer.initialize(tf.constant(x))
        assert np.std(layer.forward_and_log_det(x)[0], ddof=1) == pytest.approx(1, rel=1e-4)


class TestLinear:
    @pytest.mark.parametrize("form", ["full", "lu"])
    def test_matrix_is_orthogonal_at_the_start(self, form):
        layer = InvertibleLinear(form, dtype="float64")
        layer.build((None, 7))
        matrix = layer.matrix().numpy()
        # Keras draws it in float32.
        close(matrix @ matrix.T, np.eye(7), 1e-6)
        close(layer.log_abs_det(), 0, 1e-6)
        close(layer.condition_number(), 1, 1e-6)

    @pytest.mark.parametrize("form", ["full", "lu"])
    def test_matrix_and_its_determinant_and_condition_agree_with_numpy(self, form):
        layer = case(f"linear-{form}")[0]
        matrix = layer.matrix().numpy()
        close(layer.log_abs_det(), np.linalg.slogdet(matrix)[1])
        close(layer.condition_number(), np.linalg.cond(matrix))

    def test_lu_learns_the_factors_and_keeps_the_permutation(self):
        layer = case("linear-lu")[0]
        assert [v.name for v in layer.trainable_variables] == ["factors"]
        assert [v.name for v in layer.non_trainable_variables] == ["permutation"]

    def test_float32_inverse_of_a_badly_conditioned_matrix_keeps_float32_precision(self):
        layer = InvertibleLinear()
        layer.build((None, 4))
        basis = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
        layer.kernel.assign((basis * [1, 1, 1, 1e-4]).astype("float32"))
        exact = np.linalg.inv(layer.kernel.numpy().astype("float64"))
        inverse = layer.inverse_and_log_det(np.eye(4))[0].numpy().T
        assert np.abs(inverse - exact).max() < 1e-6 * np.abs(exact).max()


class TestCoupling:
    @pytest.mark.parametrize(
        ("pattern", "part", "channels", "transformed"),
        [
            ("continuous", "last", 6, [3, 4, 5]),
            ("continuous", "first", 6, [0, 1, 2]),
            ("alternate", "last", 6, [1, 3, 5]),
            ("alternate", "first", 6, [0, 2, 4]),
            ("continuous", "last", 5, [3, 4]),
            ("continuous", "first", 5, [0, 1]),
            ("alternate", "last", 5, [3, 4]),
            ("alternate", "first", 5, [0, 1]),
        ],
    )
    @pytest.mark.parametrize("shape", [(2, 3), ()], ids=["image", "vector"])
    def test_pattern_and_part_choose_the_channels(self, pattern, part, channels, transformed, shape):
        layer = Coupling(4, pattern=pattern, part=part, dtype="float64")
        layer.build((None, *shape, channels))
        give_effect(layer, scale=0.5)
        x = np.random.default_rng(0).standard_normal((2, *shape, channels))
        changed = np.abs(layer.forward_and_log_det(x)[0] - x).reshape(-1, channels).max(0) > 1e-6
        assert np.flatnonzero(changed).tolist() == transformed

    @pytest.mark.parametrize("count", [1, 2, 4])
    def test_transformed_sets_how_many_channels_change(self, count):
        layer = give_effect(built(Coupling(4, transformed=count), (None, 2, 2, 5)), scale=0.5)
        x = np.random.default_rng(0).standard_normal((2, 2, 2, 5)).astype("float32")
        changed = np.abs(layer.forward_and_log_det(x)[0] - x).max((0, 1, 2)) > 1e-6
        assert changed.tolist() == [False] * (5 - count) + [True] * count

    @pytest.mark.parametrize("scale", SCALES)
    @pytest.mark.parametrize("shape", [(2, 2, 4), (4,)], ids=["image", "vector"])
    def test_coupling_is_the_identity_at_the_start_and_after_initialize(self, scale, shape):
        layer = built(Coupling(4, **SCALES[scale]), (None, *shape))
        x = tf.random.stateless_normal([2, *shape], [0, 1])
        for _ in range(2):
            y, log_det = layer.forward_and_log_det(x)
            np.testing.assert_allclose(y, x, atol=1e-6)
            np.testing.assert_allclose(log_det, np.zeros(2), atol=1e-5)
            give_effect(layer)
            assert np.abs(layer.forward_and_log_det(x)[0] - x).max() > 1e-3
            layer.initialize(x)

    @pytest.mark.parametrize("alpha", [0.3, 0.8, 1.0])
    def test_scale_stays_within_alpha_of_1(self, alpha):
        layer = give_effect(built(Coupling(4, alpha=alpha, dtype="float64"), (None, 2, 2, 4)), scale=20)
        x = 50 * np.random.default_rng(0).standard_normal((20, 2, 2, 4))
        scale = layer.scale(x).numpy()
        assert 1 - alpha <= scale.min() < 1 - 0.9 * alpha and 1 + 0.9 * alpha < scale.max() <= 1 + alpha

    @pytest.mark.parametrize("name", [name for name in CASES if "coupling" in name and "conditional" in name])
    def test_scale_gives_the_log_det(self, name):
        layer, x, condition = case(name)
        log_scale = tf.math.log(layer.scale(x, condition))
        close(layer.forward_and_log_det(x, condition)[1], tf.reduce_sum(log_scale, [1, 2, 3]))

    def test_log_det_of_alpha_1_stays_right_where_the_scale_underflows(self):
        layer = built(Coupling(4), (None, 1, 1, 2))
        layer.net.last.bias.assign([0.0, -200.0])
        assert layer.scale(np.ones((1, 1, 1, 2))).numpy().max() == 0
        log_det = layer.forward_and_log_det(np.ones((1, 1, 1, 2)))[1]
        np.testing.assert_allclose(log_det, [math.log(2) - 200], rtol=1e-6)

    def test_split_and_conditioner_may_be_any_with_their_methods(self):
        class Last:
            """x_b is the last channel alone."""

            def counts(self, channels):
                return channels - 1, 1

            def __call__(self, x):
                return x[..., :-1], x[..., -1:]

            def merge(self, x_a, x_b):
                return tf.concat([x_a, x_b], -1)

        class Linear(keras.layers.Layer):
            def build(self, x_shape, condition_shape=None):
                self.kernel = self.add_weight(shape=(x_shape[-1], 2), initializer="zeros")

            def call(self, x, condition=None):
                return tf.matmul(x, tf.convert_to_tensor(self.kernel)[None, None])

        layer = Coupling(split=Last(), conditioner=Linear(dtype="float64"), alpha=0.5, dtype="float64")
        check(layer, (2, 2, 3, 5))
        x = tf.random.stateless_normal([2, 2, 3, 5], [0, 1], dtype=tf.float64)
        changed = np.abs(layer.forward_and_log_det(x)[0] - x).max((0, 1, 2)) > 1e-6
        assert changed.tolist() == [False] * 4 + [True]

    def test_a_conditioner_of_other_outputs_is_refused(self):
        layer = Coupling(conditioner=ConvNet(3, 4))
        with pytest.raises(UserError, match="gives 3 channels; it needs 4"):
            layer.forward_and_log_det(np.ones((1, 2, 2, 4)))

    def test_initialising_leaves_the_direction_of_the_last_layer_alone(self):
        layer = give_effect(built(Coupling(4), (None, 2, 2, 4)))
        before = layer.net.last.direction.numpy()
        layer.initialize(tf.ones([1, 2, 2, 4]))
        np.testing.assert_array_equal(layer.net.last.direction.numpy(), before)


class TestNets:
    def test_convolutional_net_is_equation_7(self):
        net = give_effect(built(ConvNet(3, 4, CONDITION, dtype="float64"), (None, 3, 3, 2)))
        weights = {v.name: v.numpy() for v in net.variables}
        x, z = np.random.default_rng(0).standard_normal((2, 3, 3, 2)), np.random.default_rng(1).standard_normal((2, 3))
        elu = lambda h: np.where(h > 0, h, np.expm1(h))  # noqa: E731

        def convolve(h, kernel):
            padded = np.pad(h, [(0, 0), (1, 1), (1, 1), (0, 0)])
            return sum(
                padded[:, i : i + h.shape[1], j : j + h.shape[2]] @ kernel[i, j] for i in range(3) for j in range(3)
            )

        h = elu(convolve(x, weights["first"])) @ weights["second"][0, 0]
        h = elu(h + (z @ weights["condition_kernel"] + weights["condition_bias"])[:, None, None])
        direction = weights["last_direction"]
        kernel = direction * weights["last_gain"] / np.sqrt((direction**2).sum((0, 1, 2)))
        close(net(x, z), convolve(h, kernel) + weights["last_bias"], 1e-12)

    def test_perceptron_has_two_hidden_layers(self):
        net = give_effect(built(MLP(3, 4, dtype="float64"), (None, 2)))
        weights = {v.name: v.numpy() for v in net.variables}
        h = np.random.default_rng(0).standard_normal((2, 2))
        x = h
        for name in ("first", "second"):
            h = h @ weights[name] + weights[f"{name}_bias"]
            h = np.where(h > 0, h, np.expm1(h))
        direction = weights["last_direction"]
        kernel = direction * weights["last_gain"] / np.sqrt((direction**2).sum(0))
        close(net(x), h @ kernel + weights["last_bias"], 1e-12)


class TestPrecision:
    @pytest.mark.parametrize("shape", [(None, 4, 4, 6)])
    def test_bfloat16_reaches_the_net_and_nothing_else(self, shape):
        layer = give_effect(built(Coupling(8, CONDITION), shape), scale=0.3)
        x, z = tf.random.stateless_normal([2, 4, 4, 6], [0, 1]), tf.ones([2, CONDITION])
        exact, exact_log_det = layer.forward_and_log_det(x, z)
        with net_precision("bfloat16"):
            rough, rough_log_det = layer.forward_and_log_det(x, z)
        assert rough.dtype == rough_log_det.dtype == tf.float32
        assert 0 < np.abs(rough - exact).max() < 0.1
        assert 0 < np.abs(rough_log_det - exact_log_det).max() < 1
        np.testing.assert_array_equal(layer.forward_and_log_det(x, z)[0], exact)
        # The channels that the coupling leaves alone do not pass through the net.
        np.testing.assert_array_equal(rough[..., :3], exact[..., :3])

    def test_contexts_nest_and_survive_an_error(self):
        layer = give_effect(built(Coupling(8), (None, 4, 4, 6)), scale=0.3)
        x = tf.random.stateless_normal([2, 4, 4, 6], [0, 1])
        exact = layer.forward_and_log_det(x)[0]
        with pytest.raises(RuntimeError), net_precision("bfloat16"):
            with net_precision("float32"):
                np.testing.assert_array_equal(layer.forward_and_log_det(x)[0], exact)
            assert np.any(layer.forward_and_log_det(x)[0] != exact)
            raise RuntimeError
        np.testing.assert_array_equal(layer.forward_and_log_det(x)[0], exact)

    @pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
    @pytest.mark.parametrize("name", KINDS)
    def test_global_policy_does_not_reach_the_layers(self, name, policy):
        make, shape, condition_size = CASES[name]
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            layer = make.func(*make.args, **{k: v for k, v in make.keywords.items() if k != "dtype"})
            condition = np.ones((BATCH, condition_size), "float32") if condition_size else None
            results = layer(np.ones((BATCH, *shape), "float32"), condition)
            assert {v.dtype for v in layer.trainable_variables} <= {"float32"}
            assert [r.dtype for r in results] == [tf.float32] * 2
        finally:
            keras.config.set_dtype_policy(before)


class CountingActNorm(ActNorm):
    """Counts how often its Python code runs."""

    runs = 0

    def _forward(self, x, condition):
        CountingActNorm.runs += 1
        return super()._forward(x, condition)


class TestTraces:
    def test_layers_of_one_kind_share_a_trace_and_keep_their_own_weights(self):
        CountingActNorm.runs = 0
        traces, x = Traces(), tf.random.stateless_normal([2, 2, 2, 3], [0, 1])
        layers = [give_effect(built(CountingActNorm(), (None, 2, 2, 3)), seed) for seed in range(3)]
        outputs = [traces.run_layer(layer.forward_and_log_det, x, None) for layer in layers]
        assert CountingActNorm.runs == 1
        for layer, (y, log_det) in zip(layers, outputs, strict=True):
            expected = layer.forward_and_log_det(x)
            np.testing.assert_allclose(y, expected[0], rtol=1e-6)
            np.testing.assert_allclose(log_det, expected[1], rtol=1e-6)
        assert np.abs(outputs[0][0] - outputs[1][0]).max() > 1e-3

    def test_a_weight_assigned_later_counts(self):
        traces, x = Traces(), tf.ones([1, 2, 2, 3])
        layer = built(ActNorm(), (None, 2, 2, 3))
        before = traces.run_layer(layer.forward_and_log_det, x, None)[0]
        layer.bias.assign([1.0, 2.0, 3.0])
        np.testing.assert_allclose(
            traces.run_layer(layer.forward_and_log_det, x, None)[0] - before, x * [1, 2, 3], rtol=1e-5
        )

    def test_layers_that_differ_in_an_option_do_not_share(self):
        traces, x = Traces(), tf.random.stateless_normal([2, 2, 2, 4], [0, 1])
        for part, alpha in itertools.product(("last", "first"), (1.0, 0.5)):
            layer = give_effect(built(Coupling(4, part=part, alpha=alpha), (None, 2, 2, 4)))
            y, _ = traces.run_layer(layer.forward_and_log_det, x, None)
            np.testing.assert_allclose(y, layer.forward_and_log_det(x)[0], rtol=1e-5, atol=1e-6)
            back, _ = traces.run_layer(layer.inverse_and_log_det, y, None)
            np.testing.assert_allclose(back, x, rtol=1e-5, atol=1e-5)

    def test_each_precision_has_a_trace_of_its_own(self):
        traces, x = Traces(), tf.random.stateless_normal([2, 4, 4, 6], [0, 1])
        layer = give_effect(built(Coupling(8), (None, 4, 4, 6)), scale=0.3)
        exact = traces.run_layer(layer.forward_and_log_det, x, None)[0]
        with net_precision("bfloat16"):
            rough = traces.run_layer(layer.forward_and_log_det, x, None)[0]
        assert 0 < np.abs(rough - exact).max() < 0.1
        np.testing.assert_array_equal(traces.run_layer(layer.forward_and_log_det, x, None)[0], exact)


# A layer of each class with every option off its default.
OFF_DEFAULT = {
    "ActNorm": (ActNorm(name="other", dtype="float64"), (2, 2, 3)),
    "Coupling": (
        Coupling(
            5, 3, pattern="alternate", part="first", transform="additive", alpha=0.5, name="other", dtype="float64"
        ),
        (2, 2, 4),
    ),
    "Coupling of some": (Coupling(5, 3, transformed=1, alpha=0.5, name="other", dtype="float64"), (2, 2, 4)),
    "Coupling composed": (
        Coupling(
            split=ChannelSplit("alternate", "first"),
            conditioner=ConvNet(4, 5, 3, dtype="float64"),
            name="other",
            dtype="float64",
        ),
        (2, 2, 4),
    ),
    "InvertibleLinear": (InvertibleLinear("lu", name="other", dtype="float64"), (4,)),
    "InvertibleConv1x1": (InvertibleConv1x1("lu", name="other", dtype="float64"), (2, 2, 4)),
    "Squeeze": (Squeeze(name="other", dtype="float64"), (2, 2, 3)),
    "ConditionalWhitening": (ConditionalWhitening(5, 3, name="other", dtype="float64"), (2, 2, 3)),
}


class TestConfig:
    @pytest.mark.parametrize("name", OFF_DEFAULT)
    def test_config_round_trip_keeps_every_option_and_the_function(self, name):
        layer, shape = OFF_DEFAULT[name]
        built(layer, (None, *shape))
        give_effect(layer)
        again = keras.layers.deserialize(keras.layers.serialize(layer))
        assert type(again) is type(layer)
        assert again.get_config() == layer.get_config()
        # Keras notes the shapes as well and builds it.
        assert again.built
        again.set_weights(layer.get_weights())
        x, condition = np.random.default_rng(0).standard_normal((2, *shape)), np.ones((2, 3))
        for ours, theirs in zip(layer(x, condition), again(x, condition), strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def test_the_round_trips_above_cover_every_option_off_its_default(self):
        for kind in (ActNorm, Coupling, InvertibleLinear, InvertibleConv1x1, Squeeze, ConditionalWhitening):
            configs = [layer.get_config() for layer, _ in OFF_DEFAULT.values() if type(layer) is kind]
            for parameter in inspect.signature(kind).parameters.values():
                if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                    assert any(config[parameter.name] != parameter.default for config in configs), parameter

    @pytest.mark.parametrize("net", [ConvNet(3, 5, 2, dtype="float64"), MLP(3, 5, 0, dtype="float64")])
    def test_nets_too(self, net):
        again = keras.layers.deserialize(keras.layers.serialize(net))
        assert type(again) is type(net) and again.get_config() == net.get_config()


class TestBadArguments:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Coupling(4, pattern="checkerboard"), "pattern is 'checkerboard'; .* continuous, alternate"),
            (lambda: Coupling(4, part="middle"), "part is 'middle'; .* last, first"),
            (lambda: Coupling(4, transform="cubic"), "transform is 'cubic'; .* affine, additive"),
            (lambda: Coupling(4, alpha=0.0), "alpha is 0.0"),
            (lambda: Coupling(4, alpha=1.5), "alpha is 1.5"),
            (lambda: Coupling(4, alpha=math.nan), "alpha is nan"),
            (lambda: Coupling(4, pattern="alternate", transformed=2), "transformed is 2"),
            (lambda: InvertibleLinear("qr"), "form is 'qr'; .* full, lu"),
            (lambda: InvertibleConv1x1("qr"), "form is 'qr'"),
        ],
    )
    def test_impossible_option_is_refused_by_name(self, make, message):
        with pytest.raises(ConfigError, match=message):
            make()

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: Coupling(4).forward_and_log_det(np.ones((1, 2, 2, 1))), "0 of 1 channels"),
            (lambda: Coupling(4, transformed=3).forward_and_log_det(np.ones((1, 2, 2, 3))), "3 of 3 channels"),
            (lambda: Coupling(4, transformed=0).forward_and_log_det(np.ones((1, 2, 2, 3))), "0 of 3 channels"),
            (lambda: Squeeze().forward_and_log_det(np.ones((1, 3, 2, 1))), "3 x 2 pixels"),
            (lambda: Squeeze().forward_and_log_det(np.ones((1, 4))), r"\(1, 4\)"),
            (lambda: Squeeze().inverse_and_log_det(np.ones((1, 2, 2, 6))), "6 channels"),
        ],
    )
    def test_shape_that_does_not_fit_is_refused(self, call, message):
        with pytest.raises(UserError, match=message):
            call()

    @pytest.mark.parametrize("name", CONDITIONAL)
    @pytest.mark.parametrize("direction", ["forward_and_log_det", "inverse_and_log_det"])
    def test_missing_or_misshapen_condition_is_refused(self, name, direction):
        layer, x, _ = case(name)
        with pytest.raises(UserError, match=r"pass condition=z of shape \[batch, 3\]"):
            getattr(layer, direction)(x)
        with pytest.raises(UserError, match=r"condition of shape \(2, 4\); it needs \[batch, 3\]"):
            getattr(layer, direction)(x, tf.zeros([BATCH, 4]))

    def test_conditional_coupling_of_vectors_is_refused(self):
        with pytest.raises(UserError):
            Coupling(4, CONDITION).forward_and_log_det(np.ones((2, 6)), np.ones((2, CONDITION)))

    @pytest.mark.parametrize("name", [n for n in KINDS if not n.startswith("squeeze")])
    def test_other_channels_than_it_was_built_for_are_refused(self, name):
        layer, x, condition = case(name)
        with pytest.raises(UserError):
            layer.forward_and_log_det(tf.concat([x, x[..., :1]], -1), condition)


class TestChannelProduct:
    @pytest.mark.parametrize("known", [True, False])
    @pytest.mark.parametrize("transpose", [False, True])
    @pytest.mark.parametrize("shape", [(2, 3), (2, 5, 3), (2, 4, 5, 3)])
    def test_every_position_is_multiplied(self, shape, transpose, known):
        x, matrix = (np.random.default_rng(0).standard_normal(size).astype("float32") for size in (shape, (3, 2)))
        signature = [tf.TensorSpec(shape if known else [None] * (len(shape) - 1) + [3])]

        @tf.function(input_signature=signature)
        def run(x):
            return channel_product(x, matrix.T if transpose else matrix, transpose)

        assert run.get_concrete_function().output_shapes.as_list() == [*signature[0].shape[:-1], 2]
        np.testing.assert_allclose(run(x), x @ matrix, rtol=1e-5, atol=1e-6)


def shapes(least_channels=2):
    return st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(least_channels, 9))


class TestAnyShape:
    """Batches of 1, maps of 1 x 1, odd channels: hypothesis looks for the shape that breaks a layer."""

    @FEW
    @given(
        shapes(),
        st.sampled_from(PATTERNS),
        st.sampled_from(sorted(SCALES)),
        st.booleans(),
    )
    def test_coupling(self, shape, pattern, scale, conditional):
        options = {"pattern": pattern[0], "part": pattern[1], **SCALES[scale]}
        check(Coupling(3, CONDITION if conditional else 0, dtype="float64", **options), shape)

    @FEW
    @given(shapes(1), st.sampled_from(["full", "lu"]))
    def test_conv1x1(self, shape, form):
        check(InvertibleConv1x1(form, dtype="float64"), shape)

    @FEW
    @given(shapes(1))
    def test_actnorm(self, shape):
        check(ActNorm(dtype="float64"), shape)

    @FEW
    @given(shapes(1))
    def test_squeeze(self, shape):
        batch, height, width, channels = shape
        check(Squeeze(dtype="float64"), (batch, 2 * height, 2 * width, channels))

    @FEW
    @given(shapes(1))
    def test_whitening(self, shape):
        check(ConditionalWhitening(3, CONDITION, dtype="float64"), shape)

    @FEW
    @given(st.integers(1, 4), st.integers(2, 9), st.sampled_from(PATTERNS), st.sampled_from(sorted(SCALES)))
    def test_coupling_of_vectors(self, batch, channels, pattern, scale):
        options = {"pattern": pattern[0], "part": pattern[1], **SCALES[scale]}
        check(Coupling(3, dtype="float64", **options), (batch, channels))

    @FEW
    @given(shapes(1), st.floats(-1, 1), st.integers(0, 8))
    def test_actnorm_starts_from_constant_images(self, shape, value, varying):
        x = np.full(shape, value, "float32")
        if varying < shape[-1]:
            x[..., varying] += np.random.default_rng(0).standard_normal(shape[:-1]).astype("float32")
        layer = built(ActNorm(), shape)
        layer.initialize(tf.constant(x))
        assert np.isfinite(layer.log_scale.numpy()).all() and np.isfinite(layer.bias.numpy()).all()
        y, _ = layer.forward_and_log_det(x)
        np.testing.assert_allclose(layer.inverse_and_log_det(y)[0], x, atol=1e-6)


def built(layer, shape):
    layer.build(shape)
    return layer


def check(layer, shape):
    """A freshly built layer inverts exactly and tells the log-determinant of its Jacobian, on inputs of this shape."""
    give_effect(built(layer, (None, *shape[1:])), scale=0.3)
    rng = np.random.default_rng(0)
    x, condition = tf.constant(rng.standard_normal(shape)), tf.constant(rng.standard_normal((shape[0], CONDITION)))
    y, log_det = layer.forward_and_log_det(x, condition)
    close(layer.inverse_and_log_det(y, condition)[0], x, 1e-8)
    close(log_det, jacobian_log_det(layer.forward_and_log_det, x, condition), 1e-8)
