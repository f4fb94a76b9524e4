"""Tests of DecoupledModel: images come back from their codes exactly; samples, switches and places between."""

import dataclasses
import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.models import random_images
from helpers.refusals import message_of
from helpers.variants import SMALLEST, VARIANTS, equal, fresh, images_of, quantize, read_weights, variant
from tensorflow_probability import distributions as tfd

from tfdecouple import randomness
from tfdecouple.errors import DataError, ExactnessWarning, InversionError, UserError
from tfdecouple.model import Codes, DecoupledModel, far_from_training
from tfdecouple.model.interpolation import interpolate_codes

pytestmark = pytest.mark.usefixtures("eager")


def checkerboard(count, size):
    board = 255 * (np.indices((size, size)).sum(0) % 2)
    return np.repeat(board[None, :, :, None], 3, -1).repeat(count, 0).astype("uint8")


IMAGES = {
    "random": lambda count: random_images(count, seed=3),
    "black": lambda count: np.zeros((count, 8, 8, 3), "uint8"),
    "white": lambda count: np.full((count, 8, 8, 3), 255, "uint8"),
    "extreme noise": lambda count: 255 * np.random.default_rng(0).integers(0, 2, (count, 8, 8, 3), dtype="uint8"),
    "checkerboard": lambda count: checkerboard(count, 8),
}


class TestExactness:
    @pytest.mark.parametrize("n_bits", [8, 5, 1])
    def test_images_come_back_from_their_codes(self, of_bits, n_bits):
        model, images = of_bits(n_bits), np.concatenate([make(3) for make in IMAGES.values()])
        decoded = model.decode(*model.encode(images, verify=True))
        assert decoded.dtype == tf.uint8
        expected = quantize(images, n_bits)
        for number, kind in enumerate(IMAGES):
            part = slice(3 * number, 3 * number + 3)
            np.testing.assert_array_equal(decoded[part], expected[part], err_msg=kind)
        equal(model.quantize_images(images), expected)
        many = np.concatenate([images] * 5)
        equal(model.decode(*model.encode(many, verify=True)), np.concatenate([expected] * 5))
        equal(model.decode(*model.encode(images[:1])), expected[:1])

    @pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("coupling", "base")])
    def test_every_variant_gives_back_its_images(self, name):
        model = variant(name)
        images = images_of(model, 8)
        equal(model.decode(*model.encode(images, verify=True)), images)

    @pytest.mark.parametrize("n_bits", [8, 5, 1])
    def test_below_8_bits_images_of_a_level_have_the_same_code(self, of_bits, n_bits):
        images = random_images(1)
        same, other = quantize(images, n_bits), images ^ 0x80
        v = of_bits(n_bits).encode(np.concatenate([images, same, other])).v
        np.testing.assert_allclose(v[0], v[1], rtol=1e-5, atol=1e-5)
        assert np.abs(v[0] - v[2]).max() > 0.1

    def test_code_is_posterior_mean_and_flow_of_bin_centres(self, small_model):
        images = images_of(small_model)
        codes = small_model.encode(images)
        equal(codes.z, small_model.posterior(images).mean())
        x = 2 * (images + np.float32(0.5)) / 256 - 1
        np.testing.assert_allclose(codes.v, small_model.flow.forward_and_log_det(x, codes.z)[0], rtol=1e-5, atol=1e-5)
        assert isinstance(codes, Codes) and codes.z.shape == (3, 4) and codes.v.shape == (3, 4, 4, 3)


def lossy(gain, shift):
    """A model with alpha = 1 whose first coupling shrinks what is bright and leaves what is dark."""
    model = DecoupledModel(dataclasses.replace(SMALLEST, alpha=1.0))
    model.initialize(random_images(16, 4))
    step = model.flow.levels[0][0].steps[0]
    step.sequence[1].kernel.assign(np.eye(3))
    net = step.sequence[2].net
    for variable in (net.condition_kernel, net.condition_bias):
        variable.assign(np.zeros(variable.shape))
    first = np.zeros(net.first.shape)
    first[1, 1] = 1
    net.first.assign(first)
    net.second.assign(np.eye(4)[None, None])
    net.last.direction.assign(np.ones(net.last.direction.shape))
    net.last.gain.assign([0.0, -gain])
    net.last.bias.assign([shift, 0.0])
    return model


