"""Runs networks: layers through shared traces, a batch in shards, and the memory mode of the backward pass.

**Traces.** A deep flow repeats a few kinds of step. Each kind is traced once, and all layers of the kind share the
trace.

**Shards.** A batch is computed in shards side by side, so that every core has its own work. Where no gradient is
wanted, a core takes a few images at a time through the hidden maps of coupling nets.

**Memory.** `backward_memory` selects how activations reach the backward pass: stored, recomputed, or recovered by
inverting the layers. With "invert" only the input and the output of a chain of layers are stored, however many layers
there are: the backward pass starts from the stored output, and each layer returns its input and its gradients together.
Rounding adds up along a chain, and a layer that divides by small scales multiplies it. So the recovered input of the
chain is compared with the stored one; the gradient of the error probe of `backward_memory` is their difference.
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
# The bytes of a core's own cache that a map may take beside weights; measured with caches of 1 MiB.
_CACHE_BYTES = 2**20

# A batch: one tensor, or the tensors of its shards.
Batch: TypeAlias = "tf.Tensor | list[tf.Tensor]"
_Class = TypeVar("_Class", bound=type)

_state = threading.local()


class Execution:
    """Runs one network of many layers.

    Its traced functions are called and not copied into the graph of the caller: the time in which TensorFlow prepares a
    graph for its first run grows with its operations.

    Attributes:
        jit_compile: whether XLA compiles the layers where no `jit_compiled` is in force.
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
            flow: the flow.
            x: the input of this direction.
            condition: z or a map, or None.
            method: of each layer, which selects the direction: "_forward" or "_inverse".
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
        """Returns the outputs of a network's function, computed in shards where that pays.

        An eager call runs one trace of the whole network, which reads all weights itself: passing a thousand weights to
        a function took 45 ms a call.

        Args:
            network: the network whose weights the function reads.
            function: from x and the others to tensors, image by image; the same one for each name that it has.
            x: `[batch, ...]`.
            *others: z or other tensors `[batch, ...]`; None where there is none.
        """
        if x.shape[0] == 0:
            # Convolutions refuse an empty batch. One image of zeros has the shapes of the outputs.
            image = [None if each is None else tf.zeros([1, *each.shape[1:]], each.dtype) for each in (x, *others)]
            return tf.nest.map_structure(lambda output: output[:0], self.run_network(network, function, *image))
        run = functools.partial(run_in_shards, function) if is_sharded(x) else function
        compiled = jit_compile()
        with jit_compiled(self.jit_compile if compiled is None else compiled):
            if not tf.executing_eagerly():
                return run(x, *others)
            # Images of other sizes than the network was built for share one trace, which leaves height and width open.
            is_open = len(x.shape) == 4 and x.shape[1:-1] != network._sides
            key = (function.__name__, run is function, x.shape[-1:] if is_open else x.shape[1:], *_trace_settings())
            if key not in self._network_functions:
                self._network_functions[key] = network.variables, (traced := _as_function(run))
                if is_open and not tf.config.functions_run_eagerly():
                    traced.get_concrete_function(*map(_open_shape, (x, *others)))
            variables, traced = self._network_functions[key]
            # Within a `keras.StatelessScope` other values replace the weights, which the trace would not see.
            are_replaced = any(not isinstance(variable.value, tf.Variable) for variable in variables)
            return run(x, *others) if are_replaced else traced(x, *others)

    def run_images(self, method: Callable[..., Any], x: tf.Tensor) -> Any:
        """Returns the outputs of a network's method of x and None, image by image, where no layers repeat.

        The whole method has one trace, which is one program where XLA compiles.
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
        """Returns the outputs of a layer's method, run through the trace that all layers of its kind share.

        The weights are arguments of the trace, so that the time to the first step does not depend on the number of
        steps. While a kind is traced, its first layer reads these arguments instead of its own weights.

        Args:
            method: bound to the layer.
            x: its input.
            condition: z, or None.
            *rest: further arguments of the method.
            weights: the values of the layer's variables, where they have been read already.
        """
        layer = method.__self__  # type: ignore[attr-defined]
        # A backward pass inside of a trace takes gradients for the trainable weights only.
        trainable = tuple(variable.trainable for variable in layer.variables)
        key = (method.__name__, _kind(layer), trainable, x.shape[1:], *_trace_settings())
        if key not in self._layer_functions:
            run = functools.partial(_run_with_weights, method, layer.variables)
            self._layer_functions[key] = _as_function(run, compiled=bool(jit_compile()))
        # A tf.function would treat each variable as a new constant, so it is given tensors.
        if weights is None:
            weights = [tf.convert_to_tensor(variable) for variable in layer.variables]
        return self._layer_functions[key](weights, x, condition, *rest)

    def _run_chain(
        self, method: str, layers: Sequence[Any], h: tf.Tensor, condition: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the output of layers of unchanging shape, one after the other, and their log-determinant."""
        # Chains of vectors store next to nothing, so they are not inverted.
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
            # Without this the tape would store the activations of each layer.
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
        """Returns the input of a chain, and the gradients for it, for z and for the weights of each layer."""
        z_gradient = None if z is None else tf.zeros_like(z)
        weight_gradients: list[list[tf.Tensor | None]] = []
        for layer, own in zip(reversed(layers), reversed(weights), strict=True):
            # The nets of one layer may store their maps while its backward pass runs.
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
    """Sets whether XLA compiles the functions of `Execution.run_layer` that are called or traced inside.

    Each kind of layer becomes one program for its forward direction and one for its gradient, so that compiling takes
    seconds a kind however many layers there are; one program of a whole step would hold each layer anew. XLA compiles
    for known shapes, and compiles again for another batch size.
    """
    before = jit_compile()
    _state.jit_compile = on
    try:
        yield
    finally:
        _state.jit_compile = before


