"""The execution of a network in a `RunMode`: traces that layers share, shards of a batch, inversion of layers.

The layers of a deep flow have few different shapes and options. Layers with equal shapes and options share one trace (a
`tf.function`), so that the time for tracing does not grow with the depth. The caller's graph calls these functions
instead of containing their operations, because the time in which TensorFlow prepares a graph for its first run grows
with the number of operations.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.layers.base import Condition, Mapped, Walk, disable_autograph, read_weights, substitute_weights
from tfdecouple.numerics.arithmetic import get_sizes
from tfdecouple.numerics.tf32 import full_float32
from tfdecouple.runtime.run_mode import RunMode, get_run_mode, split_into_parts
from tfdecouple.tensorflow_internals import is_traced_for_xla, pause_gradient_tapes


@disable_autograph
class Execution:
    """Runs one network in the `RunMode` of the caller; replaces the network's methods of the same names.

    The methods are `forward_and_log_det` and `inverse_and_log_det` of a flow, and `run_inference` of an encoder. In
    eager mode they run a trace. The trace captures the network's variables, because passing a thousand weights as
    arguments took 45 ms a call.

    Args:
        network: an `InvertibleLayer` or an encoder.
        jit_compile: whether XLA compiles the network's layers where the run mode does not say.
    """

    def __init__(self, network: Any, jit_compile: bool = False) -> None:
        self.network = network
        self.jit_compile = jit_compile
        self._layer_functions: dict[tuple, Any] = {}
        self._network_functions: dict[tuple, tuple[list[keras.Variable], Any]] = {}
        network.execution = self
        if hasattr(network, "run_inference"):
            network.run_inference = self.run_inference
        else:
            network.forward_and_log_det = functools.partial(self.run, "_forward")
            network.inverse_and_log_det = functools.partial(self.run, "_inverse")

    @full_float32()
    def run(self, method: str, x: Any, condition: Any = None, probes: tf.Tensor | None = None) -> Mapped:
        """Returns the output of the network for a batch x, and the log-determinant of each image, `[batch]`.

        Args:
            method: the direction, "_forward" or "_inverse".
            x: the batch, `[batch, ...]`.
            condition: z or a map for each image, `[batch, ...]`, or None.
            probes: error probes `[batch]`, whose gradients carry inversion errors; None to make them of the run mode's
                probe.
        """
        x, condition = self.network._prepare_inputs(x, condition)
        mode = self._choose_mode()
        if probes is None:
            probes = make_image_probes(mode, x)
        if x.shape[0] == 0:
            return tuple(output[:0] for output in self.run(method, *_make_one_image(x, condition)))
        if traced := self._find_trace(functools.partial(self.run, method), method, mode, x, condition, probes):
            return traced(x, condition, probes)
        count, outputs = mode.count_parts(x), []
        parts = (split_into_parts(batch, count) for batch in (x, condition, probes))
        for x_part, condition_part, probe in zip(*parts, strict=True):
            part_mode = mode.replace(probe=probe)
            with part_mode.apply():
                walk = Walk(getattr(self.network, f"run{method}")(x_part, condition_part))
                for layers, h, z in walk:
                    if _is_inverted(part_mode, method, layers, h):
                        walk.answer = self._run_for_inversion(part_mode, layers, h, z)
                        continue
                    log_dets = []
                    for layer in layers:
                        h, log_det = self._trace_layer(layer, method, h)(read_weights(layer), h, z)
                        log_dets.append(log_det)
                    walk.answer = h, tf.add_n(log_dets)
            outputs.append(walk.result)
        return _join(outputs)

    @full_float32()
    def run_inference(self, x: tf.Tensor) -> Any:
        """Returns the encoder's outputs for images x, without training: one tensor, or a tuple of tensors."""
        outputs = self._infer_as_tuple(x)
        return outputs if len(outputs) > 1 else outputs[0]

    def _infer_as_tuple(self, x: tf.Tensor, *_: None) -> tuple[tf.Tensor, ...]:
        mode = self._choose_mode()
        if x.shape[0] == 0:
            return tuple(output[:0] for output in self._infer_as_tuple(_make_one_image(x, None)[0]))
        if traced := self._find_trace(self._infer_as_tuple, "_infer", mode, x):
            return traced(x)
        with mode.apply():
            # All blocks are in one trace, so that XLA, if `jit_compile` is on, compiles one program for the network.
            weights, parts = read_weights(self.network), mode.split_batch(x)
            return _join([self._trace_layer(self.network, "_infer", part)(weights, part) for part in parts])

    def _choose_mode(self) -> RunMode:
        mode = get_run_mode() or RunMode()
        return mode.replace(jit_compile=self.jit_compile) if mode.jit_compile is None else mode

    def _find_trace(
        self, run: Callable[..., Any], name: str, mode: RunMode, x: tf.Tensor, *others: tf.Tensor | None
    ) -> Callable[..., Any] | None:
        """Returns a trace of `run` for the batch x, or None if the caller is traced itself or weights are replaced."""
        if not tf.executing_eagerly() or tf.config.functions_run_eagerly():
            return None
        # The network was built for one size of images. Images of all other sizes share one trace of unknown size.
        is_open = len(x.shape) == 4 and x.shape[1:-1] != self.network._sides
        key = (name, mode, mode.count_parts(x), x.shape[-1:] if is_open else x.shape[1:])
        if key not in self._network_functions:
            self._network_functions[key] = self.network.variables, (traced := _make_traced_function(run))
            if is_open:
                with mode.apply():
                    traced.get_concrete_function(*map(_make_open_spec, (x, *others)))
        variables, traced = self._network_functions[key]
        # Inside a `keras.StatelessScope` other values replace the weights. A trace made earlier would ignore them.
        are_replaced = any(not isinstance(variable.value, tf.Variable) for variable in variables)
        return None if are_replaced else traced

    def _trace_layer(self, layer: Any, method: str, x: tf.Tensor) -> Callable[..., Any]:
        """Returns a layer's method as a traced function that all layers with equal shapes and options share.

        The traced function takes the values of the layer's variables (`read_weights`) before the arguments of the
        method. While it is traced, these values replace the weights of the layer. The input x selects the trace.
        """
        mode: RunMode = self._choose_mode()
        # The key tells which weights are trainable, because a traced backward pass computes gradients for them only.
        trainable = tuple(variable.trainable for variable in layer.variables)
        key = (method, _describe_layer(layer), trainable, mode, x.shape[1:], is_traced_for_xla())
        if key not in self._layer_functions:
            run = functools.partial(_run_layer, layer, method)
            self._layer_functions[key] = _make_traced_function(run, bool(mode.jit_compile))
        return self._layer_functions[key]

    def _run_for_inversion(self, mode: RunMode, layers: Sequence[Any], x: tf.Tensor, condition: Condition) -> Mapped:
        weights = [read_weights(layer) for layer in layers]

        @tf.custom_gradient
        def run(x: tf.Tensor, condition: tf.Tensor, probe: tf.Tensor, *flat: tf.Tensor) -> tuple[Any, Callable]:
            values = tf.nest.pack_sequence_as(weights, flat)
            z = condition if has_condition else None
            y, log_dets = x, []
            # The gradient tape does not record the layers, because the tape would store the activations of each layer.
            with pause_gradient_tapes():
                for layer, layer_weights in zip(layers, values, strict=True):
                    y, log_det = self._trace_layer(layer, "_forward", y)(layer_weights, y, z)
                    log_dets.append(log_det)
                total = tf.add_n(log_dets)

            def gradient(y_gradient: tf.Tensor, log_det_gradient: tf.Tensor) -> list[Any]:
                # The hidden maps of coupling nets are stored, which takes little memory for one layer at a time.
                with mode.replace(memory="keep", probe=None).apply():
                    recovered, *gradients = self._invert_chain(layers, values, y, z, y_gradient, log_det_gradient)
                x_gradient, z_gradient, weight_gradients = gradients
                error = None if mode.probe is None else measure_inversion_error(recovered, x)
                return [x_gradient, z_gradient, error, *tf.nest.flatten(weight_gradients)]

            return (y, total), gradient

        has_condition = condition is not None
        unused = tf.zeros([])
        arguments = condition if has_condition else unused, unused if mode.probe is None else mode.probe
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
        for layer, layer_weights in zip(reversed(layers), reversed(weights), strict=True):
            invert = self._trace_layer(layer, "inverse_and_gradients", y)
            y, y_gradient, change, gradients = invert(layer_weights, y, z, y_gradient, log_det_gradient)
            if z_gradient is not None and change is not None:
                z_gradient += change
            trainable = iter(gradients)
            weight_gradients.insert(0, [next(trainable) if v.trainable else None for v in layer.variables])
        return y, y_gradient, z_gradient, weight_gradients


