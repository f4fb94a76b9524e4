"""Tests that a batch divided into shards gives the numbers of a whole batch."""

import random

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import SMALL, give_effect, random_images

from tfdecouple.layers import InvertibleLayer
from tfdecouple.model import DecoupledModel
from tfdecouple.runtime import execution, run_mode
from tfdecouple.runtime.execution import Execution
from tfdecouple.runtime.run_mode import RunMode


@pytest.fixture
def in_shards(monkeypatch):
    """Sets the number of shards, as `tf.config.threading` sets it in a program."""

    def set_shards(count):
        monkeypatch.setattr(run_mode, "count_shards", lambda: count)

    return set_shards


@pytest.fixture(scope="module")
def model():
    random.seed(0)
    model = give_effect(DecoupledModel(SMALL), scale=0.05)
    model.initialized.assign(True)
    return model


class TestHowMany:
    @pytest.mark.parametrize(
        ("images", "count", "expected"), [(1, 2, False), (2, 2, True), (3, 2, True), (8, 1, False)]
    )
    def test_a_batch_is_split_only_if_each_shard_gets_an_image(self, in_shards, images, count, expected):
        in_shards(count)
        for mode in (RunMode(), RunMode(shards=count)):
            assert mode.count_parts(tf.zeros([images, 2, 2, 3])) == (count if expected else 1)
        # Vectors, as those of the prior, are soon done.
        assert RunMode().count_parts(tf.zeros([images, 2])) == 1


class Doubling(InvertibleLayer):
    """Twice the input plus the condition; notes the number of images in each part."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _forward(self, x, condition):
        self.seen.append(x.shape[0])
        return 2 * x + condition[:, None, None], tf.reduce_sum(x, [1, 2, 3])


@pytest.mark.parametrize(("images", "sizes"), [(6, [3, 3]), (5, [2, 3]), (2, [1, 1]), (None, [None])])
def test_parts_of_a_batch_are_run_one_by_one_and_joined_in_order(images, sizes):
    count = images or 4
    x = tf.reshape(tf.range(count * 16, dtype=tf.float32), [count, 2, 2, 4])
    z, layer = tf.reshape(tf.range(count * 4, dtype=tf.float32), [count, 4]), Doubling()
    layer.build(x.shape, z.shape)
    Execution(layer)

    @tf.function(input_signature=[tf.TensorSpec([images, *x.shape[1:]]), tf.TensorSpec([images, 4])])
    def run(x, z):
        with RunMode(shards=2).apply():
            return layer.forward_and_log_det(x, z)

    y, log_det = run(x, z)
    np.testing.assert_array_equal(y, 2 * x + z[:, None, None])
    np.testing.assert_array_equal(log_det, tf.reduce_sum(x, [1, 2, 3]))
    # Parts of equal size share a trace; the second of two sizes is traced for any size.
    assert layer.seen in ([sizes[0]], [sizes[0], None])


@pytest.fixture
def own_cache(monkeypatch):
    """Lets each operation have one core, with a cache of so many bytes."""

    def set_cache(size, threads=1):
        monkeypatch.setattr(tf.config.threading, "get_intra_op_parallelism_threads", lambda: threads)
        monkeypatch.setattr(run_mode, "_CACHE_BYTES", size)

    return set_cache


@pytest.mark.parametrize(
    ("images", "threads", "expected"),
    [(0.5, 1, [1] * 5), (2.9, 1, [2, 2, 1]), (3, 1, [3, 2]), (5, 1, [5]), (0.5, 2, [5])],
)
@pytest.mark.parametrize("has_condition", [False, True])
def test_as_many_images_run_at_once_as_fit_into_the_cache_of_a_core(
    own_cache, images, threads, expected, has_condition
):
    own_cache(int(images * 4 * 2 * 8 * 4), threads)
    seen = []

    def double(x, condition, weight):
        seen.append(x.shape[0])
        return 2 * x if condition is None else 2 * x + condition[:, None, None]

    x, condition = tf.random.stateless_normal([5, 4, 2, 3], [0, 1]), None
    if has_condition:
        condition = tf.random.stateless_normal([5, 3], [0, 2])
    found = run_mode.run_in_slices(double, x, condition, tf.ones([8]))
    assert seen == expected
    np.testing.assert_array_equal(found, double(x, condition, None))


class TestModel:
    @pytest.mark.parametrize("images", [1, 2, 7])
    def test_model_decodes_exactly_with_any_shards_of_encoding_and_decoding(
        self, model, in_shards, eager, monkeypatch, images
    ):
        # Eagerly, since a trace keeps the shards that it was made with.
        counts, split_batch = set(), run_mode.split_into_parts

        def split(x, shards):
            counts.add(shards)
            return split_batch(x, shards)

        def used(count):
            """Whether there were as many shards as this; forgets them."""
            found = counts - {1} == ({count} if 1 < count <= images else set())
            counts.clear()
            return found

        monkeypatch.setattr(run_mode, "split_into_parts", split)
        monkeypatch.setattr(execution, "split_into_parts", split)
        batch = random_images(images, seed=images)
        for encoding, decoding in ((2, 2), (1, 2), (3, 1)):
            in_shards(encoding)
            codes = model.encode(batch)
            assert used(encoding)
            in_shards(decoding)
            np.testing.assert_array_equal(model.decode(*codes), batch)
            assert used(decoding)

    def test_elbo_and_gradients_of_two_shards_equal_those_of_one(self, model, in_shards, eager):
        images, z_noise = random_images(4), tf.random.stateless_normal([4, SMALL.latent_dim], [0, 1])
        u_noise = tf.random.stateless_uniform([4, 8, 8, 3], [0, 2])
        weights = [variable.value for variable in model.trainable_variables]

        def loss_and_gradients():
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model.elbo_from_noise(images, z_noise, u_noise, training=True)[0])
            return loss, tape.gradient(loss, weights, unconnected_gradients="zero")

        loss, gradients = loss_and_gradients()
        in_shards(2)
        loss_in_shards, gradients_in_shards = loss_and_gradients()
        np.testing.assert_allclose(loss_in_shards, loss, rtol=1e-6)
        for found, expected in zip(gradients_in_shards, gradients, strict=True):
            np.testing.assert_allclose(
                found, expected, rtol=1e-3, atol=1e-4 * float(tf.reduce_max(tf.abs(expected)) + 1)
            )
