"""Measures speed and memory of a model that is set up for training; the command `doctor` and `benchmarks/` use it."""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tfdecouple.config import Config, load_preset, override
from tfdecouple.doctor.device_checks import load_small_config
from tfdecouple.doctor.report import DEFAULT, Request, Result, Task, Variant
from tfdecouple.errors import UserError
from tfdecouple.networks.architecture import count_activation_bytes, count_multiply_adds
from tfdecouple.runtime.devices import format_bytes

# Decay of the weights' moving average for presets without one, so that every benchmark includes the averaging.
EMA_DECAY = 0.999
# With this environment variable TensorFlow counts the bytes of tensors on CPUs; it makes the process slower.
COUNTING = {"TF_CPU_ALLOCATOR_USE_BFC": "1"}
# Batch sizes that `doctor` times on CPUs and on GPUs; some GPUs have too little memory for the last one.
BATCHES = {"CPU": (4, 16, 64), "GPU": (1, 16, 64, 256, 1024)}
# Batch size that `doctor --quick` times, and batch size per device when several devices are timed together.
QUICK_BATCH = 16
# Least duration of a timed repetition in seconds, with --quick (True) and without it (False).
_SECONDS = {True: 0.3, False: 2.0}
# Number of timed repetitions; their median is reported.
_REPETITIONS = 3
MIB = 2**20
# Memory is measured at two batch sizes, whose activations differ by this many bytes: far more than other memory varies.
_DIFFERENCE = {"CPU": 256 * MIB, "GPU": 2048 * MIB}
# Published peaks of GPUs (H100 SXM, A100, GeForce RTX 4090) in TFLOP/s by `training.precision`, without sparsity.
# Products of bfloat16 are summed in float32.
PEAKS = {
    "H100": {"float32": 66.9, "tf32": 494.7, "mixed_bfloat16": 989.4},
    "A100": {"float32": 19.5, "tf32": 156.0, "mixed_bfloat16": 312.0},
    "RTX 4090": {"float32": 82.6, "tf32": 82.6, "mixed_bfloat16": 165.2},
}
# A training step computes as many products as three forward passes: one forward, and two gradients of each product.
_FORWARD_PASSES = {"train": 3, "eval": 1}
# Largest allowed ratio between the measured and the calculated memory of an image, in either direction.
WITHIN = 4 / 3


def make_timed_config(config: Config, batch: int) -> Config:
    """Returns `config` changed for timing: batch size `batch`, no micro-batches, averaged weights, tiny learning rate.

    With the learning rate of `config`, training can diverge, because the benchmark repeats few images.
    """
    decay = config.training.ema_decay or EMA_DECAY
    settings = ["training.learning_rate=1e-6", "training.micro_batches=1", f"training.ema_decay={decay}"]
    settings += [f"training.{name}={batch}" for name in ("batch_size", "evaluation_batch_size")]
    return override(config, settings)


class Work(NamedTuple):
    """Work that is timed, such as a training step.

    The function `call` does the work once, on `images` images, and waits for the result. The function `begin`, if
    it is not None, starts the work and does not wait for a GPU.
    """

    call: Callable[[], Any]
    images: int
    begin: Callable[[], Any] | None = None


