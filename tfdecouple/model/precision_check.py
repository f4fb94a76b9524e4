"""A trial of the coupling nets in the precision of a training, before the training begins."""

from __future__ import annotations

import math
import re

import tensorflow as tf

from tfdecouple.errors import ConfigError, one_line
from tfdecouple.layers import ConvNet, Coupling, LocalConvNet, backward_memory, net_precision
from tfdecouple.model.networks import Networks
from tfdecouple.networks.flow import FlowStep

# What works for two images works for more.
_IMAGES = 2
# Largest difference from float32, relative to the norm. Rounding to bfloat16 gives 0.01.
_TOLERANCE = 0.1


def require_precision(model: Networks, precision: str, memory: str) -> None:
    """Refuses a precision of training in which this processor computes something else than in float32.

    One coupling net of each kind runs forward and backward in both.

    Args:
        model: the model that is to be trained.
        precision: as `training.precision`.
        memory: as `training.memory`.

    Raises:
        ConfigError: naming the precision that works.
    """
    if precision != "mixed_bfloat16":
        return
    for net, sides in list_kinds_of_nets(model):
        try:
            difference = _compare_with_float32(net, sides, memory)
        except tf.errors.OpError as error:
            # TensorFlow's message begins with the operation's place in the graph.
            reason = re.sub(r"\{\{.*?\}\}", "", error.message).strip() or type(error).__name__
            difference = f"TensorFlow cannot compute it, {one_line(reason, first=True)}"
        if difference:
            raise ConfigError(
                f"training in bfloat16 does not work on this processor (a coupling net of {net.first.shape[2]}, "
                f"{net.hidden} and {net.outputs} channels at {sides[0]} x {sides[1]} pixels: {difference}); "
                "use --set training.precision=float32"
            )


def list_kinds_of_nets(model: Networks) -> list[tuple[ConvNet, tuple[int, int]]]:
    """Returns one coupling net of each kind that the flows over images have, with the height and width of its maps."""
    kinds: dict[tuple[int, ...], tuple[ConvNet, tuple[int, int]]] = {}
    flows = [model.flow, *([] if model.dequantizer is None else [model.dequantizer.flow])]
    for stage in (stage for flow in flows for stage in flow.stages):
        sides = stage.plan.height, stage.plan.width
        for layer in stage.layers:
            for coupling in layer.sequence if isinstance(layer, FlowStep) else [layer.coupling]:
                if isinstance(coupling, Coupling) and isinstance(coupling.net, ConvNet):
                    kinds.setdefault((*sides, *coupling.net.first.shape, coupling.net.outputs), (coupling.net, sides))
    return list(kinds.values())


def _compare_with_float32(net: ConvNet, sides: tuple[int, int], memory: str) -> str:
    """Returns what differs from float32 in a net like this one in bfloat16; "" where nothing differs."""
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

    # Within a layer that is inverted a net keeps its maps.
    with backward_memory("keep" if memory == "invert" else memory):
        exact = run()
        with net_precision("bfloat16"):
            _spoil_free_memory([*shapes, [_IMAGES, *sides, net.hidden]])
            found = run()
    sources = ["the input", *(weight.name for weight in trial.trainable_weights)]
    names = ["the output", *(f"the gradient for {source}" for source in sources)]
    for name, ours, right in zip(names, found, exact, strict=True):
        difference = float(tf.norm(ours - right) / tf.norm(right))
        # Written so that NaN is wrong.
        if not difference <= _TOLERANCE:
            return f"{name} is off by {difference:.2g} of its size"
    return ""


def _spoil_free_memory(shapes: list[list[int]]) -> None:
    """Leaves NaN in the memory that the next maps take: a kernel that reads beyond its map shows by it."""
    held = [tf.fill(shape, tf.constant(math.nan, tf.bfloat16)) for shape in shapes for _ in range(2)]
    del held
