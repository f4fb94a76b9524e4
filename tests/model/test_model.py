import dataclasses
import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.models import assert_all_close, assert_gradients_reach_weights, random_images
from helpers.refusals import message_of
from helpers.variants import SMALLEST, VARIANTS, equal, fresh, images_of, quantize, read_weights, variant

from tfdecouple.data.hard_images import make_hard_images
from tfdecouple.errors import ExactnessWarning, InversionError, UserError
from tfdecouple.model import Codes, DecoupledModel, far_from_training
from tfdecouple.model.codes import interpolate_codes
from tfdecouple.model.quantizer import Quantizer

pytestmark = pytest.mark.usefixtures("eager")


IMAGES = np.concatenate([*make_hard_images((4, 4, 3), 3).values()])
WITH_NAN = np.zeros((3, 4, 4, 3), np.float32)
WITH_NAN[1, 0, 0, 0] = math.nan


def lossy(gain, shift):
    """A model with alpha = 1 whose first coupling shrinks what is bright and leaves what is dark."""
    model = DecoupledModel(dataclasses.replace(SMALLEST, alpha=1.0))
    model.initialize(random_images(16, 4))
    step = model.flow.levels[0][0].layers[0]
    step.sequence[1].kernel.assign(np.eye(3))
    net = step.sequence[2].net
    for variable in (net.condition_kernel, net.condition_bias):
        variable.assign(np.zeros(variable.shape))
    first = np.zeros(net.first.shape)
    first[1, 1] = 1
    net.first.assign(first)
    net.second.assign(np.eye(4)[None, None])
    net.last_direction.assign(np.ones(net.last_direction.shape))
    net.last_gain.assign([0.0, -gain])
    net.last_bias.assign([shift, 0.0])
    return model


@pytest.fixture
def of_bits(monkeypatch):
    """A function of `n_bits` that sets the model `coupling` to that many bits per colour value, and returns it."""

    def choose(n_bits):
        model = variant("coupling")
        monkeypatch.setattr(model, "config", dataclasses.replace(SMALLEST, n_bits=n_bits))
        monkeypatch.setattr(model, "quantizer", Quantizer(n_bits))
        return model

    return choose


