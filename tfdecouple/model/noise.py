"""The noise from which all metrics draw z and u for an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfdecouple import randomness


def z_noise(latent_dim: int, seed: Any, number: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Returns standard normal noise for n draws of z, float32 `[n, latent_dim]`.

    A draw depends only on the seed, on its number among the draws for its image, and on the index of the image in its
    split; number and index are integers `[n]`.
    """

    def draw(own: tf.Tensor) -> tf.Tensor:
        return randomness.draw_normal([latent_dim], randomness.derive_seed(own, "z"))

    return _each(draw, seed, number, index)


def u_noise(
    image_shape: Sequence[int], seed: Any, number: tf.Tensor, index: tf.Tensor, normal_noise: bool = False
) -> tf.Tensor:
    """Returns the dequantisation noise for n draws, float32 `[n, *image_shape]`; arguments as for `z_noise`."""

    def draw(own: tf.Tensor) -> tf.Tensor:
        return randomness.draw_pixel_noise(image_shape, randomness.derive_seed(own, "u"), normal_noise)

    return _each(draw, seed, number, index)


def normal_u_noise(config: Any) -> bool:
    """Returns whether a model with this config dequantises images from normal noise, instead of uniform noise."""
    return getattr(config, "has_dequantizer", False)


def _each(draw: Callable[[tf.Tensor], tf.Tensor], seed: Any, number: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    base = randomness.derive_seed(seed, "evaluate")
    return tf.map_fn(
        lambda which: draw(randomness.derive_seed(base, *which)), (number, index), fn_output_signature=tf.float32
    )