class TestLostImages:
    @pytest.mark.parametrize(
        ("gain", "shift", "lost"),
        # Bright images shrink to 0, or below the rounding of a large shift; or dark ones shrink to 0.
        [(1000.0, 0.0, [1, 3, 5]), (8.0, 1000.0, [1, 3, 5]), (-1000.0, 0.0, [0, 2, 4])],
        ids=["underflow", "rounding", "underflow of dark ones"],
    )
    def test_verify_names_exactly_the_images_that_are_lost(self, gain, shift, lost):
        model = lossy(gain, shift)
        black, white = np.zeros((1, 4, 4, 3), "uint8"), np.full((1, 4, 4, 3), 255, "uint8")
        dark = random_images(1, 4) // 8
        images = np.concatenate([black, white, dark, white, black, white])
        codes = model.encode(images)
        assert np.all(np.isfinite(codes.v))
        x = model.flow.inverse_and_log_det(codes.v, codes.z)[0]
        assert (
            np.flatnonzero(np.any((model.quantizer.round_to_pixels(x) != images) | ~np.isfinite(x), (1, 2, 3))).tolist()
            == lost
        )
        message = message_of(InversionError, lambda: model.encode(images, verify=True))
        assert message.startswith(f"image {', '.join(map(str, lost))} of the batch") and "alpha" in message
        # Those that are not lost pass by themselves.
        kept = np.setdiff1d(range(6), lost)
        v = model.encode(images[kept], verify=True).v
        np.testing.assert_allclose(v, codes.v.numpy()[kept], rtol=1e-4, atol=1e-5)

    def test_images_far_from_the_training_are_named(self):
        rng = np.random.default_rng(0)
        near = rng.integers(120, 136, (16, 4, 4, 3), dtype="uint8")
        far = (255 * rng.integers(0, 2, (1, 4, 4, 3))).astype("uint8")
        model = DecoupledModel(SMALLEST)
        model.initialize(near)
        images = np.concatenate([near[:1], far, near[1:2]])
        with pytest.warns(ExactnessWarning, match="^image 1 of the batch is far from") as said:
            codes = model.encode(images)
        assert said[0].filename == __file__
        assert far_from_training(codes.v).tolist() == [False, True, False]
        assert far_from_training(np.stack([np.zeros((2, 2, 3)), np.full((2, 2, 3), np.nan)])).tolist() == [False, True]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.encode(near)
            # What was decoded again and came back needs no warning.
            model.encode(images, verify=True)

    def test_encode_with_verify_is_refused_within_a_function(self, small_model):
        encode = tf.function(lambda images: small_model.encode(images, verify=True))
        assert "tf.function" in message_of(UserError, lambda: encode(tf.constant(images_of(small_model))))

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("flow/level_1_part_0_step_0/coupling_alternate_first/net/last_bias", math.inf),
            ("flow/level_1_part_0_step_0/linear/kernel", math.nan),
        ],
    )
    def test_broken_weights_are_an_error_everywhere(self, name, value):
        model = fresh(SMALLEST)
        images = images_of(model)
        codes = model.encode(images)
        variable = model.named_variables()[name]
        variable.assign(np.full(variable.shape, value))
        assert "image 0, 1, 2 of the batch" in message_of(InversionError, lambda: model.encode(images))
        assert "image 0, 1, 2 of the batch" in message_of(InversionError, lambda: model.decode(*codes))
        message_of(InversionError, lambda: model.sample(2, seed=0))
        variable.assign(np.zeros(variable.shape))
        model.encoder.last.bias.assign(np.full(8, math.nan))
        message_of(InversionError, lambda: model.encode(images))

    def test_decode_names_only_the_image_with_nan(self, small_model):
        z, v = (np.array(code) for code in small_model.encode(images_of(small_model)))
        v[1, 0, 0, 0] = math.nan
        assert "image 1 of the batch" in message_of(InversionError, lambda: small_model.decode(z, v))


