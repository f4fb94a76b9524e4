"""The split of channels into those that a coupling transforms and those that it leaves unchanged (paper Figure 3b)."""

import dataclasses

import tensorflow as tf

from tfdecouple.config.shapes import halve_channels
from tfdecouple.errors import ConfigError, UserError
from tfdecouple.numerics.kernels import get_kernels

PATTERNS = ("continuous", "alternate")
PARTS = ("last", "first")


@dataclasses.dataclass(frozen=True)
class ChannelSplit:
    """A split of C channels into x_a (unchanged) and x_b (transformed), one of the four in the paper's Figure 3b.

    The count of transformed channels, n_t, is floor(C/2), or `transformed` if given (for the continuous pattern only):

    | pattern    | part  | transformed (x_b)      | unchanged (x_a)        |
    | continuous | last  | the last n_t channels  | the first C - n_t      |
    | continuous | first | the first n_t channels | the last C - n_t       |
    | alternate  | last  | channels 1, 3, 5, ...  | channels 0, 2, 4, ...  |
    | alternate  | first | channels 0, 2, 4, ...  | channels 1, 3, 5, ...  |

    With an odd number of channels the alternate pattern becomes the continuous one, as in the paper's code.

    >>> split = ChannelSplit("alternate", "first")
    >>> x_a, x_b = split(tf.constant([[0, 1, 2, 3]]))
    >>> x_b.numpy().tolist(), split.merge_channels(x_a, x_b).numpy().tolist()
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
            raise ConfigError(f"transformed is {self.transformed}; only the continuous pattern has this option")

    def count_channels(self, channels: int) -> tuple[int, int]:
        """Returns how many of `channels` channels go to x_a and how many to x_b; raises UserError if one count is 0."""
        transformed = halve_channels(channels)[1] if self.transformed is None else self.transformed
        if not 0 < transformed < channels:
            raise UserError(f"a coupling cannot transform {transformed} of {channels} channels; both sides need one")
        return channels - transformed, transformed

    def __call__(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Splits the channels of x, `[batch, ..., channels]`, into x_a (to stay unchanged) and x_b (to transform)."""
        channels = x.shape[-1]
        unchanged, transformed = self.count_channels(channels)
        if self._is_alternating(channels):
            even, odd = get_kernels().split_even_and_odd(x)
            return (even, odd) if self.part == "last" else (odd, even)
        if self.part == "last":
            return tuple(get_kernels().split_channels(x, [unchanged, transformed]))
        return tuple(get_kernels().split_channels(x, [transformed, unchanged])[::-1])

    def merge_channels(self, x_a: tf.Tensor, x_b: tf.Tensor) -> tf.Tensor:
        """Joins x_a and x_b to one array `[batch, ..., channels]`, with channels in the order before the split."""
        pair = (x_a, x_b) if self.part == "last" else (x_b, x_a)
        if self._is_alternating(x_a.shape[-1] + x_b.shape[-1]):
            return get_kernels().interleave_channels(*pair)
        return tf.concat(pair, -1)

    def _is_alternating(self, channels: int) -> bool:
        return self.pattern == "alternate" and channels % 2 == 0
