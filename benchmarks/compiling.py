"""Measures how long XLA compiles the layers of the presets, and how far its results differ (training.jit_compile).

    python benchmarks/compiling.py --docs docs/scaling.md --json compiling.json
    python benchmarks/compiling.py --presets quickstart cifar10 --images 16

Layers of the same class, config and shape are one kind. Each kind of layer of flow, dequantizer and prior is made once,
with weights perturbed from their start, and runs forward and backward on random inputs: by TensorFlow, and compiled by
XLA (`jit_compiled`). A kind that several presets have is measured once. Each preset has a process of its own, because
XLA runs out of room after some two hundred programs. Columns:

  compiled    CPU seconds of the first call less those of a later one, forward and backward, summed over the kinds;
              the next column has the slowest kind alone
  step        CPU seconds of a later call (best of three), summed over the kinds: XLA's divided by TensorFlow's
  difference  largest difference between XLA and TensorFlow in the loss or a gradient, over its largest number
  rounding    the same difference between TensorFlow's float32 and float64, for tensors whose difference is over 1e-5

The loss is the mean over the batch of half the sum of squares less the log-determinant.
--docs puts the table between the lines `<!-- compiling -->` and `<!-- end compiling -->` of a file.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import pathlib
import sys
import time
from collections.abc import Collection, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import relative_differences, table, write_json  # noqa: E402
from benchmarks.scaling import put  # noqa: E402
from tfdecouple.config import ModelConfig, load_preset, preset_names  # noqa: E402
from tfdecouple.doctor.installation import describe_machine  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402
from tfdecouple.runtime.process import run_program, start_tensorflow  # noqa: E402

# Standard deviation of the noise added to the weights: couplings would be the identity without it.
OFF_START = 0.02
# Largest relative difference between XLA and TensorFlow at which no comparison with float64 is made.
AGREES = 1e-5
CALLS = 3


def main() -> int:
    """Reads the command line and measures; returns the exit status."""
    return run_program(lambda: compiling(make_parser().parse_args()))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", metavar="PRESET", help="default all")
    parser.add_argument("--images", type=int, default=1, help="in a batch (default 1)")
    parser.add_argument("--threads", type=int, default=2, help="that compute (default 2)")
    parser.add_argument("--json", type=pathlib.Path, help="write all figures there")
    parser.add_argument("--docs", type=pathlib.Path, help="put the table into this file")
    return parser


def compiling(options: argparse.Namespace) -> int:
    """Measures the requested presets one after the other and prints the table; returns the exit status."""
    for name in ("images", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; it must be at least 1")
    if options.docs and not options.docs.is_file():
        raise UserError(f"--docs: there is no file {options.docs}")
    presets = options.presets or preset_names()
    for preset in presets:
        load_preset(preset)  # An unknown name is an error before the first preset is measured.
    measured: dict[str, dict[str, Any]] = {}
    figures: dict[str, Any] = {
        "machine": describe_machine(),
        "images": options.images,
        "kinds": measured,
        "presets": {},
    }
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        for preset in presets:
            keys, new = pool.submit(measure_preset, preset, options.images, options.threads, [*measured]).result()
            measured |= new
            rows = [measured[key] for key in keys]
            figures["presets"][preset] = {
                "kinds": len(rows),
                "compiled_s": sum(row["compiled_s"] for row in rows),
                "slowest_s": max(row["compiled_s"] for row in rows),
                "step": sum(row["xla_s"] for row in rows) / sum(row["tensorflow_s"] for row in rows),
                "off": max(row["off"] for row in rows),
                "rounding": max((row["rounding"] for row in rows if "rounding" in row), default=None),
            }
            print(f"{preset}: {json.dumps(figures['presets'][preset])}", flush=True)
            write_json(options.json, figures)
    text = render(figures["presets"])
    print(text)
    if options.docs:
        options.docs.write_text(put(options.docs.read_text(encoding="utf-8"), "compiling", text), encoding="utf-8")
    return 0


def render(presets: dict[str, dict[str, Any]]) -> str:
    """Returns the figures of the presets as a markdown table."""
    rows = [
        [name, row["kinds"], row["compiled_s"], row["slowest_s"], row["step"], f"{row['off']:.1e}", _rounding(row)]
        for name, row in presets.items()
    ]
    return table(["preset", "kinds of layer", "compiled, s", "slowest kind, s", "step", "difference", "rounding"], rows)


def _rounding(row: dict[str, Any]) -> str:
    return "" if row["rounding"] is None else f"{row['rounding']:.1e}"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of layer: all layers that have the same class, config and shapes.

    Attributes:
        layer: a layer of the kind, which is not built yet.
        shape: shape of the input without the batch.
        condition: shape of z or of the conditioning map without the batch, or None.
    """

    layer: Any
    shape: tuple[int, ...]
    condition: tuple[int, ...] | None = None

    @property
    def key(self) -> str:
        """Text that all layers of the kind have in common: class, config and shapes."""
        config = {name: value for name, value in self.layer.get_config().items() if name != "name"}
        return f"{type(self.layer).__name__} {json.dumps(config, sort_keys=True)} {list(self.shape)} {self.condition}"


