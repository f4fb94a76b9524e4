"""How networks run: memory of the backward pass, precision of the nets, XLA, and shards (parts) of a batch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import tensorflow as tf

from tfdecouple.execution import convolution
from tfdecouple.numerics.arithmetic import get_sizes
from tfdecouple.numerics.kernels import Kernels
from tfdecouple.numerics.tf32 import full_float32, tensor_float_32

# Largest size of a hidden map, in bytes, that stays in the cache of one core; measured with caches of 1 MiB.
_CACHE_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class RunMode:
    """How a network computes, and how activations reach the backward pass.

    "keep" stores all activations. "recompute" does not store the hidden maps of coupling nets, which have many times as
    many channels as the maps between layers: computing them a second time takes most of a forward pass's time. Values
    and gradients are equal to the bit with "keep" and "recompute". "invert" stores the input and the output of each
    chain of flow layers: the backward pass starts from the output, and each layer returns its input and its gradients.
    Gradients differ by rounding errors, which add up along a chain, so the recovered input of a chain is compared with
    the stored input.

    Exact inversion needs float32, because in lower precision the inputs of a net are rounded differently in the two
    directions. So training can use a lower precision, while encode and decode of the same model use float32.

    Attributes:
        memory: "keep", "recompute" or "invert"; with None gradients are correct, too, but nets run in the way that is
            fastest without a backward pass.
        precision: precision of the products in nets. "mixed_bfloat16" applies to the coupling nets of images only,
            "tf32" to these and the encoder (`multiply_in_full_precision`).
        jit_compile: whether XLA compiles the layers of a network, anew for each batch size.
        shards: the number of parts into which a batch of images is split; None for `count_shards()`.
    """

    memory: str | None = None
    precision: str = "float32"
    jit_compile: bool = False
    shards: int | None = None

    @functools.cached_property
    def kernels(self) -> Kernels:
        """The operations by which layers compute in this mode, for `use_kernels`."""
        return _ModeKernels(self)

    def switch_tf32(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context that sets TensorFlow's switch for TF32, which acts when operations run, to this mode."""
        return tensor_float_32() if self.kernels.allows_tf32 else full_float32()

    def count_parts(self, x: tf.Tensor) -> int:
        """Returns the number of shards in which a batch x is computed: above 1 if x has an image or more per shard."""
        shards = count_shards() if self.shards is None else self.shards
        return shards if len(x.shape) == 4 and x.shape[0] is not None and x.shape[0] >= shards else 1


class _ModeKernels(Kernels):
    """The operations of nets in a `RunMode`."""

    convolve = staticmethod(convolution.convolve)
    convolve_normed = staticmethod(convolution.convolve_normed)

    def __init__(self, mode: RunMode):
        self._mode = mode
        self.net_dtype = "bfloat16" if mode.precision == "mixed_bfloat16" else None
        self.allows_tf32 = mode.precision == "tf32"

    def run_net(
        self, net: Callable[..., tf.Tensor], x: tf.Tensor, condition: tf.Tensor | None, *weights: tf.Tensor
    ) -> tf.Tensor:
        if self._mode.memory == "keep":
            return net(x, condition, *weights)
        # Without a memory mode, and in the forward pass of "invert", no hidden map is needed later.
        return (_run_recomputing if self._mode.memory == "recompute" else run_in_slices)(net, x, condition, *weights)

    def split_batch(self, x: tf.Tensor) -> list[tf.Tensor]:
        return split_into_parts(x, self._mode.count_parts(x))


def count_shards() -> int:
    """Returns the number of shards (parts) into which a batch of images is split for computation; 1 with a GPU.

    On CPUs the number is TensorFlow's inter-op threads divided by its intra-op threads (`tf.config.threading`), or 1 if
    neither the user nor `divide_cores` has set these. In a deep flow each small operation waits for the one before, and
    threads that share one operation are often idle; shards, each computed by one thread, do not wait for each other.
    """
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    if not threads or tf.config.get_visible_devices("GPU"):
        return 1
    return max(1, tf.config.threading.get_inter_op_parallelism_threads() // threads)


def split_into_parts(x: tf.Tensor | None, count: int) -> list[tf.Tensor | None]:
    """Splits a batch into `count` parts of nearly equal size; None gives a list of `count` times None."""
    if x is None or count == 1:
        return [x] * count
    images = get_sizes(x)[0]
    edges = [images * number // count for number in range(count + 1)]
    return [x[start:stop] for start, stop in itertools.pairwise(edges)]


def _run_recomputing(
    net: Callable[..., tf.Tensor], x: tf.Tensor, condition: tf.Tensor | None, *weights: tf.Tensor
) -> tf.Tensor:
    """Runs a coupling net and returns its output; the backward pass computes the hidden maps a second time.

    `tf.recompute_grad` and `keras.remat` are not used, because they need variables, and here weights can be tensors.
    """

    def apply(x: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
        return net(x, None, *rest) if condition is None else net(x, *rest)

    @tf.custom_gradient
    def run(*inputs: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            # The control dependency delays the second run of the net until the backward pass needs its hidden maps.
            with tf.control_dependencies([upstream]):
                again = [tf.identity(value) for value in inputs]
            with tf.GradientTape() as tape:
                tape.watch(again)
                y = apply(*again)
            # In a graph, TensorFlow leaves out the last convolution of this second run, because y is not used.
            return tape.gradient(y, again, output_gradients=upstream)

        return apply(*inputs), gradient

    return run(x, *([] if condition is None else [condition]), *weights)


def run_in_slices(
    net: Callable[..., tf.Tensor], x: tf.Tensor, condition: tf.Tensor | None, *weights: tf.Tensor
) -> tf.Tensor:
    """Runs a coupling net on a few images at a time, so that hidden maps stay in a core's cache; returns the output.

    If an operation uses several cores or a GPU, the net runs on all images at once. `Kernels.run_net` has the inputs.
    """
    has_own_core = tf.config.threading.get_intra_op_parallelism_threads() == 1
    if not has_own_core or tf.config.get_visible_devices("GPU") or not x.shape.is_fully_defined():
        return net(x, condition, *weights)
    count = max(1, _CACHE_BYTES // (math.prod(x.shape[1:-1]) * weights[0].shape[-1] * x.dtype.size))
    if x.shape[0] <= count:
        return net(x, condition, *weights)
    outputs: list[tf.Tensor] = []
    for start in range(0, x.shape[0], count):
        part = slice(start, start + count)
        with tf.control_dependencies(outputs[-1:]):
            images = x[part]
        outputs.append(net(images, None if condition is None else condition[part], *weights))
    return tf.concat(outputs, 0)
