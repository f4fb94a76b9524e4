"""The execution of networks: shared traces of layers, shards of a batch, and the memory mode of the backward pass.

**Traces.** A deep flow repeats a few kinds of step. Each kind is traced once, and all layers of the kind share the
trace.

**Shards.** A batch is computed in shards side by side, so that every core has its own work. Without a backward pass a
core runs coupling nets on a few images at a time.

**Memory.** `backward_memory` selects how activations reach the backward pass: stored, recomputed, or recovered by
inverting the layers. With "invert" only the input and the output of a chain of layers are stored, however many layers
there are: the backward pass starts from the stored output, and each layer returns its input and its gradients together.
Rounding errors add up along a chain, and a layer that divides by small scales multiplies them. So the recovered input
of the chain is compared with the stored input; their difference is the gradient of the error probe that
`backward_memory` takes.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import keras
import tensorflow as tf
from tensorflow.python.eager import record

from tfdecouple.errors import UserError
from tfdecouple.runtime.numerics import in_xla, sizes
from tfdecouple.runtime.precision import current_net_precision, net_precision

BACKWARD_MODES = ("keep", "recompute", "invert")
# Bytes that a hidden map may take, so that it stays in a core's own cache; measured with caches of 1 MiB.
_CACHE_BYTES = 2**20

# A batch is one tensor, or the list of its shards' tensors.
Batch: TypeAlias = "tf.Tensor | list[tf.Tensor]"
_Class = TypeVar("_Class", bound=type)

_state = threading.local()


class Execution:
    """The execution of one network through traced functions, which the layers of one kind share.

    The traced functions are called and not copied into the caller's graph, because the time in which TensorFlow
    prepares a graph for its first run grows with the number of operations.

    Attributes:
        jit_compile: whether XLA compiles the layers outside of any `jit_compiled` context.
    """

    def __init__(self) -> None:
        self.jit_compile = False
        self._layer_functions: dict[tuple, Any] = {}
        self._network_functions: dict[tuple, tuple[list[keras.Variable], Any]] = {}

    def trace_network(
        self,
        network: keras.layers.Layer,
        name: str,
        function: Callable[..., Any],
        x: tf.Tensor,
        *others: tf.Tensor | None,
    ) -> Callable[[], tuple[tf.Tensor, ...]]:
        """Returns the call of a function on a batch, without arguments: in shards, and through a trace if eager.

        The trace reads all weights itself, because passing a thousand weights to a function took 45 ms a call.

        Args:
            network: the network whose weights the function reads.
            name: name of the function; equal names, equal functions.
            function: function of x and a condition that maps each image separately and returns a tuple of tensors.
            x: the batch, `[batch, ...]`.
            *others: perhaps a condition and `probe_per_image(x)`, or None for them.
        """
        compiled = self.jit_compile if jit_compile() is None else bool(jit_compile())
        shards = shard_count() if is_sharded(x) else 1
        run = functools.partial(run_in_shards, function, shards, compiled)
        if not tf.executing_eagerly() or x.shape[0] == 0:
            return functools.partial(run, x, *others)
        # Images of another size than the network's share one trace, which leaves height and width open.
        is_open = len(x.shape) == 4 and x.shape[1:-1] != network._sides
        key = (name, shards, compiled, x.shape[-1:] if is_open else x.shape[1:], *_trace_settings())
        if key not in self._network_functions:
            self._network_functions[key] = network.variables, (traced := _as_function(run))
            if is_open and not tf.config.functions_run_eagerly():
                traced.get_concrete_function(*map(_open_shape, (x, *others)))
        variables, traced = self._network_functions[key]
        # Inside a `keras.StatelessScope` other values replace the weights, which an existing trace would ignore.
        are_replaced = any(not isinstance(variable.value, tf.Variable) for variable in variables)
        return functools.partial(run if are_replaced else traced, x, *others)

    def trace_layer(self, method: Callable[..., Any], x: tf.Tensor) -> Callable[..., Any]:
        """Returns a layer's method as a trace that all layers of the same kind share.

        The trace takes the values of the layer's variables (`read_weights`) and the arguments of the method, so that
        tracing takes no longer for a deeper flow. While a kind is traced, the first layer of the kind reads these
        values instead of its own weights.

        Args:
            method: method of the layer, bound to it; its first argument is x, the next is the condition.
            x: the input.
        """
        layer = method.__self__  # type: ignore[attr-defined]
        # The key names the trainable weights, because a trace of a backward pass computes gradients for them only.
        trainable, compiled = tuple(variable.trainable for variable in layer.variables), bool(jit_compile())
        key = (method.__name__, _kind(layer), trainable, compiled, x.shape[1:], *_trace_settings())
        if key not in self._layer_functions:
            run = functools.partial(_run_with_weights, method, layer.variables)
            self._layer_functions[key] = _as_function(run, compiled)
        return self._layer_functions[key]

    def run_layer(self, method: Callable[..., Any], x: tf.Tensor, condition: tf.Tensor | None = None) -> Any:
        """Returns the outputs of a layer's method, run through its trace (`trace_layer`)."""
        return self.trace_layer(method, x)(read_weights(method.__self__), x, condition)  # type: ignore[attr-defined]

    def run_chain(
        self, method: str, layers: Sequence[Any], h: tf.Tensor, condition: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the output and the log-determinant of layers that run one after the other and keep the shape.

        `method` is the layers' method for the direction, "_forward" or "_inverse".
        """
        # Chains of layers on vectors store little, so the backward pass does not invert them.
        inverts = backward_mode() == "invert" and method == "_forward" and len(h.shape) == 4
        if inverts and all(layer.recovers_input for layer in layers):
            return self._run_for_inversion(layers, h, condition)
        log_dets = []
        for layer in layers:
            h, log_det = self.trace_layer(getattr(layer, method), h)(read_weights(layer), h, condition)
            log_dets.append(log_det)
        return h, tf.add_n(log_dets)

    def _run_for_inversion(
        self, layers: Sequence[Any], x: tf.Tensor, condition: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the same as `run_chain`; the backward pass recovers the maps between the layers by inversion."""
        weights = [read_weights(layer) for layer in layers]
        probe, precision, compiled = _backward_probe(), current_net_precision() or "float32", bool(jit_compile())

        @tf.custom_gradient
        def run(x: tf.Tensor, condition: tf.Tensor, probe_: tf.Tensor, *flat: tf.Tensor) -> tuple[Any, Callable]:
            values = tf.nest.pack_sequence_as(weights, flat)
            z = condition if has_condition else None
            y, log_dets = x, []
            # If the tape recorded these layers, it would store the activations of each.
            with record.stop_recording():
                for layer, own in zip(layers, values, strict=True):
                    y, log_det = self.trace_layer(layer._forward, y)(own, y, z)
                    log_dets.append(log_det)
                total = tf.add_n(log_dets)

            def gradient(y_gradient: tf.Tensor, log_det_gradient: tf.Tensor) -> list[Any]:
                with net_precision(precision), jit_compiled(compiled):
                    recovered, *gradients = self._invert_chain(layers, values, y, z, y_gradient, log_det_gradient)
                x_gradient, z_gradient, weight_gradients = gradients
                error = None if probe is None else inversion_error(recovered, x)
                return [x_gradient, z_gradient, error, *tf.nest.flatten(weight_gradients)]

            return (y, total), gradient

        has_condition = condition is not None
        unused = tf.zeros([])
        arguments = condition if has_condition else unused, unused if probe is None else probe
        return run(x, *arguments, *tf.nest.flatten(weights))

    def _invert_chain(
        self,
        layers: Sequence[Any],
        weights: list[list[tf.Tensor]],
        y: tf.Tensor,
        z: tf.Tensor | None,
        y_gradient: tf.Tensor,
        log_det_gradient: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None, list[list[tf.Tensor | None]]]:
        """Returns the input of a chain of layers, and the gradients for the input, z and the weights of each layer."""
        z_gradient = None if z is None else tf.zeros_like(z)
        weight_gradients: list[list[tf.Tensor | None]] = []
        for layer, own in zip(reversed(layers), reversed(weights), strict=True):
            # One layer at a time runs its backward pass, so there is memory to store the hidden maps of its nets.
            with backward_memory("keep"):
                invert = self.trace_layer(layer.inverse_and_gradients, y)
                y, y_gradient, change, found = invert(own, y, z, y_gradient, log_det_gradient)
            if z_gradient is not None and change is not None:
                z_gradient += change
            trainable = iter(found)
            weight_gradients.insert(0, [next(trainable) if each.trainable else None for each in layer.variables])
        return y, y_gradient, z_gradient, weight_gradients


def read_weights(layer: keras.layers.Layer) -> list[tf.Tensor]:
    """Returns the values of a layer's variables; a `tf.function` would be traced anew for each variable it is given."""
    return [tf.convert_to_tensor(variable) for variable in layer.variables]


@contextlib.contextmanager
def jit_compiled(on: bool) -> Iterator[None]:
    """Sets whether XLA compiles the layers that `Execution` calls or traces inside the context.

    Each kind of layer becomes one program for the forward direction and one for the gradient, so that compiling takes
    seconds per kind, however many layers there are; a single program of a whole step would contain every layer. XLA
    compiles for known shapes, and compiles again for another batch size.
    """
    before = jit_compile()
    _state.jit_compile = on
    try:
        yield
    finally:
        _state.jit_compile = before


def jit_compile() -> bool | None:
    """Returns the argument of the innermost `jit_compiled` context; None outside of any."""
    return getattr(_state, "jit_compile", None)


def substitute_weights(values: Iterable[tuple[keras.Variable, tf.Tensor]]) -> keras.StatelessScope:
    """Returns a scope in which tensors of any shape replace the values of variables."""
    scope = keras.StatelessScope()
    for pair in values:
        scope.add_update(pair)
    return scope


def without_autograph(owner: _Class) -> _Class:
    """Keeps AutoGraph from rewriting the public methods of the decorated class, and all functions that they call.

    The methods contain no Python control flow on tensors, and AutoGraph took a large part of the time of a user's first
    step to rewrite them.
    """
    for name, member in list(vars(owner).items()):
        if inspect.isfunction(member) and not name.startswith("_"):
            setattr(owner, name, tf.autograph.experimental.do_not_convert(member))
    return owner


def _as_function(run: Callable[..., Any], compiled: bool = False) -> Any:
    return tf.function(
        # TensorFlow warns of many traces of functions with the same code; for partials it counts them separately.
        functools.partial(run),
        autograph=False,
        reduce_retracing=True,
        # False would keep XLA from compiling the function inside a user's compiled function, so None replaces it.
        jit_compile=compiled or None,
        experimental_attributes={"_noinline": True},
    )


def _open_shape(x: tf.Tensor | None) -> tf.TensorSpec | None:
    """Returns the signature of a tensor `[batch, ..., channels]`, which fixes the number of channels only."""
    if x is None:
        return None
    return tf.TensorSpec([None] * (len(x.shape) - 1) + [x.shape[-1] if len(x.shape) > 1 else None], x.dtype)


def _run_with_weights(
    method: Callable[..., Any], variables: list[keras.Variable], weights: list[tf.Tensor], *inputs: tf.Tensor | None
) -> Any:
    with substitute_weights(zip(variables, weights, strict=True)):
        return method(*inputs)


def _kind(layer: keras.layers.Layer) -> str:
    """Returns class and options of a layer as text: layers with equal texts share a trace."""
    config = layer.get_config()
    config.pop("name")
    return f"{type(layer).__name__} {json.dumps(config, sort_keys=True)}"


def _trace_settings() -> tuple[Any, ...]:
    """Returns the current settings on which a trace depends, as part of a key."""
    return current_net_precision(), backward_mode(), in_xla()


# --- shards ---


def shard_count() -> int:
    """Returns the number of shards in which a batch of images is computed.

    On CPUs the number is TensorFlow's inter-op threads divided by its intra-op threads (`tf.config.threading`), or 1 if
    they are not set. On a GPU it is 1.
    """
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    if not threads or tf.config.get_visible_devices("GPU"):
        return 1
    return max(1, tf.config.threading.get_inter_op_parallelism_threads() // threads)


def is_sharded(x: tf.Tensor) -> bool:
    """Returns whether a batch is computed in shards: true for images, if there is at least one for each shard."""
    return len(x.shape) == 4 and x.shape[0] is not None and x.shape[0] >= shard_count() > 1


def run_in_shards(
    function: Callable[..., Any],
    shards: int,
    compiled: bool,
    x: tf.Tensor,
    condition: tf.Tensor | None = None,
    probe: tf.Tensor | None = None,
) -> tuple[tf.Tensor, ...]:
    """Returns the outputs of a function for a batch, computed on each shard separately.

    A deep chain of small operations, each divided among all threads, leaves threads idle, because each operation waits
    for the operation before. Two chains, each on its own thread, need not wait for each other.

    Args:
        function: function of x and a condition that maps each image separately and returns a tuple of tensors.
        shards: number of shards, at most one for each image.
        compiled: whether XLA compiles the layers.
        x: the batch; condition and probes (`probe_per_image`) have an entry for each of its images, or are None.
        condition: z or a map.
        probe: error probes.
    """
    if x.shape[0] == 0:
        # Convolutions refuse an empty batch, so one image of zeros shows the shapes of the outputs.
        image = (None if each is None else tf.zeros([1, *each.shape[1:]], each.dtype) for each in (x, condition))
        return tuple(output[:0] for output in run_in_shards(function, 1, compiled, *image))
    outputs = []
    for *inputs, own_probe in zip(*(_split_batch(each, shards) for each in (x, condition, probe)), strict=True):
        with jit_compiled(compiled), backward_memory(backward_mode(), own_probe):
            outputs.append(function(*inputs))
    return tuple(map(join_shards, zip(*outputs, strict=True))) if shards > 1 else outputs[0]


def split_into_shards(x: tf.Tensor) -> Batch:
    """Returns the shards of a batch that is computed in shards, or any other batch unchanged."""
    return _split_batch(x, shard_count()) if is_sharded(x) else x


def join_shards(batch: Batch | tuple[tf.Tensor, ...]) -> tf.Tensor:
    """Returns a batch, one tensor or a list of shards, as one tensor."""
    return tf.concat(batch, 0) if isinstance(batch, list | tuple) else batch


def image_by_image(function: Callable[..., tf.Tensor]) -> Callable[..., Any]:
    """Decorates a function that maps each image separately, so that it accepts a batch in shards, too.

    >>> @image_by_image
    ... def scaled(x, factor):
    ...     return factor * x
    >>> [shard.numpy().tolist() for shard in scaled([tf.ones([1]), tf.ones([2])], 3.0)]
    [[3.0], [3.0, 3.0]]
    """

    @functools.wraps(function)
    def run(*arguments: Any) -> Batch:
        counts = [len(argument) for argument in arguments if isinstance(argument, list)]
        if not counts:
            return function(*arguments)
        shards = (argument if isinstance(argument, list) else [argument] * counts[0] for argument in arguments)
        return list(map(function, *shards))

    return run


def _split_batch(x: tf.Tensor | None, shards: int) -> list[Any]:
    """Returns the shards of a batch, in the order of the images."""
    if x is None or shards == 1:
        return [x] * shards
    count = sizes(x)[0]
    edges = [count * number // shards for number in range(shards + 1)]
    return [x[start:stop] for start, stop in itertools.pairwise(edges)]


# --- the memory of the backward pass ---


@contextlib.contextmanager
def backward_memory(mode: str | None, probe: tf.Tensor | None = None) -> Iterator[None]:
    """Selects the activation-memory mode of the backward pass for code called or traced inside.

    "keep" stores all activations. "recompute" computes the hidden maps of coupling nets, many times as wide as the maps
    between layers, a second time, at the cost of most of a forward pass; values and gradients are the same to the bit.
    "invert" stores the input and the output of each chain of flow layers and recovers the maps between them by
    inversion; gradients differ only by rounding.

    Outside of this context gradients are correct, too, but the nets run in the way that is best without gradients.

    Args:
        mode: "keep", "recompute" or "invert"; None for the behaviour outside of the context.
        probe: float32 scalar for "invert", which a tape must watch. Its gradient is the largest inversion error of any
            image, whatever is differentiated. The inversion error of an image is the largest difference at the input of
            a chain relative to the largest number there, summed over the chains of a flow.

    Raises:
        UserError: if the mode is unknown.
    """
    if mode not in (None, *BACKWARD_MODES):
        raise UserError(f"the memory of the backward pass is {mode!r}; it must be one of {', '.join(BACKWARD_MODES)}")
    before = getattr(_state, "backward", (None, None))
    _state.backward = mode, probe
    try:
        yield
    finally:
        _state.backward = before


def backward_mode() -> str | None:
    """Returns the mode of the innermost `backward_memory` context; None outside of any."""
    return getattr(_state, "backward", (None, None))[0]


def _backward_probe() -> tf.Tensor | None:
    return getattr(_state, "backward", (None, None))[1]


def probe_per_image(x: tf.Tensor) -> tf.Tensor | None:
    """Returns an error probe for each image, `[batch]`; the largest of their gradients is that of the context's probe.

    Without a probe, or if no layer is inverted, it is None.
    """
    probe = _backward_probe() if backward_mode() == "invert" else None
    if probe is None:
        return None

    @tf.custom_gradient
    def spread(probe: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        return tf.fill(sizes(x)[:1], probe), tf.reduce_max

    return spread(probe)


def inversion_error(recovered: tf.Tensor, stored: tf.Tensor) -> tf.Tensor:
    """Returns the largest error of each recovered image relative to its largest number, float32 `[batch]`."""
    axes = list(range(1, len(stored.shape)))
    largest = tf.reduce_max(tf.abs(stored), axes)
    difference = tf.reduce_max(tf.abs(recovered - stored), axes)
    return tf.cast(tf.math.divide_no_nan(difference, largest), tf.float32)


def with_memory_mode(net: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Returns a net with large hidden maps in the form that `backward_memory` selects: the maps are stored or not.

    Outside of `backward_memory`, and in the forward pass of "invert", the net runs on a few images at a time, so that
    their hidden maps stay in a core's cache.

    Args:
        net: function of maps `[batch, height, width, channels]`, a condition of each image (a vector, a map or None)
            and weights that maps each image separately; the hidden maps are as wide as the first weight's last axis.
    """
    if backward_mode() == "keep":
        return net
    return functools.partial(_run_recomputing if backward_mode() == "recompute" else run_in_slices, net)


def _run_recomputing(
    net: Callable[..., tf.Tensor], x: tf.Tensor, condition: tf.Tensor | None, *weights: tf.Tensor
) -> tf.Tensor:
    # `tf.recompute_grad` and `keras.remat` look for variables, but inside a StatelessScope the weights are tensors.
    def apply(x: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
        return net(x, None, *rest) if condition is None else net(x, *rest)

    @tf.custom_gradient
    def run(*inputs: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            # The maps are computed only when the backward pass arrives here, so that they are not held in memory.
            with tf.control_dependencies([upstream]):
                again = [tf.identity(value) for value in inputs]
            with tf.GradientTape() as tape:
                tape.watch(again)
                y = apply(*again)
            # Since y is not used, a graph skips the net's last convolution in this second computation.
            return tape.gradient(y, again, output_gradients=upstream)

        return apply(*inputs), gradient

    return run(x, *([] if condition is None else [condition]), *weights)


def run_in_slices(
    net: Callable[..., tf.Tensor], x: tf.Tensor, condition: tf.Tensor | None, *weights: tf.Tensor
) -> tf.Tensor:
    """Returns the output of a net that runs on a few images at a time, so that their maps stay in a core's cache.

    If an operation takes several cores, or a GPU, the net runs on the whole batch. Arguments as for `with_memory_mode`.
    """
    has_own_core = tf.config.threading.get_intra_op_parallelism_threads() == 1
    if not has_own_core or tf.config.get_visible_devices("GPU") or not x.shape.is_fully_defined():
        return net(x, condition, *weights)
    width = weights[0].shape[-1]
    count = max(1, _CACHE_BYTES // (math.prod(x.shape[1:-1]) * width * x.dtype.size))
    if x.shape[0] <= count:
        return net(x, condition, *weights)
    outputs: list[tf.Tensor] = []
    for start in range(0, x.shape[0], count):
        part = slice(start, start + count)
        with tf.control_dependencies(outputs[-1:]):
            images = x[part]
        outputs.append(net(images, None if condition is None else condition[part], *weights))
    return tf.concat(outputs, 0)
