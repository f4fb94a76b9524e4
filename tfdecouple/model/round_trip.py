"""Errors and warnings about images that are not, or possibly not, reconstructed exactly from their codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.errors import ExactnessWarning, InversionError, warn_user

# An image counts as far from the training data if the root mean square of v is above this value. For images like the
# training data it is near 1 (docs/RESULTS.md, "Reconstruction").
FAR = 3.0


def far_from_training(v: Any) -> np.ndarray:
    """Returns for each image whether it is so unlike the training data that decoding may be inexact, bool `[batch]`.

    Training makes v standard normal, so the root mean square of v is near 1 for images like the training data. Above 3
    (`FAR`) the flow stretches the image so much that float32 may be too inexact for the inverse. This function does not
    decode the images; `encode(images, verify=True)` does.

    >>> far_from_training(np.stack([np.ones([4, 4, 3]), np.full([4, 4, 3], 5.0)])).tolist()
    [False, True]

    Args:
        v: local codes, `[batch, height, width, channels]`.
    """
    v = np.asarray(v)
    # A comparison with NaN is false, so its negation counts an image whose v contains NaN as far.
    return ~(np.sqrt(np.square(v).mean(tuple(range(1, v.ndim)))) <= FAR)


def warn_of_far_images(v: tf.Tensor) -> None:
    """Warns of images that are `far_from_training`, given the local codes v `[batch, height, width, channels]`."""
    far = np.flatnonzero(far_from_training(v))
    if len(far):
        warn_user(
            f"image {format_image_numbers(far)} of the batch is far from what this model was trained on and may not "
            "be reconstructed exactly; encode(images, verify=True) checks this and names the inexact images",
            ExactnessWarning,
        )


def require_finite(what: str, *arrays: tf.Tensor) -> None:
    """Raises InversionError, which begins with `what` and names images, if an array has NaN or infinity."""
    finite = np.ones(arrays[0].shape[0], bool)
    for array in arrays:
        finite &= np.isfinite(np.asarray(array)).all(tuple(range(1, len(array.shape))))
    if not finite.all():
        raise InversionError(f"{what}, for image {format_image_numbers(np.flatnonzero(~finite))} of the batch")


def require_exact_images(decoded: tf.Tensor, x: tf.Tensor, images: tf.Tensor, alpha: float | None) -> None:
    """Raises InversionError, with the images' indices, if `decoded` differs from `images` or x is not finite.

    All arrays are `[batch, height, width, channels]`; `decoded` is x rounded to pixels. `alpha` is the model's bound
    of the scales of couplings, None if no coupling scales. The message advises a model with a smaller alpha.
    """
    same = (np.asarray(decoded) == np.asarray(images)) & np.isfinite(np.asarray(x))
    lost = np.flatnonzero(~same.all(tuple(range(1, same.ndim))))
    if len(lost):
        advice = "" if alpha is None else f"; a smaller alpha reconstructs more images (this model has {alpha})"
        raise InversionError(
            f"image {format_image_numbers(lost)} of the batch is not reconstructed exactly from its codes{advice}"
        )


def format_image_numbers(indices: Any, most: int = 8) -> str:
    """Returns images' indices as text for a message: at most `most` of the indices, then the count of the rest.

    >>> format_image_numbers([3, 5]), format_image_numbers(range(10), 2)
    ('3, 5', '0, 1 and 8 more')
    """
    text = ", ".join(str(i) for i in indices[:most])
    return text + (f" and {len(indices) - most} more" if len(indices) > most else "")