class TestBaseConditioning:
    """The paper's Table 3 baseline: z only whitens the code of the unconditional flow."""

    def test_v_is_the_plain_flows_code_whitened_by_z(self):
        model = variant("base-additive")
        plain = DecoupledModel(dataclasses.replace(model.config, conditioning="none"))
        values = read_weights(model)
        for key, variable in plain.named_variables().items():
            variable.assign(values[key])
        images = images_of(model)
        z, v = model.encode(images)
        h = plain.encode(images).v
        zero = tf.zeros_like(h)
        mean = model.flow.whitening.inverse_and_log_det(zero, z)[0]
        scale = model.flow.whitening.inverse_and_log_det(zero + 1, z)[0] - mean
        np.testing.assert_allclose(v, (h - mean) / scale, rtol=1e-3, atol=1e-4)
        # p(x|z) is the Gaussian of that mean and scale, seen through the plain flow.
        x = 2 * (images + np.float32(0.5)) / 256 - 1
        gaussian = tf.reduce_sum(tfd.Normal(mean, scale).log_prob(h), [1, 2, 3])
        expected = gaussian + plain.flow.forward_and_log_det(x)[1]
        np.testing.assert_allclose(model.likelihood(z).log_prob(x), expected, rtol=1e-3)


class TestWithoutZ:
    def test_codes_have_no_z_and_decode_takes_none(self):
        model = variant("none")
        images = images_of(model)
        codes = model.encode(images)
        assert codes.z is None and model.encoder is None and model.prior_flow is None
        equal(model.decode(None, codes.v), images)

    def test_model_without_z_samples_and_interpolates(self):
        model = variant("none")
        a, b = images_of(model, 2, 1), images_of(model, 2, 2)
        assert model.sample(3, seed=1).shape == (3, 4, 4, 3)
        grid = model.interpolate(a, b, [0, 1], [0, 1])
        equal(grid[:, 0], grid[:, 1])
        equal(grid[:, 0, 0], a)
        equal(grid[:, 0, 1], b)

    @pytest.mark.parametrize(
        "call",
        [
            lambda model, images: model.posterior(images),
            lambda model, images: model.prior,
            lambda model, images: model.switch(images, images),
            lambda model, images: model.likelihood(np.zeros((3, 4))),
            lambda model, images: model.decode(np.zeros((3, 4)), np.zeros(images.shape)),
        ],
        ids=["posterior", "prior", "switch", "likelihood of z", "decode of z"],
    )
    def test_methods_that_need_z_are_refused_without_z(self, call):
        assert "no z" in message_of(UserError, lambda: call(variant("none"), images_of(variant("none"))))


class TestSample:
    def test_samples_have_the_shape_and_dtype_of_images(self, small_model):
        images = small_model.sample(5, seed=1)
        assert images.shape == (5, 4, 4, 3) and images.dtype == tf.uint8
        assert len(np.unique(images)) > 20
        assert small_model.sample(0).shape == (0, 4, 4, 3)

    def test_temperature_scales_v_and_leaves_z(self, small_model):
        z = small_model.z_from_noise(tf.random.stateless_normal([4, 4], randomness.derive_seed(7, "z")))
        v = tf.random.stateless_normal([4, 4, 4, 3], randomness.derive_seed(7, "v"))
        for temperature in (0.0, 0.7, 1.0):
            equal(small_model.sample(4, temperature, seed=7), small_model.decode(z, temperature * v))
        assert np.any(small_model.sample(4, 0.7, seed=7) != small_model.sample(4, 1.0, seed=7))

    def test_samples_of_a_1_bit_model_have_two_values(self, of_bits):
        images = of_bits(1).sample(4, seed=1)
        assert set(np.unique(images)) == {0, 128}