class TestModel:
    @pytest.mark.parametrize("n_bits", [8, 5])
    def test_images_of_any_bits_decode_to_the_lowest_pixels_of_their_bins(self, of_bits, n_bits):
        model, expected = of_bits(n_bits), quantize(IMAGES, n_bits)
        codes = model.encode(IMAGES, verify=True)
        assert isinstance(codes, Codes) and model.decode(*codes).dtype == tf.uint8
        equal(model.decode(*codes), expected)
        equal(model.quantizer.quantize_pixels(IMAGES), expected)
        np.testing.assert_allclose(model.encode(expected).v, codes.v, rtol=1e-4, atol=1e-4)
        equal(model.decode(*model.encode(np.concatenate([IMAGES] * 5))), np.concatenate([expected] * 5))
        equal(model.decode(*model.encode(IMAGES[:1])), expected[:1])

    @pytest.mark.parametrize(
        ("gain", "shift", "lost"),
        # Bright images shrink to 0, or below the rounding of a large shift; or dark ones shrink to 0.
        [(1000.0, 0.0, [1, 3, 5]), (8.0, 1000.0, [1, 3, 5]), (-1000.0, 0.0, [0, 2, 4])],
        ids=["underflow", "rounding", "underflow of dark images"],
    )
    def test_encode_with_verify_names_exactly_the_lost_images(self, gain, shift, lost):
        model = lossy(gain, shift)
        black, white = np.zeros((1, 4, 4, 3), "uint8"), np.full((1, 4, 4, 3), 255, "uint8")
        dark = random_images(1, 4) // 8
        images = np.concatenate([black, white, dark, white, black, white])
        codes = model.encode(images)
        assert np.all(np.isfinite(codes.v))
        message = message_of(InversionError, lambda: model.encode(images, verify=True))
        assert message.startswith(f"image {', '.join(map(str, lost))} of the batch") and "alpha" in message
        # Without the lost images, encoding passes.
        kept = np.setdiff1d(range(6), lost)
        v = model.encode(images[kept], verify=True).v
        np.testing.assert_allclose(v, codes.v.numpy()[kept], rtol=1e-4, atol=1e-5)

    def test_encode_warns_of_images_far_from_the_training_images(self):
        rng = np.random.default_rng(0)
        near = rng.integers(120, 136, (16, 4, 4, 3), dtype="uint8")
        far = (255 * rng.integers(0, 2, (1, 4, 4, 3))).astype("uint8")
        model = DecoupledModel(SMALLEST)
        model.initialize(near)
        images = np.concatenate([near[:1], far, near[1:2]])
        with pytest.warns(ExactnessWarning, match="^image 1 of the batch is far from") as warned:
            codes = model.encode(images)
        assert warned[0].filename == __file__
        assert far_from_training(codes.v).tolist() == [False, True, False]
        assert far_from_training(np.stack([np.zeros((2, 2, 3)), np.full((2, 2, 3), np.nan)])).tolist() == [False, True]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.encode(near)
            # The square of this v is above the largest float32.
            assert far_from_training(np.full((1, 2, 2, 3), 1e30, "float32")).tolist() == [True]
            # Images that were recovered by decoding need no warning.
            model.encode(images, verify=True)

    def test_encode_with_verify_is_refused_within_a_function(self, traced):
        model = variant("coupling")
        encode = tf.function(lambda images: model.encode(images, verify=True))
        assert "tf.function" in message_of(UserError, lambda: encode(tf.constant(images_of(model))))

    @pytest.mark.parametrize(
        ("name", "value"), [("coupling_alternate_first/net/last_bias", math.inf), ("linear/kernel", math.nan)]
    )
    def test_encode_decode_and_sample_refuse_weights_that_are_not_finite(self, name, value):
        model = fresh(SMALLEST)
        images = images_of(model)
        codes = model.encode(images)
        variable = model.named_variables()[f"flow/level_1_part_0_step_0/{name}"]
        variable.assign(np.full(variable.shape, value))
        for call in (lambda: model.encode(images), lambda: model.decode(*codes), lambda: model.sample(3, seed=0)):
            assert "image 0, 1, 2 of the batch" in message_of(InversionError, call)
        variable.assign(np.zeros(variable.shape))
        model.encoder.last_bias.assign(np.full(8, math.nan))
        message_of(InversionError, lambda: model.encode(images))

    def test_v_of_base_conditioning_is_the_code_of_the_flow_without_z_whitened_by_z(self):
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

    def test_model_without_z_interpolates_v(self):
        model = variant("none")
        a, b = images_of(model, 2, 1), images_of(model, 2, 2)
        assert model.encode(a).z is None and model.encoder is None and model.prior_flow is None
        grid = model.interpolate(a, b, [0, 1], [0, 1])
        equal(grid[:, 0], grid[:, 1])
        equal(grid[:, 0, 0], a)
        equal(grid[:, 0, 1], b)

    @pytest.mark.parametrize(
        ("name", "words", "call"),
        [
            ("none", "no z", lambda model, images: model.posterior(images)),
            ("none", "no z", lambda model, images: model.prior()),
            ("none", "no z", lambda model, images: model.switch(images, images)),
            ("none", "no z", lambda model, images: model.likelihood(np.zeros((3, 4)))),
            ("none", "no z", lambda model, images: model.decode(np.zeros((3, 4)), np.zeros(images.shape))),
            ("prior-classes", "needs [batch, 4, 4, 3]", lambda model, images: model.initialize(images[:, :2])),
            ("prior-classes", "needs [batch, 4, 4, 3]", lambda model, images: model.classify(images[:, :2])),
            ("coupling", "image 1 of the batch", lambda model, images: model.decode(np.zeros((3, 4)), WITH_NAN)),
            (
                "coupling",
                "path is 'arc'",
                lambda model, images: model.interpolate(images, images, [0], [0], path="arc"),
            ),
        ],
    )
    def test_impossible_call_of_a_method_is_refused(self, name, words, call):
        assert words in message_of(UserError, lambda: call(variant(name), images_of(variant(name))))

    @pytest.mark.parametrize("path", ["lerp", "slerp"])
    def test_interpolation_has_images_and_switches_in_its_corners_and_codes_between(self, path):
        model = variant("coupling")
        a, b = images_of(model, 3, 1), images_of(model, 3, 2)
        (z_a, v_a), (z_b, v_b) = model.encode(a), model.encode(b)
        grid = model.interpolate(a, b, [0, 0.25, 1], [0, 0.75, 1], path=path)
        assert grid.shape == (3, 3, 3, 4, 4, 3) and grid.dtype == tf.uint8
        equal(grid[:, 0, 0], a)
        equal(grid[:, 2, 2], b)
        ab, ba = model.switch(a, b)
        equal(grid[:, 2, 0], ba)  # z of b, v of a
        equal(grid[:, 0, 2], ab)  # z of a, v of b
        v = interpolate_codes(v_a, v_b, [0.75], path)[:, 0]
        equal(grid[:, 1, 1], model.decode(0.75 * z_a + 0.25 * z_b, v))

    @pytest.mark.parametrize("name", ["base", "colour-map", "dequantization"])
    def test_model_computes_in_float32_under_any_dtype_policy_inside_a_layer_of_the_user(self, name):
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            model = fresh(VARIANTS[name])
            images = images_of(model)

            class UserLayer(keras.layers.Layer):
                def call(self, unused):
                    codes = model.encode(images)
                    return *codes, *model.bound(images, seed=1), model.decode(*codes)

            # Keras would cast weights of the layer's dtype where a layer in mixed precision reads them.
            *results, decoded = UserLayer()(tf.zeros([1]))
            equal(decoded, images)
            assert {array.dtype for array in results} == {tf.float32}
            assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
        finally:
            keras.config.set_dtype_policy(before)
        assert_all_close(results, [*model.encode(images), *model.bound(images, seed=1)], rtol=0)


