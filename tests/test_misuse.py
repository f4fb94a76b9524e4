import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import LEAST, SMALL, give_effect, random_images
from helpers.refusals import message_of
from helpers.variants import equal, fresh, has_weights, read_weights

from tfdecouple import randomness
from tfdecouple.errors import DataError, UserError
from tfdecouple.model import DecoupledModel
from tfdecouple.model import codes as model_module
from tfdecouple.model.initialization import diagnose_model
from tfdecouple.model.objective import map_noise_to_z
from tfdecouple.runs.latent_directions import MEANS, Direction

pytestmark = pytest.mark.usefixtures("eager")

IMAGES = random_images(3)
NONE = np.zeros((0, 8, 8, 3), np.uint8)
DIRECTION = np.array([1.0, -2.0, 0.5, 3.0], np.float32)


@pytest.fixture(scope="module")
def small():
    return fresh(SMALL)


@pytest.fixture(scope="module")
def without_z():
    return fresh(LEAST)


class TestInitialize:
    def test_initialize_refuses_to_overwrite_weights_without_force(self):
        model, other = DecoupledModel(SMALL), DecoupledModel(SMALL)
        model.initialize(random_images(16))
        give_effect(model)
        before = read_weights(model)
        assert "force=True" in message_of(UserError, lambda: model.initialize(IMAGES))
        assert has_weights(model, before)
        model.initialize(IMAGES, force=True)
        other.initialize(IMAGES)
        # The first layer depends on the images alone.
        first = next(name for name in before if "actnorm" in name and name.startswith("flow/level_0"))
        equal(read_weights(model)[first], read_weights(other)[first])
        assert not np.array_equal(before[first], read_weights(model)[first])

    def test_initialize_of_no_images_or_inside_a_tf_function_is_refused_and_changes_no_weight(self):
        model = DecoupledModel(LEAST)
        before = read_weights(model)
        for force in (False, True):
            assert "no images" in message_of(DataError, lambda force=force: model.initialize(NONE, force=force))
        tf.config.run_functions_eagerly(False)
        initialize = tf.function(model.initialize, autograph=False)
        assert "tf.function" in message_of(UserError, lambda: initialize(tf.constant(IMAGES)))
        assert has_weights(model, before) and not bool(model.initialized.value)


NO_IMAGES = {
    "None": None,
    "ragged lists": [[[[1, 2, 3]], [[1, 2]]]],
    "objects": np.array([[None, {}]], object),
    "a ragged tensor": tf.ragged.constant([[1, 2], [3]], tf.uint8),
    "text": "picture.png",
    "a dict": {"image": IMAGES},
    "floats": IMAGES / 255,
    "no batch": IMAGES[0],
}

NO_CODES = {
    "None": None,
    "ragged lists": [[1.0, 2.0], [1.0]],
    "objects": np.array([[None, {}]], object),
    "text": [["a", "b", "c", "d"]],
    "complex": np.ones((3, 4), np.complex64),
    "no batch": np.ones(4),
}

# {part of the message: (call of a model with a wrong value, the wrong values)}.
WRONG = {
    "seed": (
        lambda model, seed: model.sample(1, seed=seed),
        [True, "1", 1.0, -1, 2**32, 10**400, [1], [1.0, 2.0], {}, tf.constant(1.0)],
    ),
    "seed ": (lambda model, seed: model.bound(IMAGES, seed=seed), [True, "1", 2**32, [1]]),
    "n is ": (lambda model, n: model.sample(n), [True, "3", 2.0, -1, None, [2], tf.constant(2.0)]),
    "temperature is ": (
        lambda model, temperature: model.sample(1, temperature),
        [True, "1", None, -0.1, float("nan"), float("inf"), 10**400, [1.0], 1j],
    ),
    "u_noise ": (
        lambda model, noise: model.bound(IMAGES, noise=(np.zeros((3, 4)), noise)),
        [np.zeros((2, 8, 8, 3)), np.zeros((1, 8, 8, 3)), 2.0 + IMAGES, -0.1 - IMAGES, math.nan * IMAGES, "u"],
    ),
    "z_noise ": (
        lambda model, noise: model.bound(IMAGES, noise=(noise, np.zeros(IMAGES.shape))),
        [np.zeros((1, 4)), np.zeros((3, 3)), np.zeros(4), None],
    ),
    "alphas is": (
        lambda model, alphas: model.interpolate(IMAGES, IMAGES, alphas, [0.5]),
        ["0.5", None, True, ["a"], [[0.5]], [0.1, float("nan")], [0.1, [0.2]], 1j, 5, [0, -0.1]],
    ),
    "betas is": (lambda model, betas: model.interpolate(IMAGES, IMAGES, [0.5], betas), ["0.5", [[0.5]], 1j, 1.5]),
    "direction": (
        lambda model, direction: model.edit(IMAGES, direction, 1),
        [np.ones(3), np.ones((2, 4)), "smile", [1, 2, float("nan"), 4]],
    ),
    "amount is": (lambda model, amount: model.edit(IMAGES, np.ones(4), amount), [[1, 2], "1", float("inf")]),
}