def kinds_of(config: ModelConfig) -> Iterator[Kind]:
    """Yields each kind of layer of the model's flow, dequantizer and prior once."""
    from tfdecouple.networks.architecture import make_networks

    networks = {name: network for name, (network, _) in make_networks(config).items()}
    flows = [networks["flow"], *([networks["dequantizer"].flow] if config.has_dequantizer else [])]
    layers = []
    for flow in flows:
        for stage in flow.stages:
            shape = stage.plan.height, stage.plan.width, stage.plan.channels
            condition = flow.condition_shape(stage.plan)[1:] if flow.condition_size else None
            layers += [Kind(layer, shape, condition) for layer in stage.layers]
        if flow.whitening is not None:
            layers.append(Kind(flow.whitening, config.image_shape, (config.latent_dim,)))
        if flow.local:
            layers.append(Kind(flow.sigmoid, config.image_shape))
    if "prior_flow" in networks:
        layers.append(Kind(networks["prior_flow"].sequence[0], (config.latent_dim,)))
    yield from {kind.key: kind for kind in reversed(layers)}.values()


def measure_preset(
    preset: str, images: int, threads: int, known: Collection[str]
) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Returns the keys of a preset's kinds of layer, and the figures of the kinds whose key is not in `known`."""
    start_tensorflow(threads)
    kinds = {kind.key: kind for kind in kinds_of(load_preset(preset).model)}
    return list(kinds), {key: measure(kind, images) for key, kind in kinds.items() if key not in known}


def measure(kind: Kind, images: int) -> dict[str, float]:
    """Returns CPU seconds of a kind of layer with XLA and TensorFlow, and how far their results differ."""
    import numpy as np
    import tensorflow as tf

    layer = kind.layer
    layer.build((None, *kind.shape), None if kind.condition is None else (None, *kind.condition))
    generator = np.random.default_rng(0)
    for variable in layer.trainable_variables:
        variable.assign_add((OFF_START * generator.standard_normal(tuple(variable.shape))).astype("float32"))

    def draw(*shape: int) -> Any:
        return tf.constant(generator.standard_normal((images, *shape)), tf.float32)

    given = draw(*kind.shape), None if kind.condition is None else draw(*kind.condition)
    expected, _, tensorflow = timed_calls(layer, given, compiled=False)
    found, first, xla = timed_calls(layer, given, compiled=True)
    off = relative_differences(found, expected)
    figures = {
        "compiled_s": max(0.0, first - xla),
        "xla_s": xla,
        "tensorflow_s": tensorflow,
        "off": max(off),
    }
    if max(off) > AGREES:
        rounding = relative_differences(expected, _in_float64(layer, kind, given))
        figures["rounding"] = max(own for own, apart in zip(rounding, off, strict=True) if apart > AGREES)
    return figures


def _in_float64(layer: Any, kind: Kind, given: tuple[Any, Any]) -> list[Any]:
    """Returns the loss and the gradients of a layer that TensorFlow computes in float64."""
    import tensorflow as tf

    exact = type(layer).from_config({**layer.get_config(), "dtype": "float64"})
    exact.build((None, *kind.shape), None if kind.condition is None else (None, *kind.condition))
    for ours, theirs in zip(exact.trainable_variables, layer.trainable_variables, strict=True):
        ours.assign(tf.cast(tf.convert_to_tensor(theirs), tf.float64))
    x, z = (None if value is None else tf.cast(value, tf.float64) for value in given)
    return timed_calls(exact, (x, z), compiled=False)[0]


def timed_calls(layer: Any, given: tuple[Any, Any], compiled: bool) -> tuple[list[Any], float, float]:
    """Returns loss and gradients of a layer, CPU seconds of the first call, and of the fastest later call."""
    import keras
    import tensorflow as tf

    from tfdecouple.layers import backward_memory
    from tfdecouple.runtime.execution import Execution, jit_compiled

    traces = Execution()

    def run(x: Any, z: Any, weights: list[Any]) -> list[Any]:
        mapping = list(zip(layer.trainable_variables, weights, strict=True))
        with keras.StatelessScope(state_mapping=mapping), backward_memory("keep"), jit_compiled(compiled):
            sources = [x, *([] if z is None else [z]), *weights]
            with tf.GradientTape() as tape:
                tape.watch(sources)
                y, log_det = traces.run_layer(layer.forward_and_log_det, x, z)
                loss = tf.reduce_mean(tf.reduce_sum(tf.square(y), list(range(1, len(y.shape)))) / 2 - log_det)
            return [loss, *tape.gradient(loss, sources, unconnected_gradients="zero")]

    weights = [tf.convert_to_tensor(variable) for variable in layer.trainable_variables]
    function = tf.function(run, autograph=False)
    function.get_concrete_function(*given, weights)
    seconds = []
    for _ in range(1 + CALLS):
        begun = time.process_time()
        found = function(*given, weights)
        # Reading the loss waits until the call is done.
        found[0].numpy()
        seconds.append(time.process_time() - begun)
    return found, seconds[0], min(seconds[1:])


if __name__ == "__main__":
    sys.exit(main())
