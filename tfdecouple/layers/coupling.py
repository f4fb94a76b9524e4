"""The coupling layer, which transforms some channels depending on the other channels and z (paper equation 6)."""

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.bijectors import with_log_det
from tfdecouple.config.shapes import Shape
from tfdecouple.errors import ConfigError, UserError
from tfdecouple.layers.base import Children, Condition, InvertibleLayer, Mapped, Run
from tfdecouple.layers.conditioners import MLP, ConvNet, CouplingNet
from tfdecouple.layers.inversion import Gradients
from tfdecouple.numerics.kernels import get_kernels
from tfdecouple.numerics.tf32 import full_float32
from tfdecouple.registry import CONDITIONERS, TRANSFORMS

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
        transformed = channels // 2 if self.transformed is None else self.transformed
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


@keras.saving.register_keras_serializable(package="tfdecouple")
class Coupling(InvertibleLayer):
    """A coupling layer: y_a = x_a and y_b = s(x_a, z) * x_b + b(x_a, z), or another transform of x_b given x_a and z.

    `ChannelSplit` splits the channels of x into x_a and x_b. A neural net, the conditioner, computes the parameters of
    the transform from x_a and z; the transform is a bijector of x_b. The condition may also be a feature map, with the
    height and width of x, instead of the vector z.

    Args:
        hidden: hidden channels of the coupling net, a `ConvNet` for images and an `MLP` for vectors.
        condition_size: size of z, or channels of the map, or 0 without a condition; couplings of vectors have none.
        pattern, part, transformed: the fields of `ChannelSplit`.
        transform: name of a transform in `registry.TRANSFORMS`, such as "affine" or "additive".
        alpha: bound of the transform; an affine s lies in (1 - alpha, 1 + alpha) (paper B.2).
        conditioner: name of a `CouplingNet` in `registry.CONDITIONERS`; None for the paper's net.
        **kwargs: arguments of `InvertibleLayer`.

    >>> layer = Coupling(hidden=8, condition_size=4, pattern="alternate")
    >>> y, log_det = layer.forward_and_log_det(tf.ones([2, 4, 4, 6]), tf.zeros([2, 4]))
    >>> x, _ = layer.inverse_and_log_det(y, tf.zeros([2, 4]))
    >>> bool(tf.reduce_all(tf.abs(x - 1.0) < 1e-6))
    True
    """

    def __init__(
        self,
        hidden: int,
        condition_size: int = 0,
        *,
        pattern: str = "continuous",
        part: str = "last",
        transformed: int | None = None,
        transform: str = "affine",
        alpha: float = 1.0,
        conditioner: str | None = None,
        **kwargs: object,
    ):
        super().__init__(**kwargs)
        TRANSFORMS.require(transform, "transform")
        if not 0 < alpha <= 1:
            raise ConfigError(f"alpha is {alpha}; it must lie in (0, 1]")
        self.hidden, self.condition_size = hidden, condition_size
        self.pattern, self.part, self.transformed = pattern, part, transformed
        self.transform, self.alpha, self.conditioner = transform, alpha, conditioner
        self.split = ChannelSplit(pattern, part, transformed)
        self.net: Any = None

    def children(self, x_shape: Shape, condition_shape: Shape | None = None) -> Children:
        unchanged, transformed = self.split.count_channels(x_shape[-1])
        self._outputs = TRANSFORMS[self.transform].parameters * transformed
        if self.net is None:
            if len(x_shape) != 4 and self.condition_size:
                raise UserError(
                    "a coupling of vectors takes no condition, but condition_size is "
                    f"{self.condition_size}; it must be 0"
                )
            net: type[CouplingNet] = ConvNet if len(x_shape) == 4 else MLP
            if self.conditioner is not None:
                net = CONDITIONERS[self.conditioner]
            self.net = net(self._outputs, self.hidden, self.condition_size, dtype=self.dtype_policy, name="net")
        return [(self.net, (*x_shape[:-1], unchanged), condition_shape)]

    def initialize(self, x: tf.Tensor, condition: Condition = None) -> tf.Tensor:
        """Sets the output of the coupling net to 0, so that the coupling is the identity, and returns x."""
        x, _ = self._prepare_inputs(x, condition)
        self.net.reset_to_zero()
        return x

    @full_float32()
    def compute_slopes(self, x: tf.Tensor, condition: Condition = None) -> tf.Tensor:
        """Returns the slope dy_b/dx_b for each entry of x_b: s of an affine transform, 1 of an additive transform."""
        x, condition = self._prepare_inputs(x, condition)
        x_a, x_b = self.split(x)
        bijector = self._make_bijector(self.net.call(x_a, condition))
        with tf.GradientTape() as tape:
            tape.watch(x_b)
            y_b, _ = bijector.forward_and_log_det(x_b)
        return tape.gradient(y_b, x_b)

    def run_forward(self, run: Run, x: tf.Tensor, condition: Condition) -> Mapped:
        x_a, x_b = self.split(x)
        y_b, log_det = self._make_bijector(self.net.call(x_a, condition)).forward_and_log_det(x_b)
        return self.split.merge_channels(x_a, y_b), log_det

    def run_inverse(self, run: Run, y: tf.Tensor, condition: Condition) -> Mapped:
        y_a, y_b = self.split(y)
        x_b, log_det = self._make_bijector(self.net.call(y_a, condition)).inverse_and_log_det(y_b)
        return self.split.merge_channels(y_a, x_b), log_det

    @full_float32()
    def inverse_and_gradients(
        self, y: tf.Tensor, condition: Condition, y_gradient: tf.Tensor, log_det_gradient: tf.Tensor
    ) -> Gradients:
        # The coupling leaves x_a unchanged, so one run of the net on x_a serves both the inverse and the gradients.
        (x_a, y_b), (x_a_gradient, y_b_gradient) = self.split(y), self.split(y_gradient)
        inputs = [x_a, *([] if condition is None else [condition])]
        with tf.GradientTape(watch_accessed_variables=False) as net_tape:
            net_tape.watch([*inputs, *(variable.value for variable in self.variables if variable.trainable)])
            raw = self.net.call(x_a, condition)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(raw)
            bijector = self._make_bijector(raw)
            with tape.stop_recording():
                # TFP's cache would return y_b for x_b, without a gradient for x_b. A copy of x_b is not in the cache.
                x_b = tf.identity(bijector.inverse_and_log_det(y_b)[0])
            tape.watch(x_b)
            outputs = bijector.forward_and_log_det(x_b)
        upstream = [y_b_gradient, log_det_gradient]
        x_b_gradient, raw_gradient = tape.gradient(
            outputs, [x_b, raw], output_gradients=upstream, unconnected_gradients="zero"
        )
        sources = [inputs, [variable.value for variable in self.variables]]
        (net_gradient, *rest), weight_gradients = net_tape.gradient(raw, sources, output_gradients=raw_gradient)
        if net_gradient is not None:
            x_a_gradient += net_gradient
        x, x_gradient = self.split.merge_channels(x_a, x_b), self.split.merge_channels(x_a_gradient, x_b_gradient)
        return Gradients(x, x_gradient, rest[0] if rest else None, weight_gradients)

    def _make_bijector(self, raw: tf.Tensor) -> Any:
        transform = TRANSFORMS[self.transform]
        if raw.shape[-1] != self._outputs:
            raise UserError(f"the conditioner of {self.name} gives {raw.shape[-1]} channels; it needs {self._outputs}")
        counts = [self._outputs // transform.parameters] * transform.parameters
        # The gradient of a split is one concatenation; the gradient of slices would be a sum of zero-padded arrays.
        parameters = get_kernels().split_channels(raw, counts) if counts[1:] else [raw]
        return with_log_det(transform.make_bijector(*parameters, alpha=self.alpha))