def jit_compile() -> bool | None:
    """Returns the argument of the `jit_compiled` in force; None where none is."""
    return getattr(_state, "jit_compile", None)


def substitute_weights(values: Iterable[tuple[keras.Variable, tf.Tensor]]) -> keras.StatelessScope:
    """Returns a scope in which tensors of any shape replace the values of variables."""
    scope = keras.StatelessScope()
    for pair in values:
        scope.add_update(pair)
    return scope


def without_autograph(owner: _Class) -> _Class:
    """Keeps AutoGraph from rewriting a class's own public methods and all that they call.

    They contain no Python control flow on tensors, and rewriting them call by call was a large part of the time of a
    user's first step.
    """
    for name, member in list(vars(owner).items()):
        if inspect.isfunction(member) and not name.startswith("_"):
            setattr(owner, name, tf.autograph.experimental.do_not_convert(member))
    return owner


def _as_function(run: Callable[..., Any], compiled: bool = False) -> Any:
    return tf.function(
        # TensorFlow counts the traces of functions with the same code together and warns of many, so each is a partial.
        functools.partial(run),
        autograph=False,
        reduce_retracing=True,
        # None, since False would keep XLA from compiling it within a compiled function of the user's.
        jit_compile=compiled or None,
        experimental_attributes={"_noinline": True},
    )


def _open_shape(x: tf.Tensor | None) -> tf.TensorSpec | None:
    """Returns the signature of a tensor `[batch, ...]` whose last axis, but the batch, alone has a known size."""
    if x is None:
        return None
    return tf.TensorSpec([None] * (len(x.shape) - 1) + [x.shape[-1] if len(x.shape) > 1 else None], x.dtype)


def _run_with_weights(
    method: Callable[..., Any], variables: list[keras.Variable], weights: list[tf.Tensor], *inputs: tf.Tensor | None
) -> Any:
    with substitute_weights(zip(variables, weights, strict=True)):
        return method(*inputs)


def _kind(layer: keras.layers.Layer) -> str:
    """Returns the class and the options of a layer: layers with equal ones share a trace."""
    config = layer.get_config()
    config.pop("name")
    return f"{type(layer).__name__} {json.dumps(config, sort_keys=True)}"


def _trace_settings() -> tuple[Any, ...]:
    """Returns the settings in force on which a trace depends."""
    return current_net_precision(), backward_mode(), bool(jit_compile()), in_xla()


# --- shards ---


