"""Which images float32 may be too inexact for, judged by their v, in NumPy alone."""

import numpy as np
from numpy.typing import ArrayLike

# An image counts as far from the training data if the root mean square of v is above this value. For images like the
# training data it is near 1 (docs/RESULTS.md, "Reconstruction").
FAR = 3.0


def far_from_training(v: ArrayLike) -> np.ndarray:
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
    # The square of a v above 1e19 is infinite in float32, which rightly counts the image as far.
    with np.errstate(over="ignore"):
        rms = np.sqrt(np.square(v).mean(tuple(range(1, v.ndim))))
    # A comparison with NaN is false, so its negation counts an image whose v contains NaN as far.
    return ~(rms <= FAR)