class TestSwitchAndInterpolate:
    def test_switch_takes_z_of_one_and_v_of_the_other(self, small_model):
        a, b = images_of(small_model, 3, 1), images_of(small_model, 3, 2)
        ab, ba = small_model.switch(a, b)
        equal(ab, small_model.decode(small_model.encode(a).z, small_model.encode(b).v))
        equal(ba, small_model.decode(small_model.encode(b).z, small_model.encode(a).v))
        assert np.any(ab != b) and np.any(ba != a)
        for image in small_model.switch(a, a):
            equal(image, a)

    @pytest.mark.parametrize("path", ["lerp", "slerp"])
    def test_corners_are_the_images_and_their_switches_and_the_rest_is_between_their_codes(self, small_model, path):
        a, b = images_of(small_model, 3, 1), images_of(small_model, 3, 2)
        (z_a, v_a), (z_b, v_b) = small_model.encode(a), small_model.encode(b)
        grid = small_model.interpolate(a, b, [0, 0.25, 1], [0, 0.75, 1], path=path)
        assert grid.shape == (3, 3, 3, 4, 4, 3) and grid.dtype == tf.uint8
        equal(grid[:, 0, 0], a)
        equal(grid[:, 2, 2], b)
        ab, ba = small_model.switch(a, b)
        equal(grid[:, 2, 0], ba)  # z of b, v of a
        equal(grid[:, 0, 2], ab)  # z of a, v of b
        v = interpolate_codes(v_a, v_b, [0.75], path)[:, 0]
        equal(grid[:, 1, 1], small_model.decode(0.75 * z_a + 0.25 * z_b, v))
        assert "path is 'arc'" in message_of(UserError, lambda: small_model.interpolate(a, b, [0], [0], path="arc"))

    def test_result_does_not_depend_on_the_size_of_chunks(self, small_model, monkeypatch):
        a, b = images_of(small_model, 2, 1), images_of(small_model, 2, 2)
        whole = small_model.interpolate(a, b, [0, 0.3, 1], [0, 0.6, 1])
        monkeypatch.setattr("tfdecouple.model.codes.CHUNK", 5)
        equal(small_model.interpolate(a, b, [0, 0.3, 1], [0, 0.6, 1]), whole)

    @pytest.mark.parametrize("alphas", [[0, 0.5], []])
    def test_interpolate_works_in_a_function_for_batches_of_any_size(self, small_model, alphas):
        a, b = images_of(small_model, 2, 1), images_of(small_model, 2, 2)

        def run(a, b):
            return small_model.interpolate(a, b, alphas, [0, 1])

        signature = [tf.TensorSpec([None, 4, 4, 3], tf.uint8)] * 2
        equal(tf.function(run, input_signature=signature)(a, b), run(a, b))


class TestBadArguments:
    @pytest.mark.parametrize("method", ["initialize", "diagnose", "quantize_images", "classify"])
    def test_methods_of_one_image_size_refuse_other_sizes(self, method):
        images = np.zeros((2, 4, 8, 3), "uint8")
        message = message_of(DataError, lambda: getattr(variant("prior-classes"), method)(images))
        assert "(2, 4, 8, 3); this model needs [batch, 4, 4, 3]" in message


@pytest.fixture
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


class TestPrecision:
    @pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"], indirect=True)
    def test_model_computes_in_float32_under_any_policy(self, policy):
        model = fresh(SMALLEST)
        images = images_of(model)
        codes = model.encode(images, verify=True)
        equal(model.decode(*codes), images)
        assert {array.dtype for array in (*codes, *model.elbo(images, seed=1))} == {tf.float32}
        assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
        # To the last bit what the same weights give under the ordinary policy.
        keras.config.set_dtype_policy("float32")
        plain = DecoupledModel(SMALLEST)
        plain.set_weights(model.get_weights())
        for ours, theirs in zip(codes, plain.encode(images), strict=True):
            equal(ours, theirs)