class TestArguments:
    def test_every_method_accepts_an_empty_batch(self, small):
        z, v = np.zeros((0, 4), np.float32), np.zeros((0, 8, 8, 3), np.float32)
        assert small.decode(*small.encode(NONE)).shape == (0, 8, 8, 3)
        posterior = small.posterior(NONE)
        assert posterior.batch_shape == (0,) and posterior.event_shape == (4,)
        assert posterior.sample(5, seed=1).shape == (5, 0, 4)
        for training in (False, True):
            assert [part.shape for part in small.bound(NONE, training=training)] == [(0,)] * 4
        assert [images.shape for images in small.switch(NONE, NONE)] == [(0, 8, 8, 3)] * 2
        assert small.interpolate(NONE, NONE, [0, 1], [0]).shape == (0, 2, 1, 8, 8, 3)
        assert small.interpolate(IMAGES, IMAGES, [], [0]).shape == (3, 0, 1, 8, 8, 3)
        assert small.sample(0).shape == small.edit(NONE, DIRECTION, 1).shape == (0, 8, 8, 3)
        likelihood = small.likelihood(np.zeros((3, 4), np.float32))
        assert likelihood.sample(0).shape == (0, 3, 8, 8, 3) and small.likelihood(z).log_prob(v).shape == (0,)
        assert small.prior().log_prob(small.prior().sample(0)).shape == (0,)
        assert "no images" in message_of(DataError, lambda: diagnose_model(small, NONE))
        assert "0 and 3 images" in message_of(DataError, lambda: small.switch(NONE, IMAGES))

    @pytest.mark.parametrize("kind", NO_IMAGES)
    def test_input_that_is_no_batch_of_images_is_refused(self, small, kind):
        given = NO_IMAGES[kind]
        for method in ("encode", "posterior", "bound", "initialize"):
            assert "images" in message_of(DataError, lambda method=method: getattr(small, method)(given))
        message_of(DataError, lambda: small.switch(IMAGES, given))
        message_of(DataError, lambda: small.interpolate(given, IMAGES, [0.5], [0.5]))
        message_of(DataError, lambda: small.edit(given, DIRECTION, 1))

    @pytest.mark.parametrize("kind", NO_CODES)
    def test_input_that_is_no_code_is_refused(self, small, kind):
        codes = small.encode(IMAGES)
        assert "z" in message_of(UserError, lambda: small.decode(NO_CODES[kind], codes.v))
        assert "v" in message_of(UserError, lambda: small.decode(codes.z, NO_CODES[kind]))

    @pytest.mark.parametrize(("part", "value"), [(part, value) for part in WRONG for value in WRONG[part][1]])
    def test_wrong_argument_of_a_method_is_refused_by_name(self, small, part, value):
        assert part in message_of(UserError, lambda: WRONG[part][0](small, value))

    @pytest.mark.parametrize("chunk", [64, 3])
    def test_samples_follow_from_seed_and_temperature(self, without_z, small, monkeypatch, chunk):
        monkeypatch.setattr(model_module, "CHUNK", chunk)
        n, seed = 7, randomness.make_seed(5)
        for model in (small, without_z):
            v = 0.7 * tf.random.stateless_normal([n, 8, 8, 3], randomness.derive_seed(seed, "v"))
            z = None
            if model.encoder is not None:
                z = map_noise_to_z(model, tf.random.stateless_normal([n, 4], randomness.derive_seed(seed, "z")))
            equal(model.sample(n, 0.7, seed=5), model.decode(z, v))

    def test_sampling_beyond_memory_is_refused_in_one_line(self, small, monkeypatch):
        def decode(z, v):
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating\nmany lines")

        monkeypatch.setattr(small, "decode", decode)
        assert "out of memory with 100 images" in message_of(UserError, lambda: small.sample(100))
        monkeypatch.setattr(small, "decode", lambda z, v: pytest.fail("images are drawn"))
        assert "out of memory with 1,000,000,000,000 images" in message_of(UserError, lambda: small.sample(10**12))

    def test_edit_adds_the_direction_to_z_and_keeps_v(self, small, without_z):
        z, v = small.encode(IMAGES)
        expected = small.decode(z + 1.5 * DIRECTION, v)
        equal(small.edit(IMAGES, DIRECTION, 1.5), expected)
        for amount in (tf.constant(1.5), [1.5], np.full(3, 1.5)):
            equal(small.edit(IMAGES, Direction("a", MEANS, DIRECTION), amount), expected)
        edited = small.edit(IMAGES, np.stack([DIRECTION, 0 * DIRECTION, -DIRECTION]), [1.5, 9, -1.5])
        equal(edited, [expected[0], IMAGES[1], expected[2]])
        equal(small.edit(IMAGES, 100 * DIRECTION, -0.0), IMAGES)
        assert "has no z" in message_of(UserError, lambda: without_z.edit(IMAGES, DIRECTION, 1))
