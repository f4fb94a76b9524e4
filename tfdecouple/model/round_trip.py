"""Whether images come back from their codes: what is refused, what is warned of, and by which number of the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfdecouple.errors import ExactnessWarning, InversionError, warn_user

# The root mean square of v from which on an image is called far from the training: above that of every image of the
# data that a committed run was trained on, below that of every image that one lost; docs/RESULTS.md, "What comes back".
FAR = 3.0


def far_from_training(v: Any) -> np.ndarray:
    """Returns which images are so unlike those of the training that they may not come back exactly, bool `[batch]`.

    Training makes v a standard normal variable: its root mean square is near 1 for images like those of the training.
    An image whose v has one above `FAR` is stretched by the flow so much that float32 may not undo it. It takes one
    pass over v and no decoding; `encode(images, verify=True)` is the proof.

    >>> far_from_training(np.stack([np.ones([4, 4, 3]), np.full([4, 4, 3], 5.0)])).tolist()
    [False, True]

    Args:
        v: local codes, `[batch, height, width, channels]`.
    """
    v = np.asarray(v)
    # What is no number is far, too.
    return ~(np.sqrt(np.square(v).mean(tuple(range(1, v.ndim)))) <= FAR)


def warn_of_far_images(v: tf.Tensor) -> None:
    """Warns of images by their local codes where they are `far_from_training`."""
    far = np.flatnonzero(far_from_training(v))
    if len(far):
        warn_user(
            f"image {listed(far)} of the batch is far from what this model was trained on and may not come back "
            "exactly; encode(images, verify=True) decodes again and names what is lost",
            ExactnessWarning,
        )


def require_finite(what: str, *arrays: tf.Tensor) -> None:
    """Refuses arrays `[batch, ...]` that are not finite throughout.

    Args:
        what: the message's beginning.
        *arrays: of the same images.

    Raises:
        InversionError: naming the images.
    """
    finite = np.ones(arrays[0].shape[0], bool)
    for array in arrays:
        finite &= np.isfinite(np.asarray(array)).all(tuple(range(1, len(array.shape))))
    if not finite.all():
        raise InversionError(f"{what}, for image {listed(np.flatnonzero(~finite))} of the batch")


def require_same(decoded: tf.Tensor, x: tf.Tensor, images: tf.Tensor, alpha: float | None) -> None:
    """Refuses images that do not come back.

    Args:
        decoded: what came back, uint8 `[batch, height, width, channels]`.
        x: the numbers that it was rounded from, of that shape.
        images: what should have come back.
        alpha: of the model, for the message; None where its couplings do not scale.

    Raises:
        InversionError: naming the images that differ or are not finite.
    """
    same = (np.asarray(decoded) == np.asarray(images)) & np.isfinite(np.asarray(x))
    lost = np.flatnonzero(~same.all(tuple(range(1, same.ndim))))
    if len(lost):
        advice = "" if alpha is None else f"; a model with a smaller alpha keeps more images (this one has {alpha})"
        raise InversionError(f"image {listed(lost)} of the batch does not come back from its codes{advice}")


def listed(indices: Any, most: int = 8) -> str:
    """Returns the numbers of images for a message: the first few, and how many more there are.

    >>> listed([3, 5]), listed(range(10), 2)
    ('3, 5', '0, 1 and 8 more')
    """
    text = ", ".join(str(i) for i in indices[:most])
    return text + (f" and {len(indices) - most} more" if len(indices) > most else "")
