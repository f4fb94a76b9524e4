"""Tests of the encoder: its layers written out by hand, batch normalisation, padding and its start."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.models import give_effect

from tfdecouple.networks.encoder import BatchNorm, Encoder, ResNetBlock


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


def elu(h):
    return np.where(h > 0, h, np.expm1(h))


def convolve(x, kernel, stride):
    """A convolution padded by the same number of pixels on both sides, in numpy."""
    side = kernel.shape[0]
    x = np.pad(x, [(0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0)])
    height, width = (x.shape[1] - side) // stride + 1, (x.shape[2] - side) // stride + 1
    taps = [
        x[:, i : i + stride * height : stride, j : j + stride * width : stride] @ kernel[i, j]
        for i in range(side)
        for j in range(side)
    ]
    return sum(taps)


def normalise(h, norm, axes=None):
    mean = h.mean(axes) if axes else norm.moving_mean.numpy()
    variance = h.var(axes) if axes else norm.moving_variance.numpy()
    return (h - mean) / np.sqrt(variance + 1e-5) * norm.gamma.numpy() + norm.beta.numpy()


def transpose(x, kernel, stride):
    """A transposed convolution by its definition: each pixel adds its kernel around the place that it has."""
    size = kernel.shape[0]
    whole = np.zeros((len(x), *(side * stride + 2 * size for side in x.shape[1:3]), kernel.shape[2]))
    for row, column in np.ndindex(*x.shape[1:3]):
        places = (slice(size + place * stride, 2 * size + place * stride) for place in (row, column))
        whole[(slice(None), *places)] += np.einsum("bi,hwoi->bhwo", x[:, row, column], kernel)
    # The reference pads by half of the kernel on both sides, and adds to the end what the stride leaves over.
    start, (height, width) = size + size // 2, x.shape[1:3]
    return whole[:, start : start + height * stride, start : start + width * stride]


def block_by_hand(block, x, training=False):
    axes, run = (0, 1, 2) if training else None, transpose if block.transposed else convolve
    h = elu(normalise(run(x, block.convolution_1.kernel.numpy(), block.strides), block.norm_1, axes))
    h = normalise(run(h, block.convolution_2.kernel.numpy(), 1), block.norm_2, axes)
    if block.shortcut:
        convolution, norm = block.shortcut
        x = normalise(run(x, convolution.kernel.numpy(), block.strides), norm, axes)
    return elu(h + x)


class TestBlock:
    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("transposed", [False, True])
    @pytest.mark.parametrize(("planes", "strides"), [(3, 1), (5, 1), (3, 2), (5, 2)])
    def test_resnet_block_equals_numpy(self, planes, strides, transposed, training):
        block = with_statistics(built(ResNetBlock(planes, strides, transposed), (None, 6, 6, 3)))
        x = noise(2, 6, 6, 3)
        expected = block_by_hand(block, x, training)
        side = 6 * strides if transposed else 6 // strides
        assert expected.shape == (2, side, side, planes)
        np.testing.assert_allclose(block(x, training=training), expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("transposed", [False, True])
    def test_no_gradient_for_a_kernel_of_one_pixel_has_a_stride(self, transposed):
        """Which oneDNN computes beyond its memory where the images are an odd number."""
        block = built(ResNetBlock(4, 2, transposed), (None, 4, 4, 3))

        @tf.function
        def gradients(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(block(x))
            return tape.gradient(loss, [weight.value for weight in block.trainable_weights])

        graph = gradients.get_concrete_function(tf.TensorSpec([3, 4, 4, 3])).graph
        found = [operation for operation in graph.get_operations() if operation.type == "Conv2DBackpropFilter"]
        strides = {tuple(op.outputs[0].shape[:2]): set() for op in found}
        for operation in found:
            strides[tuple(operation.outputs[0].shape[:2])].add(tuple(operation.get_attr("strides")))
        assert strides[1, 1] == {(1, 1, 1, 1)} and len(strides[3, 3]) == 2


class TestBatchNormalisation:
    def model(self):
        return with_statistics(built(Encoder(3, (4, 5), 2), (None, 8, 8, 3)))

    def statistics(self, encoder):
        return {v.path: v.numpy() for v in encoder.non_trainable_variables if v.name.startswith("moving")}

    def test_inference_changes_nothing_and_treats_each_image_alone(self):
        encoder, x = self.model(), noise(4, 8, 8, 3)
        before = self.statistics(encoder)
        together = np.concatenate(encoder(x, training=False), -1)
        alone = np.concatenate(encoder(x[2:3], training=False), -1)
        np.testing.assert_allclose(together[2:3], alone, rtol=1e-5, atol=1e-5)
        for path, value in self.statistics(encoder).items():
            np.testing.assert_array_equal(value, before[path])

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("shards", [None, [5], [2, 3], [1, 1, 3]])
    def test_a_batch_is_normalised_as_keras_normalises_it(self, training, shards):
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

        def by_shards():
            return (
                ours(x, training=training)
                if shards is None
                else tf.concat(ours.normalize(tf.split(x, shards), training), 0)
            )

        found = with_gradients(ours, by_shards)
        expected = with_gradients(theirs, lambda: theirs(x, training=training))
        for one, other in zip(found + ours.get_weights(), expected + theirs.get_weights(), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


class TestEncoder:
    @pytest.mark.parametrize("training", [False, True])
    def test_posterior_is_standard_normal_at_the_start_and_after_a_reset(self, training):
        encoder = built(Encoder(3, (4,), 2), (None, 4, 4, 3))
        x = noise(4, 4, 4, 3)
        for _ in range(2):
            for part in encoder(x, training=training):
                np.testing.assert_array_equal(part, np.zeros((4, 3)))
            give_effect(encoder)
            assert np.abs(encoder(x, training=training)[0]).max() > 1e-3
            encoder.reset_to_zero()
