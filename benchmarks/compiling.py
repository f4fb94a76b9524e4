"""Measures, for `training.jit_compile`, how long XLA compiles the presets' layers, and how far XLA's results differ.

    python benchmarks/compiling.py --docs docs/scaling.md --json compiling.json
    python benchmarks/compiling.py --presets quickstart cifar10 --images 16

All layers of one class, config and shape are one kind of layer. For each kind of layer in the flow, the dequantizer and
the prior, the program makes one layer, perturbs its weights, and runs it forward and backward on random inputs: once by
TensorFlow, and once compiled by XLA. A kind that several presets have is measured once. Each preset
is measured in a new process, because XLA fails after some two hundred compilations in a process. Columns of the table:

  compiling     CPU seconds of the first call minus those of a later call, forward and backward, summed over the kinds
  slowest kind  CPU seconds, as in `compiling`, of the kind of layer that takes longest
  step          CPU seconds of a later call (best of three), summed over the kinds: XLA's divided by TensorFlow's
  difference    largest difference between XLA and TensorFlow in the loss or a gradient, divided by the largest absolute
                value of this loss or gradient
  rounding      like `difference`, but of TensorFlow's float32 and float64, where `difference` is above 1e-5

The loss is the mean, over the batch, of half the sum of squared outputs minus the log-determinant.
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
from collections.abc import Collection, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import model_benchmark  # noqa: E402
from benchmarks.common import make_table, measure_relative_errors, update_page, write_json  # noqa: E402
from tfdecouple.config import ModelConfig, preset_config, preset_names  # noqa: E402
from tfdecouple.runtime.devices import describe_machine  # noqa: E402
from tfdecouple.runtime.process import run_program, start_tensorflow  # noqa: E402

# Standard deviation of the noise that is added to initial weights; without noise, couplings would be the identity.
NOISE = 0.02
# If XLA and TensorFlow differ by more than this, relatively, TensorFlow's float32 is also compared with its float64.
EXPECTED_ROUNDING = 1e-5
# Number of timed calls of a layer after the first call, which compiles the layer.
CALLS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", metavar="PRESET", help="presets to measure (default all)")
    parser.add_argument("--images", type=int, default=1, help="images in a batch (default 1)")
    parser.add_argument("--threads", type=int, default=2, help="number of threads (default 2)")
    parser.add_argument("--json", type=pathlib.Path, help="write all measurements to this file")
    parser.add_argument("--docs", type=pathlib.Path, help="put the table into this Markdown file")
    options = parser.parse_args()
    return run_program(lambda: measure_presets(options))


def measure_presets(options: argparse.Namespace) -> int:
    """Times XLA and TensorFlow on the layers of each preset in --presets, prints a table, and returns exit status 0."""
    presets = options.presets or preset_names()
    for preset in presets:
        preset_config(preset)  # An unknown name raises an error here, before the first preset is measured.
    kinds: dict[str, dict[str, float]] = {}
    rows: dict[str, dict[str, Any]] = {}
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        for preset in presets:
            keys, new = pool.submit(measure_preset, preset, options.images, options.threads, [*kinds]).result()
            kinds |= new
            of_preset = [kinds[key] for key in keys]
            rows[preset] = {
                "kinds": len(keys),
                "compiled_s": sum(kind["compiled_s"] for kind in of_preset),
                "slowest_s": max(kind["compiled_s"] for kind in of_preset),
                "step": sum(kind["xla_s"] for kind in of_preset) / sum(kind["tensorflow_s"] for kind in of_preset),
                "off": max(kind["off"] for kind in of_preset),
                "rounding": max((kind["rounding"] for kind in of_preset if "rounding" in kind), default=None),
            }
            print(f"{preset}: {json.dumps(rows[preset])}", flush=True)
            measured = {"machine": describe_machine(), "images": options.images, "kinds": kinds, "presets": rows}
            write_json(options.json, measured)
    table = render_presets(rows)
    print(table)
    if options.docs:
        update_page(options.docs, {"compiling": table})
    return 0


def render_presets(presets: dict[str, dict[str, Any]]) -> str:
    """Returns a Markdown table of XLA's compilation times and relative errors, from {preset: {measurement: value}}."""
    rows = [
        [name, row["kinds"], row["compiled_s"], row["slowest_s"], row["step"]]
        + ["" if row[column] is None else f"{row[column]:.1e}" for column in ("off", "rounding")]
        for name, row in presets.items()
    ]
    return make_table(
        ["preset", "kinds of layer", "compiling, s", "slowest kind, s", "step", "difference", "rounding"], rows
    )


@dataclasses.dataclass(frozen=True)
class Kind:
    """A layer without weights that stands for all layers with the same class, config and shapes.

    `shape` and `condition` are the shapes, without the batch, of the input and of what conditions the layer, if any.
    """

    layer: Any
    shape: tuple[int, ...]
    condition: tuple[int, ...] | None = None

    @property
    def key(self) -> str:
        """A text of this layer's class, config and shapes; two layers with equal texts need only one measurement."""
        config = {name: value for name, value in self.layer.get_config().items() if name != "name"}
        return f"{type(self.layer).__name__} {json.dumps(config, sort_keys=True)} {list(self.shape)} {self.condition}"


