"""How the networks of a model are run: their layers through shared traces, shards of a batch side by side.

Mixed into a network, these classes run what it defines; the definition knows nothing of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.runtime.inversion import run_inverting
from tfdecouple.runtime.rematerialization import backward_memory, backward_mode, meter_by_image
from tfdecouple.runtime.shards import divides, run_in_shards
from tfdecouple.runtime.tracing import Method, Traces, in_place
from tfdecouple.runtime.xla import jit_compile, jit_compiled


class TracedNetwork:
    """A network of many layers, to be named before its Keras class among the bases.

    Attributes:
        jit_compile: whether XLA compiles its layers where `jit_compiled` says neither yes nor no.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._traces = Traces()
        self.jit_compile = False

    def run_fast(self, method: Method, x: tf.Tensor, *others: tf.Tensor | None) -> Any:
        """Runs a method of this network as one function, where it is called eagerly, and by shards, where that pays.

        Args:
            method: bound to this network; from x and the others to tensors, image by image.
            x: `[batch, ...]`.
            *others: z or whatever else there is of each image; None where there is none.
        """
        if x.shape[0] == 0:
            # A convolution has no answer to no images. One image shows what there is none of.
            one = [None if given is None else tf.zeros([1, *given.shape[1:]], given.dtype) for given in (x, *others)]
            return tf.nest.map_structure(lambda found: found[:0], self.run_fast(method, *one))

        def by_shards(x: tf.Tensor, *others: tf.Tensor | None) -> Any:
            return run_in_shards(method, x, *others)

        run = by_shards if divides(x) else method
        told = jit_compile()
        with jit_compiled(self.jit_compile if told is None else told):
            if tf.executing_eagerly():
                return self._traces.run_network(method, x, others, run)
            return run(x, *others)

    def run_whole(self, method: Method, x: tf.Tensor) -> Any:
        """Runs a method of a network that repeats no kind of layer: where XLA compiles, all of it as one program."""
        return self._traces.run_layer(method, x, None) if jit_compile() else method(x, None)


@dataclasses.dataclass(frozen=True)
class _Call:
    """Calls a child in one direction, through the trace that all children of its kind share."""

    traces: Traces
    method: str

    def __call__(
        self, layer: keras.layers.Layer, h: tf.Tensor, condition: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        return self.traces.run_layer(getattr(layer, self.method), h, condition)


class TracedFlow(TracedNetwork):
    """An `InvertibleComposite` whose children share traces, to be named before it among the bases.

    Its chains of layers have the backward pass that `backward_memory` asks for.
    """

    _run_forward: Callable[..., Any]
    _run_inverse: Callable[..., Any]

    def _forward(self, x: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        if backward_mode() is None or tf.executing_eagerly():
            return self.run_fast(self._forward_by_layer, x, condition)
        # Each as a tensor, read once for all shards.
        own: list[keras.Variable] = self.variables  # type: ignore[attr-defined]
        values = [(variable, tf.convert_to_tensor(variable)) for variable in own]

        def forward(x: tf.Tensor, condition: tf.Tensor | None, meter: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
            with in_place(values), backward_memory(backward_mode(), meter):
                return self._forward_by_layer(x, condition)

        return self.run_fast(forward, x, condition, meter_by_image(x))

    def _inverse(self, y: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return self.run_fast(self._inverse_by_layer, y, condition)

    def _forward_by_layer(self, x: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return self._run_forward(x, condition, _Call(self._traces, "forward_and_log_det"))

    def _inverse_by_layer(self, y: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return self._run_inverse(y, condition, _Call(self._traces, "inverse_and_log_det"))

    def _run_chain(
        self, layers: Sequence[keras.layers.Layer], h: tf.Tensor, condition: tf.Tensor | None, call: Callable[..., Any]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        # Chains of vectors hold next to nothing.
        inverts = backward_mode() == "invert" and len(h.shape) == 4
        if inverts and isinstance(call, _Call) and call.method == "forward_and_log_det":
            return run_inverting(call.traces, layers, h, condition)
        return super()._run_chain(layers, h, condition, call)  # type: ignore[misc]
