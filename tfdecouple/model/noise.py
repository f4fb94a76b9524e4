"""The noise of the draws of (z, u) of an image, which all metrics share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfdecouple import randomness


def z_noise(latent_dim: int, seed: Any, number: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Returns the noise of z of n draws, each a function of the seed, its number and the image's index alone.

    Args:
        latent_dim: size of z, 0 or more.
        seed: as for `randomness.derive_seed`.
        number: number of each draw among those of its image, integers `[n]`.
        index: index of the draw's image in its split, integers `[n]`.

    Returns:
        Standard normal, float32 `[n, latent_dim]`.
    """
    return _each(
        lambda own: randomness.draw_normal([latent_dim], randomness.derive_seed(own, "z")), seed, number, index
    )


def u_noise(
    image_shape: Sequence[int], seed: Any, number: tf.Tensor, index: tf.Tensor, normal_noise: bool = False
) -> tf.Tensor:
    """Returns the noise of the pixels of n draws, float32 `[n, *image_shape]`, as `randomness.draw_pixel_noise`."""

    def draw(own: tf.Tensor) -> tf.Tensor:
        return randomness.draw_pixel_noise(image_shape, randomness.derive_seed(own, "u"), normal_noise)

    return _each(draw, seed, number, index)


def normal_u_noise(config: Any) -> bool:
    """Returns whether a model, or a density that replaces it in tests, takes normal noise of the pixels."""
    return getattr(config, "has_dequantizer", False)


def _each(draw: Callable[[tf.Tensor], tf.Tensor], seed: Any, number: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    base = randomness.derive_seed(seed, "evaluate")
    return tf.map_fn(
        lambda which: draw(randomness.derive_seed(base, *which)), (number, index), fn_output_signature=tf.float32
    )
