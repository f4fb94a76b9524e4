"""The measurements of `doctor`: speed of training and inference, and memory of training, on this machine."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Iterator

from tfdecouple.config import Config, load_preset, override
from tfdecouple.doctor import small_model
from tfdecouple.doctor.benchmark import Benchmark, Work, make_timed_config, read_live_bytes, time_calls
from tfdecouple.doctor.result import DEFAULT, Request, Result, Task, Variant
from tfdecouple.networks.architecture import count_activation_bytes
from tfdecouple.runtime.devices import shown_bytes

# Batch sizes that are timed on CPUs and on GPUs, in this order, until the memory does not suffice.
BATCHES = {"CPU": (4, 16, 64), "GPU": (1, 16, 64, 256, 1024)}
QUICK_BATCH = 16
# Shortest duration of a repetition in seconds, with and without --quick, and number of repetitions.
_SECONDS, _REPETITIONS = {True: 0.3, False: 2.0}, 3
MIB = 2**20
# Difference in memory of the two batches that are compared, large enough to stand out from all other memory.
_DIFFERENCE = {"CPU": 256 * MIB, "GPU": 2048 * MIB}
# Largest factor between the measured and the calculated memory of an image, in either direction.
WITHIN = 4 / 3


def make_config(request: Request, batch: int | None = None, variant: Variant = DEFAULT) -> Config:
    """Returns the config that is timed: a preset, or the bundled small model, at a batch size.

    Raises:
        ConfigError: if the preset is unknown or the options are invalid.
    """
    config = load_preset(request.preset) if request.preset else small_model.load_config()
    if batch is not None:
        # The model is initialised from few images, which is fast and takes less memory than a step.
        config = override(make_timed_config(config, batch), ["training.init_images=16"])
    return override(config, [*request.settings, *variant.settings])


def measure_speed(task: Task) -> Iterator[Result]:
    """Yields a result for each batch size and phase: the number of images per second."""
    request, variant, device, count = task.request, task.variant, task.devices[0], len(task.devices)
    sizes = [(batch, 1) for batch in ([QUICK_BATCH] if request.quick else BATCHES[device[:3]])]
    if count > 1 and variant == DEFAULT:
        sizes.append((QUICK_BATCH * count, count))
    for batch, devices in sizes:
        start = time.perf_counter()
        benchmark = Benchmark(make_config(request, batch, variant), devices=devices)
        for phase in variant.phases if devices == 1 else ["train"]:
            work = benchmark.make_work(phase, batch)
            work.call()
            first = time.perf_counter() - start
            calls = max(1, math.ceil(_SECONDS[request.quick] / time_calls(work.call, 1, 1)[0][0]))
            rate = work.images * calls / statistics.median(time_calls(work.call, _REPETITIONS, calls, work.begin)[0])
            figures = {"phase": phase, "batch": batch, "devices": devices, "images_per_s": rate}
            where = f"{batch} images{f' on {devices} devices' if devices > 1 else ''}"
            message = f"{rate:,.1f} images/s, the first after {first:.1f} s"
            what = f"{phase}, {variant.name}, {where}"
            yield Result(what, None, message, figures={**figures, "variant": variant.name})
            start = time.perf_counter()


def measure_memory(task: Task) -> Iterator[Result]:
    """Yields the peak memory of training at two batch sizes, and whether their difference is as calculated."""
    from tfdecouple.runtime.execution import shard_count

    request, variant, device = task.request, task.variant, task.devices[0]
    config = make_config(request, 2, variant)
    training = config.training
    per_image = count_activation_bytes(config.model, memory=training.memory, precision=training.precision)
    # Shards of equal size leave free blocks that fit the next request; TensorFlow's allocator hands out any other block
    # whole, unless it is twice as large as the request, and counts all of it.
    shards = shard_count()
    small = shards * max(2, round(_DIFFERENCE[device[:3]] / per_image / shards))
    peaks = []
    for batch in (small, 2 * small):
        # The first model is part of a reference cycle; until it is collected, its memory would count for the second.
        gc.collect()
        before = read_live_bytes(device, "current")
        work = Benchmark(make_config(request, batch, variant)).make_work("train", batch)
        work.call()
        peaks.append(int(statistics.median(_measure_peak(device, work) for _ in range(_REPETITIONS))) - before)
        del work
        figures = {"batch": batch, "peak_bytes": peaks[-1]}
        yield Result(f"{variant.name}, {batch} images", None, f"{shown_bytes(peaks[-1])} at most", figures=figures)
    yield compare_memory(variant, (peaks[1] - peaks[0]) / small, per_image)


def _measure_peak(device: str, work: Work) -> int:
    """Returns the most bytes that TensorFlow's tensors take on a device during one call of `work`."""
    import tensorflow as tf

    tf.config.experimental.reset_memory_stats(device)
    work.call()
    return read_live_bytes(device)


def compare_memory(variant: Variant, measured: float, calculated: float) -> Result:
    """Returns a result: whether an image takes as many bytes as calculated, within a factor of `WITHIN`."""
    message = f"{measured / MIB:.1f} MiB an image, calculated {calculated / MIB:.1f}"
    figures = {"variant": variant.name, "measured_bytes": measured, "calculated_bytes": calculated}
    holds = 1 / WITHIN <= measured / calculated <= WITHIN
    advice = "the calculation does not hold here: find the largest training.micro_batches by trying, and report this"
    return Result(f"{variant.name}, an image", holds, message, advice, figures)
