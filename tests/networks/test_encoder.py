"""Tests of the encoder and of variational dequantisation, whose map is made by the same blocks.

tests/interop/test_wolf.py compares the results of encoders with those of the authors' code.
"""

import collections
import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.models import give_effect
from helpers.variants import VARIANTS

from tfdecouple import randomness
from tfdecouple.networks.dequantizer import Dequantizer
from tfdecouple.networks.encoder import BatchNorm, Encoder, ResNetBlock
from tfdecouple.numerics.kernels import use_kernels
from tfdecouple.runtime.execution import Traced
from tfdecouple.runtime.run_mode import RunMode


def built(layer, shape):
    layer.build(shape)
    return layer


def with_statistics(layer, seed=0):
    """Gives every weight an effect and every moving statistic a value of its own."""
    give_effect(layer, seed)
    rng = np.random.default_rng(seed)
    for variable in layer.non_trainable_variables:
        if variable.name.startswith("moving"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype("float32"))
    return layer


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


pytestmark = pytest.mark.usefixtures("eager")

TWO_LEVELS = dataclasses.replace(VARIANTS["dequantization"], dequantization_map_channels=2)


class TestNetworks:
    @pytest.mark.parametrize("transposed", [False, True])
    def test_gradient_of_a_1x1_kernel_in_the_encoder_has_no_stride(self, transposed):
        """With strides, oneDNN reads beyond its memory if the count of images is odd."""
        block = built(ResNetBlock(4, 2, transposed), (None, 4, 4, 3))

        @tf.function
        def gradients(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(block(x))
            return tape.gradient(loss, [weight.value for weight in block.trainable_weights])

        graph = gradients.get_concrete_function(tf.TensorSpec([3, 4, 4, 3])).graph
        strides = collections.defaultdict(set)
        for operation in graph.get_operations():
            if operation.type == "Conv2DBackpropFilter":
                strides[tuple(operation.outputs[0].shape[:2])].add(tuple(operation.get_attr("strides")))
        assert strides[1, 1] == {(1, 1, 1, 1)} and len(strides[3, 3]) == 2

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("shards", [None, [5], [2, 3], [1, 1, 3]])
    def test_batch_normalisation_in_shards_equals_that_of_keras(self, training, shards):
        keras_layer = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
        ours, theirs = (with_statistics(built(layer, (None, 4, 4, 3))) for layer in (BatchNorm(), keras_layer))
        theirs.set_weights(ours.get_weights())
        x = tf.constant(noise(5, 4, 4, 3) + 2)
        upstream = noise(5, 4, 4, 3)

        def with_gradients(layer, run):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = run()
                loss = tf.reduce_sum(y * upstream)
            return [y, *tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])]

        def normalize():
            if shards is None:
                return ours(x, training=training)
            return tf.concat(ours.normalize(tf.split(x, shards), training), 0)

        gradients = with_gradients(ours, normalize)
        expected = with_gradients(theirs, lambda: theirs(x, training=training))
        for value, expected_value in zip(gradients + ours.get_weights(), expected + theirs.get_weights(), strict=True):
            np.testing.assert_allclose(value, expected_value, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("training", [False, True])
    def test_posterior_of_an_encoder_is_standard_normal_at_the_start_and_after_a_reset(self, training):
        encoder = built(Encoder(3, (4,), 2), (None, 4, 4, 3))
        x = noise(4, 4, 4, 3)
        for _ in range(2):
            for part in encoder(x, training=training):
                np.testing.assert_array_equal(part, np.zeros((4, 3)))
            give_effect(encoder)
            assert np.abs(encoder(x, training=training)[0]).max() > 1e-3
            encoder.reset_to_zero()

    @pytest.mark.parametrize("training", [False, True])
    def test_dequantizer_computes_equal_noise_in_shards(self, training):
        layer = Dequantizer(TWO_LEVELS)
        layer.build()
        give_effect(layer)
        rng = np.random.default_rng(0)
        x, noise = (rng.standard_normal((3, 4, 4, 3)).astype("float32") for _ in range(2))
        whole = layer(x, noise, training=training)
        mode = RunMode(shards=2)
        with use_kernels(mode.kernels):
            parts = layer(x, noise, training=training, runner=Traced(mode))
        for ours, theirs in zip(parts, whole, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)

    def test_dequantizer_starts_near_the_uniform_distribution(self):
        layer = Dequantizer(TWO_LEVELS)
        layer.build()
        rng = np.random.default_rng(0)
        noise = rng.standard_normal((500, 4, 4, 3)).astype("float32")
        layer.flow.initialize_from_noise(randomness.make_seed(0))
        u, log_det = layer(np.zeros((500, 4, 4, 3), "float32"), noise)
        log_q = -0.5 * (np.square(noise) + np.log(2 * np.pi)).sum((1, 2, 3)) - np.asarray(log_det)
        # By quadrature: 0.00951 nats a number; noise of standard deviation 1 would give 0.193.
        assert 0.0095 - 0.003 < log_q.mean() / 48 < 0.0095 + 0.003
        assert abs(np.mean(u) - 0.5) < 0.01 and abs(np.var(u) - 1 / 12) < 0.005
