"""The check `speed` of `doctor`: how many images per second a model trains on, scores, encodes and decodes."""

from __future__ import annotations

import itertools
import math
import statistics
import time
import timeit
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tfdecouple.config import Config, load_preset, override
from tfdecouple.doctor.check_runner import DEFAULT, Result, Task
from tfdecouple.doctor.device_checks import load_small_config
from tfdecouple.errors import UserError
from tfdecouple.networks.architecture import PEAKS, compute_ceiling

# Batch sizes that are timed on CPUs and on GPUs; some GPUs have too little memory for the last one.
BATCHES = {"CPU": (4, 16, 64), "GPU": (1, 16, 64, 256, 1024)}
# Batch size that is timed with --quick, and batch size per device when several devices are timed together.
QUICK_BATCH = 16
# Least duration of a timed repetition in seconds, with --quick (True) and without it (False).
_SECONDS = {True: 0.3, False: 2.0}


def compare_with_ceiling(config: Config, gpu: str, rate: float) -> Iterator[Result]:
    """Yields the share of the ceiling that training at `rate` images/s reaches on a GPU with this name, if known."""
    # An H200 is an H100 with another memory: both have the same peak.
    for name in [name for name in PEAKS if name in gpu.replace("H200", "H100")]:
        ceiling = compute_ceiling(config, "train", name)
        message = f"{rate / ceiling:.1%} of {ceiling:,.0f} images/s, calculated from the published peak of the {name}"
        yield Result("train, share of the ceiling", None, message, "", {"gpu": gpu, "share": rate / ceiling})


def make_doctor_config(task: Task, batch: int = QUICK_BATCH) -> Config:
    """Returns the config that `doctor` times: that of the preset or small model, with the settings of the variant."""
    config = load_preset(task.preset) if task.preset else load_small_config()
    # With the preset's learning rate, training could diverge, because one batch is repeated.
    settings = ["training.learning_rate=1e-6", "training.micro_batches=1"]
    settings += [f"training.{name}={batch}" for name in ("batch_size", "evaluation_batch_size")]
    return override(config, [*settings, *task.settings, *task.variant.settings])


def measure_speed(task: Task) -> Iterator[Result]:
    """Yields a `Result` with the speed in images per second for each batch size and phase (training, encoding ...)."""
    import tensorflow as tf

    from tfdecouple.runtime.run_mode import RunMode

    variant, count, fastest = task.variant, len(task.devices), 0.0
    sizes = [(batch, 1) for batch in ([QUICK_BATCH] if task.quick else BATCHES[task.devices[0][:3]])]
    if count > 1 and variant == DEFAULT:
        sizes.append((QUICK_BATCH * count, count))
    for batch, devices in sizes:
        start, config = time.perf_counter(), make_doctor_config(task, batch)
        phases = _make_phases(config, devices)
        for phase in variant.phases if devices == 1 else ["train"]:
            # With training.jit_compile XLA also compiles inference, as after `load_model(run, jit_compile=True)`.
            with RunMode(jit_compile=config.training.jit_compile).apply():
                phases[phase](1)
                first = time.perf_counter() - start
                once = timeit.timeit(lambda: phases[phase](1), number=1)  # noqa: B023 - called here
                calls = max(1, math.ceil(_SECONDS[task.quick] / once))
                seconds = timeit.repeat(lambda: phases[phase](calls), number=1, repeat=3)  # noqa: B023 - called here
                rate = batch * calls / statistics.median(seconds)
            where = f"{batch} images{f' on {devices} devices' if devices > 1 else ''}"
            message = f"{rate:,.1f} images/s, the first after {first:.1f} s"
            figures = {"phase": phase, "variant": variant.name, "batch": batch, "devices": devices}
            yield Result(f"{phase}, {variant.name}, {where}", None, message, "", {**figures, "images_per_s": rate})
            fastest = max(fastest, rate) if phase == "train" and devices == 1 else fastest
            start = time.perf_counter()
    if variant == DEFAULT and (gpus := tf.config.list_physical_devices("GPU")):
        gpu = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "")
        yield from compare_with_ceiling(make_doctor_config(task), gpu, fastest)


def _make_phases(config: Config, devices: int) -> dict[str, Callable[[int], Any]]:
    """Returns {phase: function that does the phase's work as often as its argument says}, for a new model."""
    import tensorflow as tf

    from tfdecouple.training.state import TrainingState
    from tfdecouple.training.step import TrainStep
    from tfdecouple.training.workers import make_strategy

    strategy, batch = make_strategy(devices), config.training.batch_size
    with strategy.scope():
        state = TrainingState(config)
    model, take_step, steps = state.model, TrainStep(config, state, strategy), itertools.count()
    images = np.random.default_rng(0).integers(0, 256, (batch, *config.model.image_shape), np.uint8)
    labels = model.drop_unused_labels(np.arange(batch, dtype=np.int32) % max(config.model.classes, 1))
    model.initialize(images[:QUICK_BATCH], seed=0)
    state.optimizer.start_averages()
    data = tf.data.Dataset.from_tensors(images if labels is None else (images, labels)).repeat()
    batches = iter(strategy.experimental_distribute_dataset(data))
    z, v = model.encode(images, labels)[:2]
    score = tf.function(lambda: model.elbo(images, seed=0, labels=labels).bits_per_dim, autograph=False)

    def train(count: int) -> None:
        # The program waits for a GPU after the last step only, as training does between two rows of its log.
        for _ in range(count):
            result = take_step([next(batches)], next(steps))
        if not (result := result.fetch_numbers()).applied:
            raise UserError(f"a step was not applied: {result}")

    def repeat(call: Callable[[], Any]) -> Callable[[int], Any]:
        return lambda count: [call().numpy() for _ in range(count)]

    encode, decode = lambda: model.encode(images, labels).v, lambda: model.decode(z, v)
    return {"train": train, "eval": repeat(score), "encode": repeat(encode), "decode": repeat(decode)}