class TestLikelihood:
    def inputs(self, model):
        rng = np.random.default_rng(0)
        images = images_of(model)
        u = rng.random(images.shape, "float32")
        return images, u, 2 * (images + u) / np.float32(256) - 1, rng.standard_normal((3, 4)).astype("float32")

    @pytest.mark.parametrize("name", ["coupling", "none", "base"])
    def test_likelihood_log_prob_is_minus_the_reconstruction_term(self, name):
        model = variant(name)
        images, u, x, noise = self.inputs(model)
        z = None
        if model.config.has_latent:
            posterior = model.posterior(images)
            z = posterior.mean() + posterior.stddev() * noise
        elbo = model.bound(images, noise=(noise, u))
        np.testing.assert_allclose(model.likelihood(z).log_prob(x), -elbo.reconstruction, rtol=1e-5)

    def test_likelihood_has_the_batch_shape_of_z(self):
        model = variant("coupling")
        _, _, x, z = self.inputs(model)
        for shape in ((4,), (3, 4), (1, 3, 4), (3, 1, 4)):
            likelihood = model.likelihood(z[0] if shape == (4,) else z.reshape(shape))
            assert likelihood.batch_shape == shape[:-1] and likelihood.event_shape == (4, 4, 3)
        likelihood = model.likelihood(z)
        samples = likelihood.sample([2, 5], seed=1)
        assert samples.shape == (2, 5, 3, 4, 4, 3) and samples.dtype == tf.float32
        log_prob = likelihood.log_prob(samples)
        assert log_prob.shape == (2, 5, 3)
        np.testing.assert_allclose(log_prob[1, 4], likelihood.log_prob(samples[1, 4]), rtol=1e-4)
        # One image under several z.
        together = likelihood.log_prob(x[0])
        np.testing.assert_allclose(together[2], model.likelihood(z[2]).log_prob(x[0]), rtol=1e-5)


PIXELS = np.arange(256, dtype="uint8")


@pytest.mark.parametrize("n_bits", range(1, 9))
class TestPixelBins:
    def test_every_x_of_a_bin_gives_the_same_pixel(self, n_bits):
        quantizer = Quantizer(n_bits)
        bins = quantizer.find_bins(PIXELS)
        expected = PIXELS // quantizer.pixels_per_bin * quantizer.pixels_per_bin
        for u in (0.0, 0.5, 1 - 2**-10):
            pixels = quantizer.round_to_pixels(quantizer.place_in_bins(bins, u))
            assert pixels.dtype == tf.uint8
            np.testing.assert_array_equal(pixels, expected)
        np.testing.assert_array_equal(quantizer.quantize_pixels(PIXELS), expected)

    def test_bins_cover_the_range_of_x_without_gaps(self, n_bits):
        quantizer = Quantizer(n_bits)
        bins = np.arange(quantizer.n_bins, dtype="float64")
        edges = quantizer.place_at_edges(bins)
        assert edges[0] == -1 and edges[-1] + quantizer.bin_width == 1 and edges.dtype == np.float64
        np.testing.assert_array_equal(quantizer.place_in_bins(bins, 1.0)[:-1], edges[1:])
        np.testing.assert_array_equal(quantizer.place_at_centres(bins), edges + quantizer.bin_width / 2)
        np.testing.assert_array_equal(quantizer.scale_to_bins(edges), bins)


