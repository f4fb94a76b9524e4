"""What callers pass by mistake to the Python API: refused in one line, and what makes sense at the edge works."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import LEAST, SMALL, give_effect, random_images
from helpers.refusals import message_of

from tfdecouple import randomness
from tfdecouple.errors import DataError, UserError
from tfdecouple.model import DecoupledModel
from tfdecouple.model import codes as model_module
from tfdecouple.runs.latent_directions import MEANS, Direction

pytestmark = pytest.mark.usefixtures("eager")

IMAGES = random_images(3)
NONE = np.zeros((0, 8, 8, 3), np.uint8)


def made(config):
    model = DecoupledModel(config)
    model.initialize(random_images(16))
    return give_effect(model)


@pytest.fixture(scope="module")
def small():
    return made(SMALL)


@pytest.fixture(scope="module")
def without_z():
    return made(LEAST)


def weights(model):
    return {name: variable.numpy() for name, variable in model.named_variables().items()}


class TestInitialize:
    def test_a_model_with_weights_is_not_overwritten(self):
        model, fresh = DecoupledModel(SMALL), DecoupledModel(SMALL)
        model.initialize(random_images(16))
        give_effect(model)
        before = weights(model)
        assert "force=True" in message_of(UserError, lambda: model.initialize(IMAGES))
        assert all(np.array_equal(before[name], value) for name, value in weights(model).items())
        model.initialize(IMAGES, force=True)
        fresh.initialize(IMAGES)
        # The first layer depends on the images alone.
        first = next(name for name in before if "actnorm" in name and name.startswith("flow/level_0"))
        np.testing.assert_array_equal(weights(model)[first], weights(fresh)[first])
        assert not np.array_equal(before[first], weights(model)[first])

    def test_the_flag_of_several_devices_is_read(self):
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            model = DecoupledModel(LEAST)
        assert "not initialised" in message_of(UserError, model.require_initialized)
        model.initialize(IMAGES)
        assert "force=True" in message_of(UserError, lambda: model.initialize(IMAGES))

    def test_no_images_are_refused_and_leave_no_nan(self):
        model = DecoupledModel(LEAST)
        before = weights(model)
        for force in (False, True):
            assert "no images" in message_of(DataError, lambda force=force: model.initialize(NONE, force=force))
        assert all(np.array_equal(before[name], value) for name, value in weights(model).items())
        assert not bool(model.initialized.value)

    def test_within_a_function(self):
        tf.config.run_functions_eagerly(False)
        initialize = tf.function(DecoupledModel(LEAST).initialize, autograph=False)
        assert "tf.function" in message_of(UserError, lambda: initialize(tf.constant(IMAGES)))


class TestEmptyBatches:
    def test_of_a_model_with_z(self, small):
        z, v = np.zeros((0, 4), np.float32), np.zeros((0, 8, 8, 3), np.float32)
        assert small.decode(z, v).shape == (0, 8, 8, 3)
        assert small.decode(*small.encode(NONE)).dtype == tf.uint8
        posterior = small.posterior(NONE)
        assert posterior.batch_shape == (0,) and posterior.event_shape == (4,)
        assert posterior.sample(5, seed=1).shape == (5, 0, 4)
        for training in (False, True):
            assert [part.shape for part in small.elbo(NONE, training=training)] == [(0,)] * 4
        assert [images.shape for images in small.switch(NONE, NONE)] == [(0, 8, 8, 3)] * 2
        assert small.interpolate(NONE, NONE, [0, 1], [0]).shape == (0, 2, 1, 8, 8, 3)
        assert small.interpolate(IMAGES, IMAGES, [], [0]).shape == (3, 0, 1, 8, 8, 3)
        assert [part.shape for part in small.dequantize(NONE, NONE)] == [(0, 8, 8, 3), (0,)]
        assert small.sample(0).shape == (0, 8, 8, 3)
        likelihood = small.likelihood(np.zeros((3, 4), np.float32))
        assert likelihood.sample(0).shape == (0, 3, 8, 8, 3) and small.likelihood(z).log_prob(v).shape == (0,)
        assert small.prior.log_prob(small.prior.sample(0)).shape == (0,)
        assert "no images" in message_of(DataError, lambda: small.diagnose(NONE))

    def test_of_a_model_without_z(self, without_z):
        assert without_z.decode(None, np.zeros((0, 8, 8, 3))).shape == (0, 8, 8, 3)
        assert [part.shape for part in without_z.elbo(NONE)] == [(0,)] * 4
        assert without_z.interpolate(NONE, NONE, [0], [0, 1]).shape == (0, 1, 2, 8, 8, 3)

    def test_empty_and_not_empty(self, small):
        assert "0 and 3 images" in message_of(DataError, lambda: small.switch(NONE, IMAGES))
        message_of(UserError, lambda: small.decode(np.zeros((0, 4)), np.zeros((3, 8, 8, 3))))


NO_IMAGES = {
    "None": None,
    "ragged lists": [[[[1, 2, 3]], [[1, 2]]]],
    "images of two sizes": [np.zeros((8, 8, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)],
    "objects": np.array([[None, {}]], object),
    "a ragged tensor": tf.ragged.constant([[1, 2], [3]], tf.uint8),
    "text": "picture.png",
    "a huge number": 10**400,
    "a dict": {"image": IMAGES},
    "floats": IMAGES / 255,
    "no batch": IMAGES[0],
    "channels first": IMAGES.transpose(0, 3, 1, 2),
    "complex": IMAGES.astype(np.complex64),
}


@pytest.mark.parametrize("noise", [None, "noise", [[1.0], [1.0, 2.0]], np.zeros((2, 8, 8, 3))])
def test_noise_of_the_dequantisation_that_is_none(small, noise):
    assert "noise" in message_of(UserError, lambda: small.dequantize(IMAGES, noise))


class TestImages:
    @pytest.mark.parametrize("kind", NO_IMAGES)
    def test_what_is_none(self, small, kind):
        given = NO_IMAGES[kind]
        for method in ("encode", "posterior", "elbo", "diagnose", "quantize_images", "initialize"):
            assert "images" in message_of(DataError, lambda method=method: getattr(small, method)(given))
        message_of(DataError, lambda: small.switch(IMAGES, given))
        message_of(DataError, lambda: small.interpolate(given, IMAGES, [0.5], [0.5]))

    def test_lists_of_arrays_are_images(self, small):
        np.testing.assert_array_equal(small.encode(list(IMAGES)).v, small.encode(IMAGES).v)
        np.testing.assert_array_equal(small.switch(list(IMAGES), tuple(IMAGES))[0], IMAGES)


NO_CODES = {
    "None": None,
    "ragged lists": [[1.0, 2.0], [1.0]],
    "objects": np.array([[None, {}]], object),
    "text": [["a", "b", "c", "d"]],
    "complex": np.ones((3, 4), np.complex64),
    "no batch": np.ones(4),
}


class TestCodes:
    @pytest.mark.parametrize("kind", NO_CODES)
    def test_what_is_none(self, small, kind):
        codes = small.encode(IMAGES)
        assert "z" in message_of(UserError, lambda: small.decode(NO_CODES[kind], codes.v))
        assert "v" in message_of(UserError, lambda: small.decode(codes.z, NO_CODES[kind]))

    def test_lists_and_other_floats_are_codes(self, small):
        z, v = (np.asarray(code) for code in small.encode(IMAGES))
        np.testing.assert_array_equal(small.decode(z.tolist(), v.astype(np.float64)), IMAGES)


class TestSeeds:
    @pytest.mark.parametrize("seed", [True, "1", 1.0, -1, 2**32, 10**400, [1], [1.0, 2.0], {}, tf.constant(1.0)])
    def test_what_is_none(self, small, seed):
        assert "seed" in message_of(UserError, lambda: small.sample(1, seed=seed))
        assert "seed" in message_of(UserError, lambda: small.elbo(IMAGES, seed=seed))

    def test_numbers_of_every_library_are_one(self, small):
        first = small.sample(2, seed=7)
        for seed in (np.uint8(7), np.array(7), tf.constant(7, tf.int64), [0, 7]):
            np.testing.assert_array_equal(small.sample(2, seed=seed), first)
        assert small.sample(2, seed=2**32 - 1).shape == (2, 8, 8, 3)


class TestSample:
    @pytest.mark.parametrize("n", [True, "3", 2.0, -1, None, [2], tf.constant(2.0)])
    def test_numbers_that_are_none(self, small, n):
        assert message_of(UserError, lambda: small.sample(n)).startswith("n is ")

    @pytest.mark.parametrize("temperature", [True, "1", None, -0.1, float("nan"), float("inf"), 10**400, [1.0], 1j])
    def test_temperatures_that_are_none(self, small, temperature):
        assert message_of(UserError, lambda: small.sample(1, temperature)).startswith("temperature is ")

    def test_numbers_of_every_library(self, small):
        first = small.sample(2, 0.5, seed=3)
        for n, temperature in (
            (np.int32(2), np.float32(0.5)),
            (np.array(2), np.array(0.5)),
            map(tf.constant, (2, 0.5)),
        ):
            np.testing.assert_array_equal(small.sample(n, temperature, seed=3), first)

    @pytest.mark.parametrize(("n", "at_once"), [(7, 64), (7, 3)])
    def test_noise_is_that_of_one_draw_however_it_is_cut(self, without_z, small, monkeypatch, n, at_once):
        monkeypatch.setattr(model_module, "CHUNK", at_once)
        for model in (small, without_z):
            seed = randomness.make_seed(5)
            v = 0.7 * tf.random.stateless_normal([n, 8, 8, 3], randomness.derive_seed(seed, "v"))
            z = None
            if model.encoder is not None:
                z = model.z_from_noise(tf.random.stateless_normal([n, 4], randomness.derive_seed(seed, "z")))
            np.testing.assert_array_equal(model.sample(n, 0.7, seed=5), model.decode(z, v))

    def test_more_than_memory_holds_is_one_line(self, small, monkeypatch):
        def decode(z, v):
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating\nmany lines")

        monkeypatch.setattr(small, "decode", decode)
        assert "out of memory with 100 images" in message_of(UserError, lambda: small.sample(100))
        monkeypatch.setattr(small, "decode", lambda z, v: pytest.fail("images are drawn"))
        assert "out of memory with 1,000,000,000,000 images" in message_of(UserError, lambda: small.sample(10**12))


class TestInterpolate:
    def test_plain_numbers_stand_for_lists(self, small):
        a, b = IMAGES[:1], IMAGES[1:2]
        whole = small.interpolate(a, b, [0.25], [0.5, 1])
        for alphas in (0.25, np.array([0.25]), tf.constant(0.25)):
            np.testing.assert_array_equal(small.interpolate(a, b, alphas, [0.5, 1]), whole)
        np.testing.assert_array_equal(small.interpolate(a, b, 1, 1)[:, 0, 0], b)

    @pytest.mark.parametrize("wrong", ["0.5", None, True, ["a"], [[0.5]], [0.1, float("nan")], [0.1, [0.2]], 1j])
    def test_what_is_no_number(self, small, wrong):
        assert "alphas is" in message_of(UserError, lambda: small.interpolate(IMAGES, IMAGES, wrong, [0.5]))
        assert "betas is" in message_of(UserError, lambda: small.interpolate(IMAGES, IMAGES, [0.5], wrong))


class TestEdit:
    DIRECTION = np.array([1.0, -2.0, 0.5, 3.0], np.float32)

    def test_moves_z_and_leaves_v(self, small):
        z, v = small.encode(IMAGES)
        expected = small.decode(z + 1.5 * self.DIRECTION, v)
        np.testing.assert_array_equal(small.edit(IMAGES, self.DIRECTION, 1.5), expected)
        direction = Direction("a", MEANS, self.DIRECTION)
        for amount in (tf.constant(1.5), [1.5], np.full(3, 1.5)):
            np.testing.assert_array_equal(small.edit(IMAGES, direction, amount), expected)
        each = small.edit(IMAGES, np.stack([self.DIRECTION, 0 * self.DIRECTION, -self.DIRECTION]), [1.5, 9, -1.5])
        np.testing.assert_array_equal(each, [expected[0], IMAGES[1], expected[2]])

    def test_at_0_images_come_back_to_the_last_pixel(self, small):
        np.testing.assert_array_equal(small.edit(IMAGES, 100 * self.DIRECTION, -0.0), IMAGES)

    def test_within_a_graph(self, small):
        tf.config.run_functions_eagerly(False)
        traced = tf.function(small.edit, autograph=False)
        edited = traced(tf.constant(IMAGES), tf.constant(self.DIRECTION), tf.constant([0.0, 1.0, 2.0]))
        np.testing.assert_array_equal(edited[0], IMAGES[0])
        assert np.any(edited[1] != IMAGES[1])

    @pytest.mark.parametrize(
        ("direction", "amount", "part"),
        [
            (np.ones(3), 1, "direction is of shape (3,)"),
            (np.ones((2, 4)), 1, "direction is of shape (2, 4)"),
            ("smile", 1, "direction"),
            ([1, 2, float("nan"), 4], 1, "not finite"),
            (np.ones(4), [1, 2], "amount is of shape (2,)"),
            (np.ones(4), "1", "amount is"),
            (np.ones(4), float("inf"), "amount is"),
        ],
    )
    def test_what_is_none(self, small, direction, amount, part):
        assert part in message_of(UserError, lambda: small.edit(IMAGES, direction, amount))

    def test_no_images_and_no_z(self, small, without_z):
        assert small.edit(NONE, self.DIRECTION, 1).shape == (0, 8, 8, 3)
        assert "has no z" in message_of(UserError, lambda: without_z.edit(IMAGES, self.DIRECTION, 1))
        message_of(DataError, lambda: small.edit("picture", self.DIRECTION, 1))


class TestOwnLoop:
    def test_training_on_elbo_moves_the_statistics_of_batch_normalisation(self):
        model, images = made(SMALL), random_images(8, seed=2)
        moving = {n: v for n, v in model.named_variables().items() if "moving" in n}
        assert moving
        before = {name: variable.numpy() for name, variable in moving.items()}
        model.elbo(images, seed=1)
        assert all(np.array_equal(before[name], variable.numpy()) for name, variable in moving.items())
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model.elbo(images, seed=1, training=True).bits_per_dim)
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        assert all(gradient is not None for gradient in gradients)
        assert all(not np.array_equal(before[name], variable.numpy()) for name, variable in moving.items())

    def test_it_is_the_bound_by_the_statistics_of_the_batch(self, small):
        z = tf.random.stateless_normal([3, SMALL.latent_dim], randomness.derive_seed(4, "z"))
        u = tf.random.stateless_uniform([3, 8, 8, 3], randomness.derive_seed(4, "u"))
        model = DecoupledModel(SMALL)
        for name, variable in model.named_variables().items():
            variable.assign(small.named_variables()[name])
        expected = model.elbo_from_noise(IMAGES, z, u, training=True).bits_per_dim
        np.testing.assert_allclose(model.elbo(IMAGES, seed=4, training=True).bits_per_dim, expected, rtol=1e-6)
        assert np.any(np.abs(expected - small.elbo(IMAGES, seed=4).bits_per_dim) > 1e-4)
