"""Effects of options in a training step, of `train.py` and of Keras' `fit`: changed images and terms of the loss.

In all functions `update` is the number of updates before this one, an integer scalar; skipped steps do not count.
"""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.config import TrainingConfig
from tfdecouple.numerics.arithmetic import get_sizes

# Similarities of z, cosines in [-1, 1], are divided by this temperature to compare crops.
_TEMPERATURE = 0.2


def augment_images(
    images: tf.Tensor,
    training: TrainingConfig,
    update: tf.Tensor,
    seed: tf.Tensor,
    device_slice: slice,
    batch_size: int | tf.Tensor,
) -> tf.Tensor:
    """Returns a device's training images with noise and patterns, by the options of the training.

    Every draw is made for the whole batch of `batch_size` images, and the device uses `device_slice` of it, so that an
    image gets the same noise with any number of devices.
    """
    shape = [batch_size, *images.shape[1:]]
    if training.noise:
        drawn = tf.random.stateless_normal(shape, randomness.derive_seed(seed, "images"))[device_slice]
        images = add_image_noise(images, compute_noise_deviation(training, update), drawn)
    if training.patterns:
        chances = tf.random.stateless_uniform(shape[:1], randomness.derive_seed(seed, "chances"))[device_slice]
        drawn = draw_pattern_images(shape, randomness.derive_seed(seed, "patterns"))[device_slice]
        is_replaced = (chances < training.patterns) & (update >= training.patterns_after)
        images = tf.where(is_replaced[:, None, None, None], drawn, images)
    return images


def add_first_noise(images: tf.Tensor, training: TrainingConfig) -> tf.Tensor:
    """Returns the images that initialise a model with the noise of the first update, on which the model then trains."""
    if not training.noise:
        return images
    normal = tf.random.stateless_normal(images.shape, randomness.derive_seed(training.seed, "start", "images"))
    return add_image_noise(images, compute_noise_deviation(training, tf.constant(0)), normal)


def compute_kl_weight(training: TrainingConfig, update: tf.Tensor) -> tf.Tensor:
    """Returns the weight of the KL term in the loss after `update` updates, a float32 scalar.

    The weight rises linearly from 0 to `kl_weight` over `kl_warmup_steps` updates and then stays. In the paper the
    weight is always 1.
    """
    if not training.kl_warmup_steps:
        return tf.constant(training.kl_weight)
    return training.kl_weight * tf.minimum(tf.cast(update, tf.float32) / training.kl_warmup_steps, 1.0)


def draw_crops(images: tf.Tensor, seed: tf.Tensor, device_slice: slice, batch_size: int | tf.Tensor) -> tf.Tensor:
    """Returns two random crops of each of a device's images: float32 `[2 n, height, width, channels]`.

    The rows are one crop of each image, and then the other. A crop has 40 to 100 % of the area of its image, whose size
    it is resized to; half of the crops are mirrored; and each channel is multiplied by a number between 0.7 and 1.3 and
    moved by up to 0.3. As in `augment_images`, the draws depend on the place of the image in the whole batch.

    Args:
        images: the device's images, float32 `[n, height, width, channels]` with colour values between -1 and 1.
        seed: seed of the step's noise.
        device_slice: the device's part of the batch.
        batch_size: count of images in the whole batch.
    """
    count, height, width, channels = get_sizes(images)
    drawn = tf.random.stateless_uniform([2, batch_size, 4 + 2 * channels], randomness.derive_seed(seed, "crops"))
    drawn = tf.reshape(drawn[:, device_slice], [2 * count, 4 + 2 * channels])
    side = tf.sqrt(0.4 + 0.6 * drawn[:, :1])
    top, left = (1 - side) * drawn[:, 1:2], (1 - side) * drawn[:, 2:3]
    rows, columns = (start + side * tf.linspace(0.0, 1.0, size) for start, size in ((top, height), (left, width)))
    columns = tf.where(drawn[:, 3:4] < 0.5, columns[:, ::-1], columns)
    crops = tf.einsum("nij,njwc->niwc", _interpolate(rows), tf.tile(images, [2, 1, 1, 1]))
    crops = tf.einsum("nij,nhjc->nhic", _interpolate(columns), crops)
    gain, shift = tf.split(drawn[:, None, None, 4:], 2, -1)
    return crops * (0.7 + 0.6 * gain) + (0.6 * shift - 0.3)