def _run_layer(
    layer: Any, method: str, weights: list[tf.Tensor], x: tf.Tensor, condition: Condition = None, *rest: tf.Tensor
) -> Any:
    """Returns the outputs of a layer's method, with the tensors `weights` instead of the layer's variables."""
    with substitute_weights(zip(layer.variables, weights, strict=True)):
        if (program := getattr(layer, f"run{method}", None)) is None:
            return getattr(layer, method)(x, condition, *rest)
        walk = Walk(program(x, condition))
        for layers, h, z in walk:
            log_dets = []
            for inner in layers:
                h, log_det = getattr(inner, method)(h, z)
                log_dets.append(log_det)
            walk.answer = h, tf.add_n(log_dets)
        return walk.result


def _is_inverted(mode: RunMode, method: str, layers: Sequence[Any], h: tf.Tensor) -> bool:
    # Only layers on images are inverted, because the activations of layers on vectors take little memory.
    is_chosen = mode.memory == "invert" and method == "_forward" and len(h.shape) == 4
    return is_chosen and all(layer.recovers_input for layer in layers)


def _make_one_image(x: tf.Tensor, condition: Condition) -> list[Any]:
    """Returns zeros for one image, instead of an empty batch, which convolutions refuse."""
    return [None if batch is None else tf.zeros([1, *batch.shape[1:]], batch.dtype) for batch in (x, condition)]


def _join(outputs: list[Any]) -> Any:
    return outputs[0] if len(outputs) == 1 else tuple(tf.concat(parts, 0) for parts in zip(*outputs, strict=True))


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


def _describe_layer(layer: keras.layers.Layer) -> str:
    """Returns the class and the options of a layer as text; layers with equal texts and shapes share a trace."""
    config = layer.get_config()
    config.pop("name")
    return f"{type(layer).__name__} {json.dumps(config, sort_keys=True)}"


def make_image_probes(mode: RunMode, x: tf.Tensor) -> tf.Tensor | None:
    """Returns error probes `[batch]`, whose gradients are the inversion errors of the images of x; or None.

    The largest of these gradients becomes the gradient of the mode's scalar probe. The result is None if the mode has
    no probe, or another memory mode than "invert".
    """
    if mode.probe is None or mode.memory != "invert":
        return None

    @tf.custom_gradient
    def spread(probe: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        return tf.fill(get_sizes(x)[:1], probe), tf.reduce_max

    return spread(mode.probe)


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
