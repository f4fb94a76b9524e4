import numpy as np
import pytest
import tensorflow as tf
from helpers.models import LEAST, random_images
from helpers.variants import equal, fresh

from tfdecouple import randomness


class TestFreshSeeds:
    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_each_call_of_a_traced_function_draws_a_new_seed(self, jit_compile):
        draw = tf.function(
            lambda: (randomness.make_seed(None), randomness.derive_seed(None, "z")), jit_compile=jit_compile
        )
        seeds = [seed.numpy() for _ in range(9) for seed in draw()]
        assert len(np.unique(seeds, axis=0)) == 18 and np.min(seeds[::2]) >= 0
        assert draw()[0].dtype == tf.int32 and draw()[0].shape == (2,)

    def test_each_device_draws_a_seed_of_its_own(self):
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        draw = tf.function(lambda: strategy.run(lambda: randomness.make_seed(None)))
        seeds = [seed.numpy() for _ in range(2) for seed in strategy.experimental_local_results(draw())]
        assert len(np.unique(seeds, axis=0)) == 4

    def test_seed_of_tensorflow_makes_drawn_seeds_repeat(self):
        def drawn(seed):
            tf.random.set_seed(seed)
            draw = tf.function(lambda: (randomness.make_seed(None), randomness.make_seed(None)))
            return np.reshape([*draw(), *draw()], [4, 2])

        try:
            first = drawn(1)
            assert np.array_equal(first, drawn(1)) and not np.array_equal(first, drawn(2))
            assert len(np.unique(first, axis=0)) == 4
        finally:
            tf.random.set_seed(None)


class TestPartOfADraw:
    @pytest.mark.parametrize("seed", [0, [2**31 - 1, -5]])
    @pytest.mark.parametrize(("start", "count"), [(0, 1), (3, 9), (1021, 2000), (34_999, 1)])
    def test_part_of_a_draw_equals_that_part_of_the_whole(self, seed, start, count):
        folded = randomness.derive_seed(seed, "v")
        whole = tf.reshape(tf.random.stateless_normal([5000, 7], folded), [-1])
        part = randomness.draw_normal_part(count, start, folded)
        np.testing.assert_array_equal(part, whole[start : start + count])

    def test_part_of_a_draw_carries_into_the_upper_half_of_the_counter(self, monkeypatch):
        """The counter is one state before its lower half is full, which no seed of these tests gives."""
        raw, key = tf.raw_ops, tf.constant([11], tf.uint64)
        full = tf.constant([2**64 - 1, 7], tf.uint64)
        monkeypatch.setattr(raw, "StatelessRandomGetKeyCounter", lambda seed: (key, full))
        whole = raw.StatelessRandomNormalV2(shape=[64], key=key, counter=full, alg=1, dtype=tf.float32)
        np.testing.assert_array_equal(randomness.draw_normal_part(40, 20, tf.constant([0, 0])), whole[20:60])


class TestNoiseByIndex:
    @pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
    @pytest.mark.parametrize("shape", [(1,), (7,), (2, 3, 4)])
    @pytest.mark.parametrize("seed", [0, 2**32 - 1])
    def test_noise_of_an_index_equals_a_draw_with_the_seed_of_that_index(self, seed, shape, dtype):
        base, index = randomness.derive_seed(seed, "base"), [5, 0, 2**31 - 1, 5]
        seeds = [randomness.derive_seed(base, number, "u") for number in index]
        uniform = randomness.draw_noise_by_index(shape, base, tf.constant(index, dtype), "u", normal_noise=False)
        np.testing.assert_array_equal(uniform, [tf.random.stateless_uniform(shape, image_seed) for image_seed in seeds])
        normal = randomness.draw_noise_by_index(shape, base, tf.constant(index, dtype), "u")
        right = [tf.random.stateless_normal(shape, image_seed) for image_seed in seeds]
        np.testing.assert_allclose(normal, right, rtol=1e-5, atol=1e-5)

    def test_noise_of_an_image_ignores_its_batch_and_differs_by_sample_purpose_and_seed(self):
        alone, together = (randomness.draw_u_noise((4, 4, 3), 1, 2, tf.constant(index)) for index in ([9], [3, 9, 4]))
        np.testing.assert_array_equal(alone[0], together[1])
        index = tf.constant([3])
        draws = [randomness.draw_z_noise(8, seed, number, index) for seed in (0, 1) for number in (0, 1)]
        draws.append(randomness.draw_u_noise((8,), 0, 0, index, normal_noise=True))
        assert len(np.unique(np.stack(draws))) == 40


def test_traced_bounds_and_samples_are_new_at_each_call_without_a_seed():
    model, images = fresh(LEAST), tf.constant(random_images(2))
    for draw in (
        lambda seed=None: model.bound(images, seed=seed, training=True).bits_per_dim,
        lambda seed=None: model.sample(2, seed=seed),
    ):
        traced = tf.function(draw)
        assert np.any(traced() != traced())
        equal(traced(seed=1), traced(seed=1))