def _interpolate(places: tf.Tensor) -> tf.Tensor:
    """Returns matrices `[n, size, size]` that interpolate lines of `size` pixels linearly at places in 0..1."""
    size = get_sizes(places)[1]
    distances = places[:, :, None] * tf.cast(size - 1, tf.float32) - tf.range(tf.cast(size, tf.float32))
    return tf.nn.relu(1 - tf.abs(distances))


def compute_contrast(z: tf.Tensor) -> tf.Tensor:
    """Returns how well z identifies the crops of an image: -log of a probability, in nats, float32 `[n]`.

    `z`, `[2 n, d_z]`, are the codes of the crops of `draw_crops`. The probability is that with which a crop chooses the
    other crop of its image among all other crops, by the cosine of the last half of z (InfoNCE, van den Oord et al.,
    2018, in the form of Chen et al., 2020). The first half remains free for colours, which two crops do not share.
    """
    codes = tf.math.l2_normalize(z[:, z.shape[1] // 2 :], -1)
    count = get_sizes(codes)[0] // 2
    identity = tf.eye(2 * count)
    log_probs = tf.nn.log_softmax(tf.matmul(codes, codes, transpose_b=True) / _TEMPERATURE - 1e9 * identity)
    chosen = tf.reduce_sum(log_probs * tf.roll(identity, count, 1), -1)
    return -tf.reduce_mean(tf.reshape(chosen, [2, count]), 0)


def compute_noise_deviation(training: TrainingConfig, update: tf.Tensor) -> tf.Tensor:
    """Returns the noise's deviation in pixel values: `noise`, falling along half a cosine (Tschannen et al., 2024)."""
    done = tf.minimum(1.0, tf.cast(update, tf.float32) / max(training.noise_steps, 1))
    return training.noise * tf.where(done < 1, (1 + tf.cos(math.pi * done)) / 2, 0.0)


def add_image_noise(images: tf.Tensor, deviation: tf.Tensor, normal: tf.Tensor) -> tf.Tensor:
    """Returns uint8 images plus `deviation * normal` (N(0, 1) noise) in pixel values, rounded and clipped to 0..255."""
    noisy = tf.round(tf.cast(images, tf.float32) + deviation * normal)
    return tf.cast(tf.clip_by_value(noisy, 0.0, 255.0), tf.uint8)


def draw_pattern_images(shape: Sequence[int], seed: tf.Tensor) -> tf.Tensor:
    """Returns synthetic images, uint8 of the given shape: a quarter are noise, the others checkerboards of two colours.

    The pixels of noise are independent. The fields of a checkerboard are squares with a side of 1, 2, 4, ... pixels, up
    to one field that covers the image; small sides, which are hardest to decode exactly, are most likely. Half of all
    images have only the values 0 and 255, and a quarter are grey (all channels are equal). An image depends only on the
    seed and on the index of the image.
    """
    batch, height, width, channels = shape

    def draw_uniform(purpose: str, *sizes: int) -> tf.Tensor:
        return tf.random.stateless_uniform([batch, *(sizes or (1, 1))], randomness.derive_seed(seed, purpose))

    values = tf.floor(256 * draw_uniform("values", height * width, channels))
    values = tf.where(draw_uniform("extremes") < 0.5, tf.where(values < 128, 0.0, 255.0), values)
    values = tf.where(draw_uniform("grey") < 0.25, values[..., :1], values)
    sides = 1 + math.ceil(math.log2(max(height, width)))
    # On a GPU TensorFlow computes with int32 on the host, and with int64 on the GPU.
    side = tf.cast(2 ** tf.floor(sides * draw_uniform("side") ** 2), tf.int64)
    rows, columns = np.arange(height)[None, :, None], np.arange(width)[None, None, :]
    # `values` has a colour for each pixel of noise; a checkerboard uses the first two of these colours.
    board = (rows // side + columns // side) % 2
    positions = tf.where(draw_uniform("board") < 0.75, board, rows * width + columns)
    return tf.cast(tf.gather(values, positions, batch_dims=1), tf.uint8)