def shard_count() -> int:
    """Returns in how many shards a batch of images is computed.

    The count is the number of operations that run side by side for each thread of one operation, or 1 where nobody has
    set these numbers (`tf.config.threading`). A GPU takes a whole batch.
    """
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    if not threads or tf.config.get_visible_devices("GPU"):
        return 1
    return max(1, tf.config.threading.get_inter_op_parallelism_threads() // threads)


def is_sharded(x: tf.Tensor) -> bool:
    """Returns whether a batch is computed in shards: it holds images, one or more for each of several shards."""
    return len(x.shape) == 4 and x.shape[0] is not None and x.shape[0] >= shard_count() > 1


def run_in_shards(function: Callable[..., Any], x: tf.Tensor, *others: tf.Tensor | None) -> tuple[tf.Tensor, ...]:
    """Returns the outputs of a function that runs on each shard of a batch.

    A deep chain of small operations leaves threads idle: each operation waits for the one before it and divides its
    work among them. Two chains, each on its own thread, need not wait for each other.

    Args:
        function: from x `[batch, ...]` and the others to tensors, image by image.
        x: the batch, with one image or more for each shard.
        *others: z, a map or other tensors `[batch, ...]`; None where there is none.
    """
    shards = [[None] * shard_count() if each is None else _split_batch(each) for each in (x, *others)]
    return tuple(map(join_shards, zip(*map(function, *shards), strict=True)))


def split_into_shards(x: tf.Tensor) -> Batch:
    """Returns the shards of a batch where it is computed in shards, else the batch."""
    return _split_batch(x) if is_sharded(x) else x


def join_shards(batch: Batch | tuple[tf.Tensor, ...]) -> tf.Tensor:
    """Returns a batch as one tensor."""
    return tf.concat(batch, 0) if isinstance(batch, list | tuple) else batch


def image_by_image(function: Callable[..., tf.Tensor]) -> Callable[..., Any]:
    """Decorates a function of each image by itself, so that it takes batches in shards, too.

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
    """Returns the shards of a batch in order."""
    count, shards = sizes(x)[0], shard_count()
    edges = [count * number // shards for number in range(shards + 1)]
    return [x[start:stop] for start, stop in itertools.pairwise(edges)]


# --- the memory of the backward pass ---


@contextlib.contextmanager
def backward_memory(mode: str | None, probe: tf.Tensor | None = None) -> Iterator[None]:
    """Selects the activation-memory mode of the backward pass for code called or traced inside.

    "keep" stores all activations. "recompute" computes the hidden maps of coupling nets, many times as wide as the maps
    between layers, again, which takes most of one more forward pass; values and gradients are the same to the bit.
    "invert" stores the input and the output of each chain of flow layers and recovers the maps between by inversion;
    gradients are the same but for rounding.

    Outside of this context gradients are right, too, but the nets run as is best where no gradient is wanted.

    Args:
        mode: "keep", "recompute" or "invert"; None as outside.
        probe: a float32 scalar for "invert", which a tape must watch. Its gradient, whatever is differentiated, is the
            inversion error: of each image the largest difference at the input of a chain relative to the largest number
            there, summed over the chains of a flow; of all images the largest.

    Raises:
        UserError: for another mode.
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
    """Returns the mode of the `backward_memory` in force; None where none is."""
    return getattr(_state, "backward", (None, None))[0]


def _backward_probe() -> tf.Tensor | None:
    return getattr(_state, "backward", (None, None))[1]


def _probe_per_image(x: tf.Tensor) -> tf.Tensor | None:
    """Returns error probes `[batch]`, the largest of whose gradients is that of the probe in force.

    Args:
        x: the batch.

    Returns:
        The probes; None where nothing is inverted or nobody asks for the error.
    """
    probe = _backward_probe() if backward_mode() == "invert" else None
    if probe is None:
        return None

    @tf.custom_gradient
    def spread(probe: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        return tf.fill(sizes(x)[:1], probe), tf.reduce_max

    return spread(probe)


def inversion_error(recovered: tf.Tensor, stored: tf.Tensor) -> tf.Tensor:
    """Returns the largest difference of each image relative to its largest number, float32 `[batch]`."""
    axes = list(range(1, len(stored.shape)))
    largest = tf.reduce_max(tf.abs(stored), axes)
    difference = tf.reduce_max(tf.abs(recovered - stored), axes)
    return tf.cast(tf.math.divide_no_nan(difference, largest), tf.float32)


def activation_heavy(net: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Decorates a net whose hidden maps take much more memory than its inputs: `backward_memory` decides about them.

    Where no backward pass is announced, and in the forward pass of "invert", a few images at a time go through the net,
    so that their hidden maps stay in a core's cache.

    Args:
        net: from maps `[batch, height, width, channels]`, a condition of each image (a vector, a map or None) and
            weights to maps, image by image; the last axis of the first weight is the width of the hidden maps.
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
    # `tf.recompute_grad` and `keras.remat` would look for variables, which tensors replace within a StatelessScope.
    def apply(x: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
        return net(x, None, *rest) if condition is None else net(x, *rest)

    @tf.custom_gradient
    def run(*inputs: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            # The maps must not be computed before the backward pass arrives here.
            with tf.control_dependencies([upstream]):
                again = [tf.identity(value) for value in inputs]
            with tf.GradientTape() as tape:
                tape.watch(again)
                y = apply(*again)
            # Nobody uses y, so a graph does not compute the net's last convolution again.
            return tape.gradient(y, again, output_gradients=upstream)

        return apply(*inputs), gradient

    return run(x, *([] if condition is None else [condition]), *weights)


def run_in_slices(
    function: Callable[[tf.Tensor, tf.Tensor | None], tf.Tensor], x: tf.Tensor, condition: tf.Tensor | None, width: int
) -> tf.Tensor:
    """Returns the output of a function that runs on a few images at a time, so that their maps stay in a core's cache.

    Where an operation takes several cores, or a GPU, the function runs on the whole batch.

    Args:
        function: from x `[batch, height, width, channels]` and a condition of each image (or None), image by image.
        x: the batch.
        condition: vectors or maps, `[batch, ...]`, or None.
        width: channels of the widest map inside the function, of the dtype of x.
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
