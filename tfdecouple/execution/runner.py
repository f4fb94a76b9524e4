"""The runner of networks, `Traced`: traces that layers share, shards of a batch, inversion of layers.

Layers with equal shapes and options share one trace (a `tf.function`), so that the time for tracing does not grow with
the depth. The caller's graph calls these functions instead of containing their operations, because the time in which
TensorFlow prepares a graph for its first run grows with the number of operations.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.execution.run_mode import RunMode, split_into_parts
from tfdecouple.layers.base import Condition, InvertibleLayer, Mapped, Run, disable_autograph, run_layers
from tfdecouple.layers.inversion import Gradients, invert_layers
from tfdecouple.numerics.arithmetic import get_sizes
from tfdecouple.numerics.kernels import use_kernels
from tfdecouple.tensorflow_internals import is_traced_for_xla, pause_gradient_tapes


@disable_autograph
class Traced:
    """A runner of networks, `flow.runner = Traced()`: networks may share it; `mode` is for calls that give none.

    In eager mode a network runs by a trace of its own, which captures the network's variables, because passing a
    thousand weights as arguments took 45 ms a call.
    """

    def __init__(self, mode: RunMode | None = None) -> None:
        self.mode = mode or RunMode()
        self._layer_functions: dict[tuple, Callable] = {}
        self._network_functions: dict[tuple, tuple[list[keras.Variable], Any]] = {}

    def __call__(
        self,
        method: Callable,
        network: InvertibleLayer,
        x: tf.Tensor,
        condition: Condition = None,
        mode: RunMode | None = None,
        probe: tf.Tensor | None = None,
    ) -> Any:
        """Returns a network's results for a batch x, each `[batch, ...]`.

        Args:
            method: a method of the network's class, such as `InvertibleLayer.forward_and_log_det`.
            network: an `InvertibleLayer` or an encoder.
            x: the batch, `[batch, ...]`.
            condition: z or a map for each image, `[batch, ...]`, or None.
            mode: how the network runs; None for the attribute `mode`.
            probe: with the memory mode "invert", float32 zeros, `[batch]`, that a gradient tape watches. Their
                gradients are the images' inversion errors: the largest difference between recovered and stored input
                of a chain, relative to the input's largest value, summed over the chains.
        """
        if x.shape[0] == 0 or (x.shape[0] is None and mode is None):
            # TensorFlow's convolutions fail for an empty batch, so an image of zeros is computed, and then left out of
            # the results. In a graph for any batch size, a short last batch can leave a device without images.
            images = get_sizes(x)[0]
            missing = 1 if x.shape[0] == 0 else tf.maximum(1 - images, 0)
            x, condition = (
                value if value is None else tf.pad(value, [[0, missing], *[[0, 0]] * (len(value.shape) - 1)])
                for value in (x, condition)
            )
            return tuple(output[:images] for output in self(method, network, x, condition, mode or self.mode))
        mode = mode or self.mode
        if probe is None and (traced := self._find_network_function(method, network, x, condition, mode)):
            return traced(x, condition)
        count, outputs = mode.count_parts(x), []
        parts = (split_into_parts(batch, count) for batch in (x, condition, probe))
        run_layer = functools.partial(self._run_layer, method, mode)
        with use_kernels(mode.kernels):
            for part, z, part_probes in zip(*parts, strict=True):
                run: Run = functools.partial(run_layers, run_layer)
                if method is InvertibleLayer.forward_and_log_det:
                    if mode.memory == "invert":
                        run = functools.partial(self._run_for_inversion, run, mode, part_probes)
                    outputs.append(network.run_forward(run, part, z))
                elif method is InvertibleLayer.inverse_and_log_det:
                    outputs.append(network.run_inverse(run, part, z))
                else:
                    outputs.append(run_layer(network, part))
        return outputs[0] if count == 1 else tuple(tf.concat(parts, 0) for parts in zip(*outputs, strict=True))

    def _run_layer(
        self, method: Callable, mode: RunMode, layer: InvertibleLayer, x: tf.Tensor, *others: Condition
    ) -> Any:
        """Returns `method(layer, x, *others)`, computed by a trace that all layers with equal shapes and options share.

        The trace takes the values of the layer's variables as arguments; while it is made, they replace the variables.
        """
        # The key tells which weights are trainable, because a traced backward pass computes gradients for them only.
        trainable = tuple(variable.trainable for variable in layer.variables)
        shapes = [None if value is None else value.shape[1:] for value in (x, *others[:1])]
        key = (method, _describe_layer(layer), trainable, mode, *shapes, is_traced_for_xla())
        if key not in self._layer_functions:

            def run(weights: list[tf.Tensor], *inputs: Condition) -> Any:
                with keras.StatelessScope(zip(layer.variables, weights, strict=True)):
                    return method(layer, *inputs)

            self._layer_functions[key] = _make_traced_function(run, mode.jit_compile)
        return self._layer_functions[key]([tf.convert_to_tensor(variable) for variable in layer.variables], x, *others)

    def _find_network_function(
        self, method: Callable, network: InvertibleLayer, x: tf.Tensor, condition: Condition, mode: RunMode
    ) -> Callable | None:
        """Returns a trace for the batch x, or None if the caller is traced itself or weights are replaced."""
        if not tf.executing_eagerly() or tf.config.functions_run_eagerly():
            return None
        # The network was built for one size of images. Images of all other sizes share one trace of unknown size.
        is_open = len(x.shape) == 4 and x.shape[1:-1] != network._sides
        key = (method, network, mode, mode.count_parts(x), x.shape[-1:] if is_open else x.shape[1:])
        if key not in self._network_functions:
            traced = _make_traced_function(lambda x, condition: self(method, network, x, condition, mode))
            self._network_functions[key] = network.variables, traced
            if is_open:
                traced.get_concrete_function(*map(_make_open_spec, (x, condition)))
        variables, traced = self._network_functions[key]
        # Inside a `keras.StatelessScope` other values replace the weights. A trace made earlier would ignore them.
        are_replaced = any(not isinstance(variable.value, tf.Variable) for variable in variables)
        return None if are_replaced else traced

    def _run_for_inversion(
        self,
        run: Callable[..., Mapped],
        mode: RunMode,
        probe: tf.Tensor | None,
        layers: Sequence[InvertibleLayer],
        x: tf.Tensor,
        condition: Condition,
    ) -> Mapped:
        """Returns the results of `run`, with a backward pass that recovers the inputs of the layers from their output.

        The gradients of `probe`, `[batch]` or None, are the images' inversion errors.
        """
        # Only layers on images are inverted, because the activations of layers on vectors take little memory.
        if len(x.shape) != 4 or not all(layer.recovers_input for layer in layers):
            return run(layers, x, condition)
        variables = [variable for layer in layers for variable in layer.variables]
        given = [value for value in (condition, probe) if value is not None]
        # The hidden maps of coupling nets are stored, which takes little memory for one layer at a time.
        keep = dataclasses.replace(mode, memory="keep")
        invert = functools.partial(self._run_layer, _invert_layer, keep)

        @tf.custom_gradient
        def run_recovering(x: tf.Tensor, *others: tf.Tensor) -> tuple[Mapped, Callable]:
            weights = list(zip(variables, others[len(given) :], strict=True))
            # The gradient tape does not record the layers, because the tape would store the activations of each layer.
            with pause_gradient_tapes(), keras.StatelessScope(weights):
                y, log_det = run(layers, x, condition)

            def gradient(*upstream: tf.Tensor) -> list[tf.Tensor | None]:
                with use_kernels(keep.kernels), keras.StatelessScope(weights):
                    result = invert_layers(invert, layers, y, condition, *upstream)
                gradients = [] if condition is None else [result.condition_gradient]
                gradients += [] if probe is None else [measure_inversion_error(result.x, x)]
                return [result.x_gradient, *gradients, *result.weight_gradients]

            return (y, log_det), gradient

        return run_recovering(x, *given, *map(tf.convert_to_tensor, variables))


def _invert_layer(layer: InvertibleLayer, *inputs: Condition) -> Gradients:
    return layer.inverse_and_gradients(*inputs)


def _make_traced_function(run: Callable, compiled: bool = False) -> Any:
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


def _describe_layer(layer: keras.layers.Layer) -> str:
    """Returns the class and the options of a layer as text; layers with equal texts and shapes share a trace."""
    config = layer.get_config()
    config.pop("name")
    return f"{type(layer).__name__} {json.dumps(config, sort_keys=True)}"


def measure_inversion_error(recovered: tf.Tensor, stored: tf.Tensor) -> tf.Tensor:
    """Returns each image's inversion error max |recovered - stored| / max |stored|, float32 `[batch]`; 0 for 0 / 0."""
    axes = list(range(1, len(stored.shape)))
    largest = tf.reduce_max(tf.abs(stored), axes)
    difference = tf.reduce_max(tf.abs(recovered - stored), axes)
    return tf.cast(tf.math.divide_no_nan(difference, largest), tf.float32)


@contextlib.contextmanager
def run_functions_eagerly() -> Iterator[None]:
    """A context in which a `tf.function` runs without a trace of its own; in a graph, its operations join the graph."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)
