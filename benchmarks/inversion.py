"""Measures the error of gradients with `training.memory=invert`, compared with `training.memory=keep`.

    python benchmarks/inversion.py --alphas 0.5 0.8 1 --updates 0 500 --precisions float32 tf32 mixed_bfloat16
    python benchmarks/inversion.py --run docs/results/glow --batch 64

With `keep` the backward pass uses stored activations; with `invert` it reconstructs activations by inverting layers.
The program trains a model with `keep`, or loads the weights of --run. After each number of --updates, it computes the
gradient of a batch with `keep` and with `invert`, in each precision (TF32 is emulated without a GPU). Columns:

  error      inversion error of the worst image (`StepResult.inversion_error`)
  largest    largest relative error of a weight's gradient: the largest difference between `keep` and `invert`, divided
             by the gradient's largest absolute value
  of         name of the weight with this error
  precision  as `largest`, of the gradients with `keep` in this precision and in float32
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import make_table, measure_relative_errors, write_json  # noqa: E402
from benchmarks.model_benchmark import Benchmark, make_timed_config  # noqa: E402
from tfdecouple.config import PRECISIONS, Config, DataConfig, preset_config  # noqa: E402
from tfdecouple.runtime.devices import describe_machine  # noqa: E402
from tfdecouple.runtime.process import run_program, start_tensorflow  # noqa: E402

HEADER = ["alpha", "updates", "arithmetic", "error", "largest", "of", "precision"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="quickstart", help="preset of the model (default quickstart)")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="config value as for train.py")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.5, 0.8, 1.0], help="values of model.alpha")
    parser.add_argument("--updates", type=int, nargs="+", default=[0, 500], help="training steps before comparing")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["float32", "mixed_bfloat16"])
    parser.add_argument("--batch", type=int, default=32, help="images in a batch (default 32)")
    parser.add_argument("--run", type=pathlib.Path, help="run folder with trained weights, instead of training")
    parser.add_argument("--threads", type=int, default=2, help="number of threads (default 2)")
    parser.add_argument("--json", type=pathlib.Path, help="write the table to this file, too")
    options = parser.parse_args()
    return run_program(lambda: print_errors(options))


def print_errors(options: argparse.Namespace) -> int:
    """Trains a model for each of --alphas, or loads --run; prints a table of gradient errors; returns exit status 0."""
    start_tensorflow(options.threads)
    rows: list[list[Any]] = []
    models = [measure_run(options)] if options.run else [train_model(options, alpha) for alpha in options.alphas]
    for row in itertools.chain(*models):
        rows.append(row)
        print(make_table(HEADER, [row]).splitlines()[-1], file=sys.stderr, flush=True)
    print(make_table(HEADER, rows))
    named = [dict(zip(HEADER, row, strict=True)) for row in rows]
    write_json(options.json, {"machine": describe_machine(), "rows": named})
    return 0


def measure_run(options: argparse.Namespace) -> Iterator[list[Any]]:
    """Yields a table row of gradient errors, a list of cells, for each of --precisions, with the weights of --run."""
    from tfdecouple import load_model

    model = load_model(options.run)
    config = make_timed_config(preset_config(options.preset), options.batch)
    benchmark = make_benchmark(dataclasses.replace(config, model=model.config))
    benchmark.model.set_weights(model.get_weights())
    gradients = Gradients(benchmark, options.batch)
    for precision in options.precisions:
        yield [model.config.alpha, "trained", precision, *gradients.compare(precision)]


def train_model(options: argparse.Namespace, alpha: float) -> Iterator[list[Any]]:
    """Trains a model with this alpha; yields table rows of gradient errors, lists, for each --updates and precision."""
    preset = preset_config(options.preset)
    # The preset's learning rate replaces the tiny one of `make_timed_config`, with which the model would not learn.
    changes = [
        f"training.learning_rate={preset.training.learning_rate}",
        f"model.alpha={alpha}",
        "training.memory=keep",
    ]
    benchmark = make_benchmark(make_timed_config(preset, options.batch).override([*changes, *options.set]))
    work, gradients, done = benchmark.make_work("train", options.batch), Gradients(benchmark, options.batch), 0
    for updates in sorted(options.updates):
        for _ in range(updates - done):
            work.call()
        done = updates
        for precision in options.precisions:
            yield [alpha, updates, precision, *gradients.compare(precision)]


def make_benchmark(config: Config) -> Benchmark:
    """Returns a `Benchmark` (model, training step and data) of a config, on crops of the bundled photographs."""
    from tfdecouple.data.sources import open_source

    data = DataConfig(source="photographs", photograph_crops=2048)
    return Benchmark(config, open_source(data, config.model.image_shape))


class Gradients:
    """Computes the gradients of a model on one batch of images, with any `training.memory` and in any precision."""

    def __init__(self, benchmark: Benchmark, batch: int):
        import tensorflow as tf

        from tfdecouple import randomness
        from tfdecouple.data.batches import load_images

        self.variables = benchmark.model.trainable_variables
        self._model = benchmark.model
        config, (z_seed, u_seed) = self._model.config, (randomness.derive_seed(0, name) for name in "zu")
        images = load_images(benchmark.source, "train", batch)[0]
        z_noise = tf.random.stateless_normal([batch, config.latent_dim], z_seed)
        self._inputs = images, z_noise, randomness.draw_pixel_noise(images.shape, u_seed, config.has_dequantizer)
        self._functions: dict[tuple[str, str], Any] = {}

    def compare(self, precision: str) -> list[str]:
        """Returns the last four cells of a table row: errors of the gradients with `invert` in this precision."""
        full, _ = self._compute("keep", "float32")
        stored, _ = self._compute("keep", precision)
        inverted, error = self._compute("invert", precision)
        errors = measure_relative_errors(inverted, stored)
        name = self.variables[errors.index(max(errors))].path.partition("/")[2]
        rounding = max(measure_relative_errors(stored, full))
        return [f"{error:.1e}", f"{max(errors):.1e}", name, "" if precision == "float32" else f"{rounding:.1e}"]

    def _compute(self, mode: str, precision: str) -> tuple[list[Any], float]:
        """Returns all weights' gradients (a list of arrays) with `training.memory=mode`, and the inversion error."""
        if (mode, precision) not in self._functions:
            self._functions[mode, precision] = self._trace(mode, precision)
        with _round_products(precision):
            *gradients, error = self._functions[mode, precision]()
        return [gradient.numpy() for gradient in gradients], float(error)

    def _trace(self, mode: str, precision: str) -> Any:
        import keras
        import tensorflow as tf

        from tfdecouple.model.objective import evaluate_bound
        from tfdecouple.numerics.kernels import use_kernels
        from tfdecouple.runtime.run_mode import RunMode

        model, run_mode = self._model, RunMode(mode, precision)
        images, *noise = self._inputs

        @tf.function(autograph=False)
        def run() -> Any:
            # With `invert`, the gradient of the error probe, a dummy scalar input, is the inversion error.
            weights, probe = [tf.convert_to_tensor(variable) for variable in self.variables], tf.zeros([])
            scope = keras.StatelessScope(state_mapping=list(zip(self.variables, weights, strict=True)))
            runner = functools.partial(model.flow.runner, mode=run_mode, probe=probe)
            with scope, use_kernels(run_mode.kernels):
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch([*weights, probe])
                    bound, _ = evaluate_bound(
                        model, model.quantizer.find_bins(images), *noise, training=True, runner=runner
                    )
                    loss = tf.reduce_sum(bound.reconstruction + bound.kl + bound.dequantization)
                return tape.gradient(loss, [*weights, probe], unconnected_gradients="zero")

        return run


@contextlib.contextmanager
def _round_products(precision: str) -> Iterator[None]:
    """Makes products inside a `with` use TF32 (emulated without a GPU) if `precision` is "tf32", else float32."""
    from benchmarks.emulation import emulated_accelerator
    from tfdecouple.numerics.tf32 import full_float32, has_tf32, tensor_float_32

    with contextlib.ExitStack() as stack:
        stack.enter_context(tensor_float_32() if precision == "tf32" else full_float32())
        if precision == "tf32" and not has_tf32():
            stack.enter_context(emulated_accelerator())
        yield


if __name__ == "__main__":
    sys.exit(main())
