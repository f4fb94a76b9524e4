"""The split of the channels in a coupling: x_a stays unchanged, x_b is transformed (paper Figure 3b)."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tfdecouple.config.shapes import halve_channels
from tfdecouple.errors import ConfigError, UserError
from tfdecouple.runtime.numerics import sizes

PATTERNS = ("continuous", "alternate")
PARTS = ("last", "first")


@dataclasses.dataclass(frozen=True)
class ChannelSplit:
    """A split of C channels into x_a (unchanged) and x_b (transformed), one of the four in the paper's Figure 3b.

    The number of transformed channels, n_t, is floor(C/2) unless `transformed` sets it, for the continuous pattern:

    | pattern    | part  | transformed (x_b)      | unchanged (x_a)        |
    | continuous | last  | the last n_t channels  | the first C - n_t      |
    | continuous | first | the first n_t channels | the last C - n_t       |
    | alternate  | last  | channels 1, 3, 5, ...  | channels 0, 2, 4, ...  |
    | alternate  | first | channels 0, 2, 4, ...  | channels 1, 3, 5, ...  |

    With an odd number of channels the alternate pattern becomes the continuous one, as in the paper's code.

    >>> split = ChannelSplit("alternate", "first")
    >>> x_a, x_b = split(tf.constant([[0, 1, 2, 3]]))
    >>> x_b.numpy().tolist(), split.merge(x_a, x_b).numpy().tolist()
    ([[0, 2]], [[0, 1, 2, 3]])
    """

    pattern: str = "continuous"
    part: str = "last"
    transformed: int | None = None

    def __post_init__(self) -> None:
        for name, value, choices in (("pattern", self.pattern, PATTERNS), ("part", self.part, PARTS)):
            if value not in choices:
                raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
        if self.transformed is not None and self.pattern != "continuous":
            raise ConfigError(f"transformed is {self.transformed}; only the continuous pattern takes it")

    def counts(self, channels: int) -> tuple[int, int]:
        """Returns the numbers of channels of x_a and of x_b.

        Raises:
            UserError: if x_a or x_b would have no channel.
        """
        transformed = halve_channels(channels)[1] if self.transformed is None else self.transformed
        if not 0 < transformed < channels:
            raise UserError(
                f"a coupling cannot transform {transformed} of {channels} channels; both sides need at least one"
            )
        return channels - transformed, transformed

    def __call__(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the channels x_a and the channels x_b of an array `[batch, ..., channels]`."""
        channels = x.shape[-1]
        unchanged, transformed = self.counts(channels)
        if self._alternates(channels):
            even, odd = _split_even_and_odd(x)
            return (even, odd) if self.part == "last" else (odd, even)
        if self.part == "last":
            return tuple(tf.split(x, [unchanged, transformed], -1))
        return tuple(tf.split(x, [transformed, unchanged], -1)[::-1])

    def merge(self, x_a: tf.Tensor, x_b: tf.Tensor) -> tf.Tensor:
        """Returns one array with the channels of x_a and x_b, in their order before the split."""
        pair = (x_a, x_b) if self.part == "last" else (x_b, x_a)
        if self._alternates(x_a.shape[-1] + x_b.shape[-1]):
            return _interleave(*pair)
        return tf.concat(pair, -1)

    def _alternates(self, channels: int) -> bool:
        return self.pattern == "alternate" and channels % 2 == 0


# The next two functions transpose a matrix with two rows: that takes half the time of `tf.stack` on the last axis.


def _interleave(even: tf.Tensor, odd: tf.Tensor) -> tf.Tensor:
    """Returns a map `[..., 2n]` whose channels are taken in turn from two maps `[..., n]`."""
    pairs = tf.transpose(tf.stack([tf.reshape(even, [-1]), tf.reshape(odd, [-1])]))
    return tf.reshape(pairs, [*sizes(even)[:-1], 2 * even.shape[-1]])


def _split_even_and_odd(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns channels 0, 2, 4, ... and channels 1, 3, 5, ... of a map `[..., 2n]`, each `[..., n]`."""
    even, odd = tf.unstack(tf.transpose(tf.reshape(x, [-1, 2])), num=2)
    shape = [*sizes(x)[:-1], x.shape[-1] // 2]
    return tf.reshape(even, shape), tf.reshape(odd, shape)