def list_layer_kinds(config: ModelConfig) -> Iterator[Kind]:
    """Yields a `Kind` for each distinct layer (class, config, shapes) in a model's flow, dequantizer and prior."""
    from tfdecouple.networks.architecture import make_networks

    networks = {name: network for name, (network, _) in make_networks(config).items()}
    flows = [networks["flow"], *([networks["dequantizer"].flow] if config.has_dequantizer else [])]
    layers = []
    for flow in flows:
        for stage in flow.stages:
            shape = stage.plan.height, stage.plan.width, stage.plan.channels
            condition = flow.compute_condition_shape(stage.plan)[1:] if flow.condition_size else None
            layers += [Kind(layer, shape, condition) for layer in stage.layers]
        if flow.whitening is not None:
            layers.append(Kind(flow.whitening, config.image_shape, (config.latent_dim,)))
        if flow.local:
            layers.append(Kind(flow.sigmoid, config.image_shape))
    if "prior_flow" in networks:
        layers.append(Kind(networks["prior_flow"].sequence[0], (config.latent_dim,)))
    yield from {kind.key: kind for kind in reversed(layers)}.values()


def measure_preset(
    preset: str, images: int, threads: int, measured: Collection[str]
) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Times a preset's distinct layers, except keys in `measured`; returns all keys, and {key: times} of the rest."""
    start_tensorflow(threads)
    kinds = {kind.key: kind for kind in list_layer_kinds(preset_config(preset).model)}
    return list(kinds), {key: measure_kind(kind, images) for key, kind in kinds.items() if key not in measured}


def measure_kind(kind: Kind, images: int) -> dict[str, float]:
    """Times a layer with and without XLA on `images` random inputs; returns a dict: CPU seconds, error of XLA."""
    import numpy as np
    import tensorflow as tf

    layer = kind.layer
    layer.build((None, *kind.shape), None if kind.condition is None else (None, *kind.condition))
    generator = np.random.default_rng(0)
    for variable in layer.trainable_variables:
        variable.assign_add((NOISE * generator.standard_normal(tuple(variable.shape))).astype("float32"))

    def draw(*shape: int) -> Any:
        return tf.constant(generator.standard_normal((images, *shape)), tf.float32)

    inputs = draw(*kind.shape), None if kind.condition is None else draw(*kind.condition)
    expected, _, tensorflow_s = time_calls(layer, inputs, compiled=False)
    results, first_s, xla_s = time_calls(layer, inputs, compiled=True)
    off = measure_relative_errors(results, expected)
    row = {"compiled_s": max(0.0, first_s - xla_s), "xla_s": xla_s, "tensorflow_s": tensorflow_s, "off": max(off)}
    if max(off) > EXPECTED_ROUNDING:
        rounding = measure_relative_errors(expected, _compute_in_float64(layer, kind, inputs))
        row["rounding"] = max(error for error, by_xla in zip(rounding, off, strict=True) if by_xla > EXPECTED_ROUNDING)
    return row


def _compute_in_float64(layer: Any, kind: Kind, inputs: tuple[Any, Any]) -> list[Any]:
    """Returns the list [loss, *gradients] of a layer, computed by TensorFlow in float64 from the float32 weights."""
    import tensorflow as tf

    exact = type(layer).from_config({**layer.get_config(), "dtype": "float64"})
    exact.build((None, *kind.shape), None if kind.condition is None else (None, *kind.condition))
    for ours, theirs in zip(exact.trainable_variables, layer.trainable_variables, strict=True):
        ours.assign(tf.cast(tf.convert_to_tensor(theirs), tf.float64))
    x, z = (None if value is None else tf.cast(value, tf.float64) for value in inputs)
    return time_calls(exact, (x, z), compiled=False)[0]


def time_calls(layer: Any, inputs: tuple[Any, Any], compiled: bool) -> tuple[list[Any], float, float]:
    """Runs a layer forward and backward; returns [loss, *gradients], CPU seconds of first and fastest later call."""
    import keras
    import tensorflow as tf

    from tfdecouple.runtime.execution import Traced
    from tfdecouple.runtime.run_mode import RunMode

    layer.runner = Traced(RunMode("keep", jit_compile=compiled))

    def run(x: Any, z: Any, weights: list[Any]) -> list[Any]:
        mapping = list(zip(layer.trainable_variables, weights, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            sources = [x, *([] if z is None else [z]), *weights]
            with tf.GradientTape() as tape:
                tape.watch(sources)
                y, log_det = layer.forward_and_log_det(x, z)
                loss = tf.reduce_mean(tf.reduce_sum(tf.square(y), list(range(1, len(y.shape)))) / 2 - log_det)
            return [loss, *tape.gradient(loss, sources, unconnected_gradients="zero")]

    weights = [tf.convert_to_tensor(variable) for variable in layer.trainable_variables]
    function = tf.function(run, autograph=False)
    function.get_concrete_function(*inputs, weights)
    results: list[Any] = []

    def call() -> None:
        results[:] = function(*inputs, weights)
        # The loss is copied to the host, because this waits until the call has computed all results.
        results[0].numpy()

    _, seconds = model_benchmark.time_calls(call, reps=1 + CALLS, calls=1)
    return results, seconds[0], min(seconds[1:])


if __name__ == "__main__":
    sys.exit(main())
