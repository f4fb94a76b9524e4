"""A check, before training, that this processor computes the coupling nets correctly in the training's precision."""

from __future__ import annotations

import math
import re

import tensorflow as tf

from tfdecouple.errors import ConfigError, one_line
from tfdecouple.layers import ConvNet, Coupling, LocalConvNet, backward_memory, net_precision
from tfdecouple.model.networks import Networks
from tfdecouple.networks.flow import FlowStep

# Number of images in the check; more images would not show more.
_IMAGES = 2
# Largest difference from float32, relative to the norm; correct rounding to bfloat16 gives about 0.01.
_TOLERANCE = 0.1


def require_precision(model: Networks, precision: str, memory: str) -> None:
    """Raises ConfigError if this processor computes coupling nets wrongly in the training's precision.

    One coupling net of each kind runs forward and backward in bfloat16 and, for comparison, in float32.

    Args:
        model: the model that is to be trained.
        precision: precision of training, a value of `training.precision`.
        memory: memory mode of training, a value of `training.memory`.

    Raises:
        ConfigError: if the results differ; the message names the precision that works.
    """
    if precision != "mixed_bfloat16":
        return
    for net, sides in list_kinds_of_nets(model):
        try:
            difference = _compare_with_float32(net, sides, memory)
        except tf.errors.OpError as error:
            # TensorFlow's message begins with the operation's position in the graph, which means nothing to users.
            reason = re.sub(r"\{\{.*?\}\}", "", error.message).strip() or type(error).__name__
            difference = f"TensorFlow cannot compute it, {one_line(reason, first=True)}"
        if difference:
            raise ConfigError(
                f"training in bfloat16 does not work on this processor (a coupling net of {net.first.shape[2]}, "
                f"{net.hidden} and {net.outputs} channels at {sides[0]} x {sides[1]} pixels: {difference}); "
                "use --set training.precision=float32"
            )


def list_kinds_of_nets(model: Networks) -> list[tuple[ConvNet, tuple[int, int]]]:
    """Returns one coupling net of each kind in the flows over images, with the height and width of its maps."""
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
    """Returns which result of a copy of a net differs between bfloat16 and float32, as text; "" if none differs."""
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

    # With "invert" the backward pass of each single layer runs in the mode "keep".
    with backward_memory("keep" if memory == "invert" else memory):
        exact = run()
        with net_precision("bfloat16"):
            _spoil_free_memory([*shapes, [_IMAGES, *sides, net.hidden]])
            found = run()
    sources = ["the input", *(weight.name for weight in trial.trainable_weights)]
    names = ["the output", *(f"the gradient for {source}" for source in sources)]
    for name, ours, right in zip(names, found, exact, strict=True):
        difference = float(tf.norm(ours - right) / tf.norm(right))
        # The negated comparison makes NaN count as too large.
        if not difference <= _TOLERANCE:
            return f"{name} is off by {difference:.2g} of its size"
    return ""


def _spoil_free_memory(shapes: list[list[int]]) -> None:
    """Fills the memory that the next maps will take with NaN, so that a kernel that reads beyond its map is noticed."""
    held = [tf.fill(shape, tf.constant(math.nan, tf.bfloat16)) for shape in shapes for _ in range(2)]
    del held
