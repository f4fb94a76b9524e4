"""The execution of networks: shared traces of layers, shards of a batch, and the memory mode of the backward pass.

**Traces.** The layers of a deep flow have few different shapes and options. Layers with equal shapes and options share
one trace (a `tf.function`), so that the time for tracing does not grow with the depth.

**Shards.** On CPUs the parts of a batch, called shards, are computed at the same time, so that every core has work.
Without a backward pass, a core runs a coupling net on a few images at a time, so that their hidden maps stay in the
core's cache.

**Memory.** `backward_memory` selects how activations reach the backward pass: stored, recomputed, or recovered by
inverting the layers. With "invert" only the input and the output of a chain of layers are stored, however many layers
there are: the backward pass starts from the stored output, and each layer returns its input and its gradients together.
Rounding errors add up along a chain, and a layer that divides by small scales multiplies the errors. So the recovered
input of the chain is compared with the stored input. The difference is reported as the gradient of the error probe, a
dummy scalar input that `backward_memory` takes.
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

from tfdecouple.errors import UserError
from tfdecouple.numerics.arithmetic import get_sizes
from tfdecouple.numerics.tf32 import get_net_precision, net_precision
from tfdecouple.tensorflow_internals import is_traced_for_xla, pause_gradient_tapes

BACKWARD_MODES = ("keep", "recompute", "invert")
# Largest size of a hidden map, in bytes, that stays in the cache of one core; measured with caches of 1 MiB.
_CACHE_BYTES = 2**20

# A batch is one tensor, or a list of tensors, the shards (parts) of the batch.
Batch: TypeAlias = "tf.Tensor | list[tf.Tensor]"
_Class = TypeVar("_Class", bound=type)

_state = threading.local()


class Execution:
    """The traced functions (`tf.function`) of one network; layers with equal shapes and options share a function.

    The caller's graph calls these functions instead of containing their operations, because the time in which
    TensorFlow prepares a graph for its first run grows with the number of operations.

    Attributes:
        jit_compile: whether XLA compiles the network's layers outside of any `jit_compiled` context.
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
        """Returns a function without arguments that runs `function` on the shards (parts) of x and joins the outputs.

        In eager mode, a trace of `function` is run. The trace captures the network's variables, because passing a
        thousand weights as arguments took 45 ms a call.

        Args:
            network: the network whose weights the function reads.
            name: name of the function, unique in the network; a later call with this name uses the same trace.
            function: function of x and a condition; it maps each image separately, and returns a tuple of tensors.
            x: the batch, `[batch, ...]`.
            *others: the condition, and the error probes of `make_image_probes`, whose gradients carry inversion errors;
                each a tensor or None.
        """
        compiled = self.jit_compile if get_jit_compile() is None else bool(get_jit_compile())
        shards = count_shards() if is_sharded(x) else 1
        run = functools.partial(run_in_shards, function, shards, compiled)
        if not tf.executing_eagerly() or x.shape[0] == 0:
            return functools.partial(run, x, *others)
        # The network was built for one size of images. Images of all other sizes share one trace of unknown size.
        is_open = len(x.shape) == 4 and x.shape[1:-1] != network._sides
        key = (name, shards, compiled, x.shape[-1:] if is_open else x.shape[1:], *_get_trace_settings())
        if key not in self._network_functions:
            self._network_functions[key] = network.variables, (traced := _make_traced_function(run))
            if is_open and not tf.config.functions_run_eagerly():
                traced.get_concrete_function(*map(_make_open_spec, (x, *others)))
        variables, traced = self._network_functions[key]
        # Inside a `keras.StatelessScope` other values replace the weights. A trace made earlier would ignore them.
        are_replaced = any(not isinstance(variable.value, tf.Variable) for variable in variables)
        return functools.partial(run if are_replaced else traced, x, *others)

    def trace_layer(self, method: Callable[..., Any], x: tf.Tensor) -> Callable[..., Any]:
        """Returns a layer's method as a traced function that all layers with equal shapes and options share.

        The traced function takes the values of the layer's variables (`read_layer_weights`) before the arguments of the
        method. While it is traced, these values replace the weights of the layer.

        Args:
            method: bound method of the layer; its first argument is x, the next is the condition.
            x: the input, whose shape and dtype select the trace.
        """
        layer = method.__self__  # type: ignore[attr-defined]
        # The key tells which weights are trainable, because a traced backward pass computes gradients for them only.
        trainable, compiled = tuple(variable.trainable for variable in layer.variables), bool(get_jit_compile())
        key = (method.__name__, _describe_layer(layer), trainable, compiled, x.shape[1:], *_get_trace_settings())
        if key not in self._layer_functions:
            run = functools.partial(_run_with_weights, method, layer.variables)
            self._layer_functions[key] = _make_traced_function(run, compiled)
        return self._layer_functions[key]

    def run_layer(self, method: Callable[..., Any], x: tf.Tensor, condition: tf.Tensor | None = None) -> Any:
        """Runs a layer's bound method on x and condition, by the function of `trace_layer`; returns the outputs."""
        return self.trace_layer(method, x)(read_layer_weights(method.__self__), x, condition)  # type: ignore[attr-defined]

    def run_chain(
        self, method: str, layers: Sequence[Any], h: tf.Tensor, condition: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs layers one after the other on activations `h`; returns (output, total log-determinant `[batch]`).

        `method`, "_forward" or "_inverse", is the name of the method that is run of each layer. The output has the
        shape of `h`.
        """
        # Only layers on images are inverted, because the activations of layers on vectors take little memory.
        inverts = get_backward_mode() == "invert" and method == "_forward" and len(h.shape) == 4
        if inverts and all(layer.recovers_input for layer in layers):
            return self._run_for_inversion(layers, h, condition)
        log_dets = []
        for layer in layers:
            h, log_det = self.trace_layer(getattr(layer, method), h)(read_layer_weights(layer), h, condition)
            log_dets.append(log_det)
        return h, tf.add_n(log_dets)

    def _run_for_inversion(
        self, layers: Sequence[Any], x: tf.Tensor, condition: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        weights = [read_layer_weights(layer) for layer in layers]
        probe, precision, compiled = _get_error_probe(), get_net_precision() or "float32", bool(get_jit_compile())

        @tf.custom_gradient
        def run(x: tf.Tensor, condition: tf.Tensor, probe_: tf.Tensor, *flat: tf.Tensor) -> tuple[Any, Callable]:
            values = tf.nest.pack_sequence_as(weights, flat)
            z = condition if has_condition else None
            y, log_dets = x, []
            # The gradient tape does not record the layers, because the tape would store the activations of each layer.
            with pause_gradient_tapes():
                for layer, own in zip(layers, values, strict=True):
                    y, log_det = self.trace_layer(layer._forward, y)(own, y, z)
                    log_dets.append(log_det)
                total = tf.add_n(log_dets)

            def gradient(y_gradient: tf.Tensor, log_det_gradient: tf.Tensor) -> list[Any]:
                with net_precision(precision), jit_compiled(compiled):
                    recovered, *gradients = self._invert_chain(layers, values, y, z, y_gradient, log_det_gradient)
                x_gradient, z_gradient, weight_gradients = gradients
                error = None if probe is None else measure_inversion_error(recovered, x)
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
        z_gradient = None if z is None else tf.zeros_like(z)
        weight_gradients: list[list[tf.Tensor | None]] = []
        for layer, own in zip(reversed(layers), reversed(weights), strict=True):
            # The hidden maps of coupling nets are stored, which takes little memory for one layer at a time.
            with backward_memory("keep"):
                invert = self.trace_layer(layer.inverse_and_gradients, y)
                y, y_gradient, change, found = invert(own, y, z, y_gradient, log_det_gradient)
            if z_gradient is not None and change is not None:
                z_gradient += change
            trainable = iter(found)
            weight_gradients.insert(0, [next(trainable) if each.trainable else None for each in layer.variables])
        return y, y_gradient, z_gradient, weight_gradients


def read_layer_weights(layer: keras.layers.Layer) -> list[tf.Tensor]:
    """Returns the values of a layer's variables as a list of tensors, to pass to a trace that several layers share."""
    return [tf.convert_to_tensor(variable) for variable in layer.variables]


@contextlib.contextmanager
def jit_compiled(on: bool) -> Iterator[None]:
    """A context in which XLA compiles (`on`) or does not compile the layers that `Execution` calls or traces.

    Layers with equal shapes and options share one compiled program for the forward direction and one for the gradient.
    So the time for compiling does not grow with the depth, as it would with all layers in one program. XLA compiles for
    known shapes, and compiles again for another batch size.
    """
    before = get_jit_compile()
    _state.jit_compile = on
    try:
        yield
    finally:
        _state.jit_compile = before


def get_jit_compile() -> bool | None:
    """Returns whether the innermost `jit_compiled` context lets XLA compile layers; None outside of any context."""
    return getattr(_state, "jit_compile", None)


def substitute_weights(values: Iterable[tuple[keras.Variable, tf.Tensor]]) -> keras.StatelessScope:
    """Returns a `keras.StatelessScope`; inside it, each variable in `values` has the value of the paired tensor."""
    scope = keras.StatelessScope()
    for pair in values:
        scope.add_update(pair)
    return scope


def disable_autograph(owner: _Class) -> _Class:
    """Decorates a class so that AutoGraph rewrites neither its public methods nor the functions that these call.

    The decorated classes need no rewriting, because they contain no Python control flow on tensors. AutoGraph's
    rewriting took a large part of the time of a user's first training step.
    """
    for name, member in list(vars(owner).items()):
        if inspect.isfunction(member) and not name.startswith("_"):
            setattr(owner, name, tf.autograph.experimental.do_not_convert(member))
    return owner


def _make_traced_function(run: Callable[..., Any], compiled: bool = False) -> Any:
    """Returns `run` as a `tf.function` that stays a function in a caller's graph: TensorFlow does not inline it."""
    return tf.function(
        # TensorFlow warns if one Python function is traced often, so each trace gets a new `partial` of `run`.
        functools.partial(run),
        autograph=False,
        reduce_retracing=True,
        # None instead of False lets XLA compile the function as part of a user's compiled function.
        jit_compile=compiled or None,
        experimental_attributes={"_noinline": True},
    )


def _make_open_spec(x: tf.Tensor | None) -> tf.TensorSpec | None:
    if x is None:
        return None
    return tf.TensorSpec([None] * (len(x.shape) - 1) + [x.shape[-1] if len(x.shape) > 1 else None], x.dtype)


def _run_with_weights(
    method: Callable[..., Any], variables: list[keras.Variable], weights: list[tf.Tensor], *inputs: tf.Tensor | None
) -> Any:
    with substitute_weights(zip(variables, weights, strict=True)):
        return method(*inputs)


def _describe_layer(layer: keras.layers.Layer) -> str:
    """Returns the class and the options of a layer as text; layers with equal texts and shapes share a trace."""
    config = layer.get_config()
    config.pop("name")
    return f"{type(layer).__name__} {json.dumps(config, sort_keys=True)}"


def _get_trace_settings() -> tuple[Any, ...]:
    return get_net_precision(), get_backward_mode(), is_traced_for_xla()


def count_shards() -> int:
    """Returns the number of shards (parts) into which a batch of images is split for computation; 1 with a GPU.

    On CPUs the number is TensorFlow's inter-op threads divided by its intra-op threads (`tf.config.threading`), or 1 if
    neither the user nor `divide_cores` has set these.
    """
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    if not threads or tf.config.get_visible_devices("GPU"):
        return 1
    return max(1, tf.config.threading.get_inter_op_parallelism_threads() // threads)


def is_sharded(x: tf.Tensor) -> bool:
    """Returns whether the batch x is computed in several shards (parts): if x has images, and one or more per shard."""
    return len(x.shape) == 4 and x.shape[0] is not None and x.shape[0] >= count_shards() > 1


def run_in_shards(
    function: Callable[..., Any],
    shards: int,
    compiled: bool,
    x: tf.Tensor,
    condition: tf.Tensor | None = None,
    probe: tf.Tensor | None = None,
) -> tuple[tf.Tensor, ...]:
    """Runs a function on each shard (part) of the batch x separately, and returns the outputs, joined to full batches.

    In a deep flow each small operation waits for the one before. Threads that share one operation are often idle; two
    shards, each computed by one thread, do not wait for each other.

    Args:
        function: function of x and a condition; it maps each image separately, and returns a tuple of tensors.
        shards: number of shards, at most one for each image.
        compiled: whether XLA compiles the layers.
        x: the batch, `[batch, ...]`.
        condition: z or a map for each image, `[batch, ...]`, or None.
        probe: error probes of `make_image_probes`, whose gradients carry inversion errors, `[batch]`, or None.
    """
    if x.shape[0] == 0:
        # Convolutions refuse an empty batch, so one image of zeros is run, and its outputs are cut to length 0.
        image = (None if each is None else tf.zeros([1, *each.shape[1:]], each.dtype) for each in (x, condition))
        return tuple(output[:0] for output in run_in_shards(function, 1, compiled, *image))
    outputs = []
    for *inputs, own_probe in zip(*(_split_batch(each, shards) for each in (x, condition, probe)), strict=True):
        with jit_compiled(compiled), backward_memory(get_backward_mode(), own_probe):
            outputs.append(function(*inputs))
    return tuple(map(join_shards, zip(*outputs, strict=True))) if shards > 1 else outputs[0]


def split_into_shards(x: tf.Tensor) -> Batch:
    """Splits a batch into a list of shards (parts); if `is_sharded(x)` is false, returns x unchanged."""
    return _split_batch(x, count_shards()) if is_sharded(x) else x


def join_shards(batch: Batch | tuple[tf.Tensor, ...]) -> tf.Tensor:
    """Concatenates the shards (parts) of a batch to one tensor; a batch that is one tensor is returned unchanged."""
    return tf.concat(batch, 0) if isinstance(batch, list | tuple) else batch


def accept_shards(function: Callable[..., tf.Tensor]) -> Callable[..., Any]:
    """Decorates a function of batches, so that it also maps lists of shards (parts of a batch) to a list of shards.

    The function must map each image separately. An argument that is no list is passed with every shard.

    >>> @accept_shards
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
    if x is None or shards == 1:
        return [x] * shards
    count = get_sizes(x)[0]
    edges = [count * number // shards for number in range(shards + 1)]
    return [x[start:stop] for start, stop in itertools.pairwise(edges)]


@contextlib.contextmanager
def backward_memory(mode: str | None, probe: tf.Tensor | None = None) -> Iterator[None]:
    """A context that selects how activations reach the backward pass of code called or traced inside it.

    "keep" stores all activations. "recompute" does not store the hidden maps of coupling nets, which have many times as
    many channels as the maps between layers: computing them a second time takes most of a forward pass's time. Values
    and gradients are equal to the bit with "keep" and "recompute". "invert" stores the input and the output of each
    chain of flow layers and recovers the maps between the layers by inversion; gradients differ only by rounding.

    Outside of this context gradients are correct, too, but nets run in the way that is fastest without a backward pass.

    Args:
        mode: "keep", "recompute" or "invert"; None for the behaviour outside of the context.
        probe: the error probe of "invert", a float32 scalar that a gradient tape watches. The gradient of the probe is
            the largest inversion error of any image. The inversion error of an image is the largest difference between
            recovered and stored input of a chain, relative to the input's largest value, summed over the chains.

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


def get_backward_mode() -> str | None:
    """Returns the mode of the innermost `backward_memory` context, "keep", "recompute" or "invert"; None outside."""
    return getattr(_state, "backward", (None, None))[0]


def _get_error_probe() -> tf.Tensor | None:
    return getattr(_state, "backward", (None, None))[1]


def make_image_probes(x: tf.Tensor) -> tf.Tensor | None:
    """Returns error probes `[batch]`, whose gradients are the inversion errors of the images of x; or None.

    The largest of these gradients becomes the gradient of the scalar probe that `backward_memory` takes. The result is
    None if that context has no probe, or another mode than "invert".
    """
    probe = _get_error_probe() if get_backward_mode() == "invert" else None
    if probe is None:
        return None

    @tf.custom_gradient
    def spread(probe: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        return tf.fill(get_sizes(x)[:1], probe), tf.reduce_max

    return spread(probe)


def measure_inversion_error(recovered: tf.Tensor, stored: tf.Tensor) -> tf.Tensor:
    """Returns each image's inversion error max |recovered - stored| / max |stored|, float32 `[batch]`; 0 for 0 / 0."""
    axes = list(range(1, len(stored.shape)))
    largest = tf.reduce_max(tf.abs(stored), axes)
    difference = tf.reduce_max(tf.abs(recovered - stored), axes)
    return tf.cast(tf.math.divide_no_nan(difference, largest), tf.float32)


def apply_memory_mode(net: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Returns a coupling net whose hidden maps are stored or recomputed, as the context `backward_memory` selects.

    Outside of `backward_memory`, and in the forward pass of "invert", the net runs on a few images at a time, so that
    their hidden maps stay in the cache of a core.

    Args:
        net: function that maps each image separately; its arguments are maps `[batch, height, width, channels]`, the
            images' conditions (vectors, maps or None), and weights. The size of the last axis of the first weight is
            the number of channels of the hidden maps.
    """
    if get_backward_mode() == "keep":
        return net
    return functools.partial(_run_recomputing if get_backward_mode() == "recompute" else run_in_slices, net)


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

    If an operation uses several cores or a GPU, the net runs on all images at once. `apply_memory_mode` describes the
    net and the net's arguments x, `condition` and `weights`.
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