class Benchmark:
    """A model and a data set, set up for training on `devices` devices; `make_work` returns functions to time.

    Attributes:
        model: the model, whose data-dependent weights are initialised from images.
        source: the data set (`Source`): the argument `source`, or random images if the argument is None.
    """

    def __init__(self, config: Config, source: Any = None, devices: int = 1):
        import keras

        from tfdecouple.data import make_training_batches
        from tfdecouple.training.state import TrainingState
        from tfdecouple.training.step import TrainStep
        from tfdecouple.training.workers import make_strategy

        self.config, self.strategy = config, make_strategy(devices)
        self.source = source or _make_random_source(config)
        keras.utils.set_random_seed(config.training.seed)
        with self.strategy.scope():
            self.state = TrainingState(config)
        self.model, self.step = self.state.model, TrainStep(config, self.state, self.strategy)
        count = min(config.training.init_images, self.source.sizes["train"])
        first = make_training_batches(self.source, config.data, batch_size=count, seed=config.training.seed)
        self.model.initialize(next(iter(first))["image"], seed=config.training.seed)
        self.state.optimizer.start_averages()

    def make_work(self, phase: str, batch: int) -> Work:
        """Returns the `Work` (functions to time) of a phase, such as "train", on batches of `batch` images."""
        import numpy as np

        from tfdecouple.data import load_images, make_evaluation_batches
        from tfdecouple.metrics.bits_per_dim import BoundEvaluator
        from tfdecouple.runtime.execution import jit_compiled

        # With training.jit_compile XLA also compiles inference, as it does after `load_model(run, jit_compile=True)`.
        compiled, model = jit_compiled(self.config.training.jit_compile), self.model
        if phase == "train":
            begin = self._make_step()
            return Work(compiled(lambda: _require_applied(begin().fetch_numbers())), batch, compiled(begin))
        if phase == "eval":
            evaluator = BoundEvaluator(model, self.strategy)
            # A timed call evaluates several batches, so that the slower first batch of an evaluation weighs less.
            count = min(max(4 * batch, 64) // batch * batch, self.source.sizes["test"])
            batches = make_evaluation_batches(self.source, "test", batch_size=batch, limit=count)
            return Work(compiled(lambda: evaluator(batches, seed=0)), count)
        if phase == "sample":
            return Work(compiled(lambda: model.sample(batch, temperature=0.7, seed=0).numpy()), batch)
        images, labels = load_images(self.source, "test", batch, at_most=True)
        images, labels = (
            np.resize(images, (batch, *images.shape[1:])),
            model.drop_unused_labels(np.resize(labels, batch)),
        )
        if phase == "encode":
            return Work(compiled(lambda: model.encode(images, labels).v.numpy()), batch)
        z, v = model.encode(images, labels)[:2]
        return Work(compiled(lambda: model.decode(z, v).numpy()), batch)

    def _make_step(self) -> Callable[[], Any]:
        """Returns a function that starts a training step and returns the step's result without waiting for a GPU."""
        from tfdecouple.data import make_training_batches
        from tfdecouple.data.labels import make_training_inputs
        from tfdecouple.training.workers import make_device_input_options

        training, steps = self.config.training, itertools.count()
        options = {"batch_size": training.batch_size, "seed": training.seed, "micro_batches": training.micro_batches}
        examples = make_training_batches(self.source, self.config.data, **options)
        inputs = make_training_inputs(examples, self.source, self.config.model)
        batches = iter(self.strategy.experimental_distribute_dataset(inputs, make_device_input_options()))
        return lambda: self.step([next(batches) for _ in range(training.micro_batches)], next(steps))


def _require_applied(result: Any) -> None:
    """Raises UserError if the training step with this result left the weights unchanged, as with a NaN loss."""
    if not result.applied:
        raise UserError(f"a step was not applied: {result}")


def _make_random_source(config: Config) -> Any:
    """Returns a data set (`Source`) of random images and labels with the image shape and classes of a config."""
    import numpy as np

    from tfdecouple.data.splits import MemorySplit, Source

    shape, held_out = config.model.image_shape, 4 * config.training.batch_size
    counts = {"train": max(config.training.init_images, held_out), "validation": held_out, "test": held_out}

    def make_split(count: int) -> Any:
        images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
        labels = np.arange(count, dtype=np.int32) % max(config.model.classes, 1)
        return MemorySplit(count, "random", lambda: (images, labels))

    splits = {name: make_split(count) for name, count in counts.items()}
    return Source(name="random", title="random images", label_names=(), image_shape=shape, splits=splits)


def time_calls(
    call: Callable[[], Any], reps: int, calls: int, begin: Callable[[], Any] | None = None
) -> tuple[list[float], list[float]]:
    """Times `reps` repetitions of `calls` calls; returns two lists: wall times and CPU times of repetitions in seconds.

    If `begin` is given, which starts the work without waiting for a GPU, it is called instead of `call`, except for the
    last call of a repetition. Training, too, waits for the GPU only when it logs.
    """
    walls, cpus = [], []
    for _ in range(reps):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(calls - 1):
            (begin or call)()
        call()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return walls, cpus


def read_live_bytes(device: str, kind: str = "peak") -> int:
    """Returns the "peak" or "current" bytes of tensors on a device; a CPU needs the environment of `COUNTING`."""
    import tensorflow as tf

    return int(tf.config.experimental.get_memory_info(device)[kind])


# --- the checks of speed and memory of the command `doctor` ---


def make_doctor_config(request: Request, batch: int = QUICK_BATCH, variant: Variant = DEFAULT) -> Config:
    """Returns the config that `doctor` times: that of the preset or small model, with the settings of `variant`."""
    config = load_preset(request.preset) if request.preset else load_small_config()
    # Data-dependent initialisation from 16 images is fast and takes less memory than a training step.
    settings = ["training.init_images=16", *request.settings, *variant.settings]
    return override(make_timed_config(config, batch), settings)


def compute_ceiling(config: Config, phase: str, gpu: str) -> float | None:
    """Returns the images/s that a GPU can reach at most in a phase: its published peak over the products of an image.

    `gpu` is a name that contains one of those in `PEAKS`, and `phase` is "train" or "eval"; None for any other. Only
    training has another precision than float32.
    """
    peak = next((peaks for name, peaks in PEAKS.items() if name in gpu), None)
    if peak is None or phase not in _FORWARD_PASSES:
        return None
    precision = config.training.precision if phase == "train" else "float32"
    return 1e12 * peak[precision] / (2 * _FORWARD_PASSES[phase] * count_multiply_adds(config.model))


def read_gpu_name() -> str:
    """Returns the name of the first GPU that TensorFlow sees, such as "NVIDIA A100-SXM4-80GB", or an empty text."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "") if gpus else ""


def measure_speed(task: Task) -> Iterator[Result]:
    """Yields a `Result` with the speed in images per second for each batch size and phase (training, encoding ...)."""
    request, variant, device, count = task.request, task.variant, task.devices[0], len(task.devices)
    sizes = [(batch, 1) for batch in ([QUICK_BATCH] if request.quick else BATCHES[device[:3]])]
    if count > 1 and variant == DEFAULT:
        sizes.append((QUICK_BATCH * count, count))
    for batch, devices in sizes:
        start = time.perf_counter()
        benchmark = Benchmark(make_doctor_config(request, batch, variant), devices=devices)
        for phase in variant.phases if devices == 1 else ["train"]:
            work = benchmark.make_work(phase, batch)
            work.call()
            first = time.perf_counter() - start
            calls = max(1, math.ceil(_SECONDS[request.quick] / time_calls(work.call, 1, 1)[0][0]))
            rate = work.images * calls / statistics.median(time_calls(work.call, _REPETITIONS, calls, work.begin)[0])
            where = f"{batch} images{f' on {devices} devices' if devices > 1 else ''}"
            message = f"{rate:,.1f} images/s, the first after {first:.1f} s"
            figures = {"phase": phase, "variant": variant.name, "batch": batch, "devices": devices}
            figures["images_per_s"] = rate
            if ceiling := compute_ceiling(benchmark.config, phase, read_gpu_name()):
                figures["share_of_ceiling"] = rate / (devices * ceiling)
                message += f", {figures['share_of_ceiling']:.1%} of the GPU's ceiling"
            yield Result(f"{phase}, {variant.name}, {where}", None, message, "", figures)
            start = time.perf_counter()


def measure_memory(task: Task) -> Iterator[Result]:
    """Yields a `Result` on training's peak memory for each of two batch sizes, then one on the bytes per image."""
    from tfdecouple.runtime.execution import count_shards

    request, variant, device = task.request, task.variant, task.devices[0]
    config = make_doctor_config(request, 2, variant)
    training = config.training
    per_image = count_activation_bytes(config.model, memory=training.memory, precision=training.precision)
    # Both batch sizes are multiples of the number of shards (parts of a batch), so that memory freed by one shard fits
    # another exactly. Otherwise TensorFlow's allocator hands out, and counts, blocks of up to twice the requested size.
    shards = count_shards()
    small = shards * max(2, round(_DIFFERENCE[device[:3]] / per_image / shards))
    peaks = []
    for batch in (small, 2 * small):
        # Without this call, reference cycles would keep the first model in memory while the second is measured.
        gc.collect()
        before = read_live_bytes(device, "current")
        work = Benchmark(make_doctor_config(request, batch, variant)).make_work("train", batch)
        work.call()
        peaks.append(int(statistics.median(_measure_peak(device, work) for _ in range(_REPETITIONS))) - before)
        del work
        figures = {"batch": batch, "peak_bytes": peaks[-1]}
        yield Result(f"{variant.name}, {batch} images", None, f"{format_bytes(peaks[-1])} at most", "", figures)
    yield compare_memory(variant, (peaks[1] - peaks[0]) / small, per_image)


def _measure_peak(device: str, work: Work) -> int:
    """Does `work` once, and returns the largest number of bytes that tensors took on a device meanwhile."""
    import tensorflow as tf

    tf.config.experimental.reset_memory_stats(device)
    work.call()
    return read_live_bytes(device)


def compare_memory(variant: Variant, measured: float, calculated: float) -> Result:
    """Returns a `Result`: whether `measured` and `calculated` bytes per image differ at most by the factor `WITHIN`."""
    message = f"{measured / MIB:.1f} MiB an image, calculated {calculated / MIB:.1f}"
    figures = {"variant": variant.name, "measured_bytes": measured, "calculated_bytes": calculated}
    holds = 1 / WITHIN <= measured / calculated <= WITHIN
    advice = "the calculation does not hold here: find the largest training.micro_batches by trying, and report this"
    return Result(f"{variant.name}, an image", holds, message, advice, figures)