class TestDensities:
    @pytest.mark.parametrize("name", ["base", "additive", "dequantization"])
    def test_every_weight_of_a_model_receives_a_gradient(self, name):
        model, rng = fresh(VARIANTS[name]), np.random.default_rng(0)
        images = images_of(model, 4)
        noise = rng.standard_normal((4, model.config.latent_dim)).astype("float32"), rng.random(images.shape, "float32")

        def compute_loss():
            return tf.reduce_mean(model.bound(images, noise=noise, training=True).bits_per_dim)

        assert_gradients_reach_weights(model, compute_loss)

    def test_reconstruction_term_has_gradients_for_mean_and_variance_of_z(self):
        model, images = fresh(SMALLEST), random_images(4, 4)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model.bound(images, noise=(tf.ones([4, 4]), tf.zeros([4, 4, 4, 3]))).reconstruction)
        gradient = tape.gradient(loss, model.encoder.last_bias.value)
        assert np.all(gradient.numpy() != 0)

    @pytest.mark.parametrize("n_bits", [8, 5, 1])
    def test_bits_per_dim_follow_from_the_terms_in_nats(self, of_bits, n_bits):
        model = of_bits(n_bits)
        elbo = model.bound(images_of(model), seed=1)
        nats = sum(np.asarray(part, "float64") for part in (elbo.reconstruction, elbo.kl, elbo.dequantization))
        # -log P(image) >= -nats; the image is a cell of sides 2/n_bins in each of 48 directions.
        discrete = nats - 48 * math.log(2 / 2**n_bits)
        np.testing.assert_allclose(elbo.bits_per_dim, discrete / (48 * math.log(2)), rtol=1e-5)

    @pytest.mark.parametrize("name", ["coupling", "additive", "normal"])
    def test_kl_of_a_bound_is_the_difference_of_two_log_densities(self, name):
        model, noise = variant(name), np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
        images = images_of(model)
        posterior = model.posterior(images)
        z = posterior.mean() + posterior.stddev() * noise
        kl = model.bound(images, noise=(noise, np.zeros(images.shape, "f4"))).kl
        np.testing.assert_allclose(kl, posterior.log_prob(z) - model.prior().log_prob(z), rtol=1e-3, atol=1e-4)

    def test_x_outside_of_the_range_of_pixels_is_clipped(self):
        x = tf.constant([-9.0, -1.0, -1 + 1.9 / 256, 0.0, 1 - 1e-4, 1.0, 9.0])
        np.testing.assert_array_equal(Quantizer(8).round_to_pixels(x), [0, 0, 0, 128, 255, 255, 255])
        np.testing.assert_array_equal(Quantizer(1).round_to_pixels(x), [0, 0, 0, 128, 128, 128, 128])


PLACES = [0, 0.25, 0.5, 0.75, 1]


def measure_angles(codes, other):
    codes, other = codes.astype(np.float64), other.astype(np.float64)
    cosine = (codes * other).sum(-1) / np.linalg.norm(codes, axis=-1) / np.linalg.norm(other, axis=-1)
    return np.arccos(np.clip(cosine, -1, 1))


class TestInterpolation:
    def test_slerp_turns_at_an_even_speed_and_changes_the_length_linearly(self):
        a, b = np.random.default_rng(0).standard_normal((2, 3, 192)).astype(np.float32)
        b = 1.5 * b
        codes = interpolate_codes(a, b, PLACES, "slerp").numpy()
        for index, place in enumerate(PLACES):
            np.testing.assert_allclose(measure_angles(codes[:, index], a), place * measure_angles(a, b), atol=1e-3)
        lengths, of_a, of_b = (np.linalg.norm(code, axis=-1)[..., None] for code in (codes, a, b))
        places = np.float32(PLACES)
        np.testing.assert_allclose(lengths[..., 0], (1 - places) * of_a + places * of_b, rtol=1e-5)
        for path in ("lerp", "slerp"):
            np.testing.assert_array_equal(interpolate_codes(a, b, [0, 1], path), np.stack([a, b], 1))

    @pytest.mark.parametrize(("a", "b"), [([1, 2], [2, 4]), ([1, 2], [-2, -4]), ([0, 0], [1, 2]), ([0, 0], [0, 0])])
    def test_slerp_of_parallel_codes_is_the_line(self, a, b):
        a, b = np.float32([a]), np.float32([b])
        np.testing.assert_array_equal(interpolate_codes(a, b, PLACES, "slerp"), interpolate_codes(a, b, PLACES))
