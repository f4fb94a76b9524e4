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

    def run_flow(
        self, flow: Any, x: tf.Tensor, condition: tf.Tensor | None, method: str
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the output of an `InvertibleComposite` in one direction and its log-determinant, `[batch]`.

        Args:
            flow: the `InvertibleComposite`.
            x: the input in this direction.
            condition: z or a map, or None.
            method: the layers' method for the direction, "_forward" or "_inverse".
        """
        is_forward = method == "_forward"
        run = flow.run_forward if is_forward else flow.run_inverse
        run_layers = functools.partial(self._run_chain, method)

        def run_shard(x: tf.Tensor, condition: tf.Tensor | None, probe: tf.Tensor | None) -> tuple[tf.Tensor, ...]:
            with backward_memory(backward_mode(), probe):
                return run(x, condition, run_layers)

        run_shard.__name__ = method
        return self.run_network(flow, run_shard, x, condition, _probe_per_image(x) if is_forward else None)

    def run_network(
        self, network: keras.layers.Layer, function: Callable[..., Any], x: tf.Tensor, *others: tf.Tensor | None
    ) -> Any:
        """Returns the outputs of a function of a network, computed in shards if the batch is large enough.

        An eager call runs one trace of the whole network. The trace reads all weights itself, because passing a
        thousand weights to a function took 45 ms a call.

        Args:
            network: the network whose weights the function reads.
            function: function of x and the other inputs that maps each image separately; equal names, equal functions.
            x: the batch, `[batch, ...]`.
            *others: further inputs, each a tensor `[batch, ...]` (z, for example) or None.
        """
        if x.shape[0] == 0:
            # Convolutions refuse an empty batch, so one image of zeros shows the shapes of the outputs.
            image = [None if each is None else tf.zeros([1, *each.shape[1:]], each.dtype) for each in (x, *others)]
            return tf.nest.map_structure(lambda output: output[:0], self.run_network(network, function, *image))
        run = functools.partial(run_in_shards, function) if is_sharded(x) else function
        compiled = jit_compile()
        with jit_compiled(self.jit_compile if compiled is None else compiled):
            if not tf.executing_eagerly():
                return run(x, *others)
            # Images of another size than the network's share one trace, which leaves height and width open.
            is_open = len(x.shape) == 4 and x.shape[1:-1] != network._sides
            key = (function.__name__, run is function, x.shape[-1:] if is_open else x.shape[1:], *_trace_settings())
            if key not in self._network_functions:
                self._network_functions[key] = network.variables, (traced := _as_function(run))
                if is_open and not tf.config.functions_run_eagerly():
                    traced.get_concrete_function(*map(_open_shape, (x, *others)))
            variables, traced = self._network_functions[key]
            # Inside a `keras.StatelessScope` other values replace the weights, which an existing trace would ignore.
            are_replaced = any(not isinstance(variable.value, tf.Variable) for variable in variables)
            return run(x, *others) if are_replaced else traced(x, *others)

    def run_images(self, method: Callable[..., Any], x: tf.Tensor) -> Any:
        """Returns the outputs of a method of a network without repeated layers; the method gets x and no condition.

        The whole method has one trace, which XLA, if it compiles, turns into one program.
        """

        def run(x: tf.Tensor) -> Any:
            return self.run_layer(method, x, None)

        run.__name__ = method.__name__
        return self.run_network(method.__self__, run, x)  # type: ignore[attr-defined]

    def run_layer(
        self,
        method: Callable[..., Any],
        x: tf.Tensor,
        condition: tf.Tensor | None,
        *rest: tf.Tensor,
        weights: list[tf.Tensor] | None = None,
    ) -> Any:
        """Returns the outputs of a layer's method, run through the trace that all layers of the same kind share.

        The weights are arguments of the trace, so that tracing takes no longer for a deeper flow. While a kind is
        traced, the first layer of the kind reads these arguments instead of its own weights.

        Args:
            method: method of the layer, bound to it.
            x: input of the method.
            condition: z or a map, or None.
            *rest: further arguments of the method.
            weights: values of the layer's variables; None to read the variables.
        """
        layer = method.__self__  # type: ignore[attr-defined]
        # The key names the trainable weights, because a trace of a backward pass computes gradients for them only.
        trainable = tuple(variable.trainable for variable in layer.variables)
        key = (method.__name__, _kind(layer), trainable, x.shape[1:], *_trace_settings())
        if key not in self._layer_functions:
            run = functools.partial(_run_with_weights, method, layer.variables)
            self._layer_functions[key] = _as_function(run, compiled=bool(jit_compile()))
        # A tf.function is traced anew for each variable among its arguments, so the arguments are tensors.
        if weights is None:
            weights = [tf.convert_to_tensor(variable) for variable in layer.variables]
        return self._layer_functions[key](weights, x, condition, *rest)

    def _run_chain(
        self, method: str, layers: Sequence[Any], h: tf.Tensor, condition: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the output and the log-determinant of layers that run one after the other and keep the shape."""
        # Chains of layers on vectors store little, so the backward pass does not invert them.
        inverts = backward_mode() == "invert" and method == "_forward" and len(h.shape) == 4
        if inverts and all(layer.recovers_input for layer in layers):
            return self._run_for_inversion(layers, h, condition)
        log_dets = []
        for layer in layers:
            h, log_det = self.run_layer(getattr(layer, method), h, condition)
            log_dets.append(log_det)
        return h, tf.add_n(log_dets)

    def _run_for_inversion(
        self, layers: Sequence[Any], x: tf.Tensor, condition: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the same as `_run_chain`; the backward pass recovers the maps between the layers by inversion."""
        weights = [[tf.convert_to_tensor(variable) for variable in layer.variables] for layer in layers]
        probe, precision, compiled = _backward_probe(), current_net_precision() or "float32", bool(jit_compile())

        @tf.custom_gradient
        def run(x: tf.Tensor, condition: tf.Tensor, probe_: tf.Tensor, *flat: tf.Tensor) -> tuple[Any, Callable]:
            values = tf.nest.pack_sequence_as(weights, flat)
            z = condition if has_condition else None
            y, log_dets = x, []
            # If the tape recorded these layers, it would store the activations of each.
            with record.stop_recording():
                for layer, own in zip(layers, values, strict=True):
                    y, log_det = self.run_layer(layer._forward, y, z, weights=own)
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
                y, y_gradient, change, found = self.run_layer(
                    layer.inverse_and_gradients, y, z, y_gradient, log_det_gradient, weights=own
                )
            if z_gradient is not None and change is not None:
                z_gradient += change
            trainable = iter(found)
            weight_gradients.insert(0, [next(trainable) if each.trainable else None for each in layer.variables])
        return y, y_gradient, z_gradient, weight_gradients


@contextlib.contextmanager
def jit_compiled(on: bool) -> Iterator[None]:
    """Sets whether XLA compiles the layers that `Execution.run_layer` calls or traces inside the context.

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
    return current_net_precision(), backward_mode(), bool(jit_compile()), in_xla()


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


def run_in_shards(function: Callable[..., Any], x: tf.Tensor, *others: tf.Tensor | None) -> tuple[tf.Tensor, ...]:
    """Returns the outputs of a function for a batch, computed on each shard separately.

    A deep chain of small operations, each divided among all threads, leaves threads idle, because each operation waits
    for the operation before. Two chains, each on its own thread, need not wait for each other.

    Args:
        function: function of x `[batch, ...]` and the other inputs that maps each image separately.
        x: the batch, with at least one image for each shard.
        *others: further inputs, each a tensor `[batch, ...]` (z or a map, for example) or None.
    """
    shards = [[None] * shard_count() if each is None else _split_batch(each) for each in (x, *others)]
    return tuple(map(join_shards, zip(*map(function, *shards), strict=True)))


def split_into_shards(x: tf.Tensor) -> Batch:
    """Returns the shards of a batch that is computed in shards, or any other batch unchanged."""
    return _split_batch(x) if is_sharded(x) else x


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


def _split_batch(x: tf.Tensor) -> list[tf.Tensor]:
    """Returns the shards of a batch, in the order of the images."""
    count, shards = sizes(x)[0], shard_count()
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


def _probe_per_image(x: tf.Tensor) -> tf.Tensor | None:
    """Returns an error probe for each image, `[batch]`; the largest of their gradients is that of the context's probe.

    Args:
        x: the batch.

    Returns:
        The probes; None if no layer is inverted, or if `backward_memory` got no probe.
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


def activation_heavy(net: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Decorates a net with large hidden maps, so that `backward_memory` selects whether these maps are stored.

    Outside of `backward_memory`, and in the forward pass of "invert", the net runs on a few images at a time, so that
    their hidden maps stay in a core's cache.

    Args:
        net: function of maps `[batch, height, width, channels]`, a condition of each image (a vector, a map or None)
            and weights that maps each image separately; the hidden maps are as wide as the first weight's last axis.
    """

    @functools.wraps(net)
    def run(x: tf.Tensor, condition: tf.Tensor | None, *weights: tf.Tensor) -> tf.Tensor:
        mode = backward_mode()
        if mode == "keep":
            return net(x, condition, *weights)
        if mode == "recompute":
            return _run_recomputing(net, x, condition, *weights)
        return run_in_slices(lambda x, condition: net(x, condition, *weights), x, condition, weights[0].shape[-1])

    return run


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
    function: Callable[[tf.Tensor, tf.Tensor | None], tf.Tensor], x: tf.Tensor, condition: tf.Tensor | None, width: int
) -> tf.Tensor:
    """Returns the output of a function that runs on a few images at a time, so that their maps stay in a core's cache.

    If an operation takes several cores, or a GPU, the function runs on the whole batch.

    Args:
        function: function of x and a condition (or None) that maps each image separately.
        x: the batch, `[batch, height, width, channels]`.
        condition: vectors or maps, `[batch, ...]`, or None.
        width: number of channels of the widest map inside the function, which has the dtype of x.
    """
    has_own_core = tf.config.threading.get_intra_op_parallelism_threads() == 1
    if not has_own_core or tf.config.get_visible_devices("GPU") or not x.shape.is_fully_defined():
        return function(x, condition)
    count = max(1, _CACHE_BYTES // (math.prod(x.shape[1:-1]) * width * x.dtype.size))
    if x.shape[0] <= count:
        return function(x, condition)
    outputs: list[tf.Tensor] = []
    for start in range(0, x.shape[0], count):
        part = slice(start, start + count)
        with tf.control_dependencies(outputs[-1:]):
            images = x[part]
        outputs.append(function(images, None if condition is None else condition[part]))
    return tf.concat(outputs, 0)
