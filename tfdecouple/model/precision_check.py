"""A trial, before a run begins, of its coupling nets in the precision that it asks for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import tensorflow as tf

from tfdecouple.errors import ConfigError, one_line
from tfdecouple.layers import ConvNet, Coupling, LocalConvNet, backward_memory, net_precision
from tfdecouple.model.networks import Networks
from tfdecouple.networks.flow import Flow, FlowStep

# What works for two images works for more.
_IMAGES = 2

# How far values and gradients may be from those of float32, relative to their norm. Rounding to bfloat16 gives 0.01.
_TOLERANCE = 0.1


def check_precision_of(model: Networks, precision: str, memory: str) -> None:
    """Refuses a precision of training in which this processor computes something else than in float32.

    Args:
        model: that is to be trained.
        precision: of training, in the words of its config.
        memory: of training.

    Raises:
        ConfigError: naming the precision that works.
    """
    dtype = "bfloat16" if precision == "mixed_bfloat16" else "float32"
    for flow in (model.flow, *([] if model.dequantizer is None else [model.dequantizer.flow])):
        check_precision(flow, dtype, memory)


def check_precision(flow: Flow, dtype: str, memory: str = "keep") -> None:
    """Refuses a precision in which this processor computes something else than in float32.

    A coupling net of each kind that the flow has runs once, forward and backward, in both.

    Args:
        flow: the flow that is to be trained, built.
        dtype: of the coupling nets' products, as `net_precision` takes it.
        memory: of training.

    Raises:
        ConfigError: naming the precision that works.
    """
    if dtype == "float32":
        return
    for net, sides in kinds_of_nets(flow):
        try:
            wrong = _wrong(net, sides, dtype, memory)
        except tf.errors.OpError as error:
            # Without the operation's place in TensorFlow's graph.
            said = re.sub(r"\{\{.*?\}\}", "", error.message).strip() or type(error).__name__
            wrong = f"TensorFlow cannot compute it, {one_line(said, first=True)}"
        if wrong:
            raise ConfigError(
                f"training in {dtype} does not work on this processor (a coupling net of {net.first.shape[2]}, "
                f"{net.hidden} and {net.outputs} channels at {sides[0]} x {sides[1]} pixels: {wrong}); "
                "use --set training.precision=float32"
            )


def kinds_of_nets(flow: Flow) -> Iterator[tuple[ConvNet, tuple[int, int]]]:
    """Yields a coupling net of each kind, and the height and width of its maps."""
    seen = set()
    for stage in flow.stages:
        sides = stage.plan.height, stage.plan.width
        for layer in stage.layers:
            for coupling in layer.sequence if isinstance(layer, FlowStep) else [layer.coupling]:
                if not isinstance(coupling, Coupling) or not isinstance(coupling.net, ConvNet):
                    continue
                kind = *sides, *coupling.net.first.shape, coupling.net.outputs
                if kind not in seen:
                    seen.add(kind)
                    yield coupling.net, sides


def _wrong(net: ConvNet, sides: tuple[int, int], dtype: str, memory: str) -> str:
    """Returns what differs from float32 in a net like this one, with an effect; nothing where all is well."""
    trial = type(net)(net.outputs, net.hidden, net.condition_size)
    generator = tf.random.Generator.from_seed(0)
    shapes = [[_IMAGES, *sides, channels] for channels in (net.first.shape[2], net.outputs)]
    x, upstream = (generator.normal(shape) for shape in shapes)
    places = sides if isinstance(net, LocalConvNet) else ()
    condition = generator.normal([_IMAGES, *places, net.condition_size]) if net.condition_size else None
    trial.build(x.shape)
    trial.last.gain.assign(tf.ones([net.outputs]))

    def run() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = trial.call(x, condition)
        sources = [x, *(weight.value for weight in trial.trainable_weights)]
        return [y, *tape.gradient(y, sources, output_gradients=upstream)]

    # By itself a net that is inverted keeps its maps.
    with backward_memory("keep" if memory == "invert" else memory):
        exact = run()
        with net_precision(dtype):
            _spoil_free_memory([*shapes, [_IMAGES, *sides, net.hidden]], dtype)
            found = run()
    names = [
        "the output",
        "the gradient for the input",
        *(f"the gradient for {w.name}" for w in trial.trainable_weights),
    ]
    for name, ours, right in zip(names, found, exact, strict=True):
        difference = float(tf.norm(ours - right) / tf.norm(right))
        # Written so that NaN is wrong.
        if not difference <= _TOLERANCE:
            return f"{name} is off by {difference:.2g} of its size"
    return ""


def _spoil_free_memory(shapes: list[list[int]], dtype: str) -> None:
    """Leaves NaN where the next maps will lie: a kernel that reads too far shows by what it finds there."""
    held = [tf.fill(shape, tf.constant(math.nan, dtype)) for shape in shapes for _ in range(2)]
    del held
