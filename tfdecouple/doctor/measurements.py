"""How fast this machine trains, evaluates, encodes and decodes, and whether training takes the calculated memory."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Iterator

from tfdecouple.config import Config, load_preset, override
from tfdecouple.doctor import small_model
from tfdecouple.doctor.benchmark import Benchmark, as_timed, live_bytes, timed
from tfdecouple.doctor.result import DEFAULT, Request, Result, Task, Variant
from tfdecouple.networks.costs import activations
from tfdecouple.runtime.memory import shown_bytes

# Images a batch, on CPUs and on GPUs, until memory ends.
BATCHES = {"CPU": (4, 16, 64), "GPU": (1, 16, 64, 256, 1024)}
QUICK_BATCH = 16
# Least seconds of a measurement, of which there are `_TIMES`; the median counts.
_SECONDS, _TIMES = {True: 0.3, False: 2.0}, 3
MIB = 2**20
# Memory of the images by which two batches differ: enough to see above everything else in memory.
_DIFFERENCE = {"CPU": 256 * MIB, "GPU": 2048 * MIB}
# Bound for measured over calculated memory of an image, and for its inverse.
WITHIN = 4 / 3


def config_of(request: Request, batch: int | None = None, variant: Variant = DEFAULT) -> Config:
    """Returns the config that is timed, at a batch size: of a preset, or of the bundled small model.

    Raises:
        ConfigError: for an unknown preset, or options that do not hold.
    """
    config = load_preset(request.preset) if request.preset else small_model.load_config()
    if batch is not None:
        # To initialise from few images takes little time, and less memory than a step.
        config = override(as_timed(config, batch), ["training.init_images=16"])
    return override(config, [*request.settings, *variant.settings])


def speed(task: Task) -> Iterator[Result]:
    """Yields images/s, batch by batch and phase by phase."""
    request, variant, device = task.request, task.variant, task.devices[0]
    places = [] if variant.together else [(batch, 1) for batch in BATCHES[device[:3]]]
    if request.quick and places:
        places = [(QUICK_BATCH, 1)]
    if (count := len(task.devices)) > 1 and (variant.together or variant is DEFAULT):
        places.append((QUICK_BATCH * count, count))
    for batch, devices in places:
        begun = time.perf_counter()
        benchmark = Benchmark(config_of(request, batch, variant), devices=devices)
        for phase in variant.phases if devices == 1 else ["train"]:
            work = benchmark.work(phase, batch)
            work.call()
            first = time.perf_counter() - begun
            calls = max(1, math.ceil(_SECONDS[request.quick] / timed(work.call, 1, 1)[0][0]))
            rate = work.images * calls / statistics.median(timed(work.call, _TIMES, calls, work.begin)[0])
            figures = {
                "phase": phase,
                "batch": batch,
                "devices": devices,
                "images_per_s": rate,
                "variant": variant.name,
            }
            where = f"{batch} images" + (f" on {devices} devices" if devices > 1 else "")
            message = f"{rate:,.1f} images/s, the first after {first:.1f} s"
            yield Result(f"{phase}, {variant.name}, {where}", None, message, figures=figures)
            begun = time.perf_counter()


def takes_memory(task: Task) -> bool:
    """Returns whether there is a preset, and the variant changes its training on one device."""
    return task.request.preset is not None and "train" in task.variant.phases and not task.variant.together


def memory(task: Task) -> Iterator[Result]:
    """Yields the peak memory of training at two batches, and how their difference compares with the calculation."""
    request, variant, device = task.request, task.variant, task.devices[0]
    config = config_of(request, 2, variant)
    per_image = activations(config.model, memory=config.training.memory, precision=config.training.precision).total
    small = max(2, round(_DIFFERENCE[device[:3]] / per_image))
    peaks = []
    for batch in (small, 2 * small):
        # Models hold their memory in cycles.
        gc.collect()
        before = live_bytes(device, "current")
        work = Benchmark(config_of(request, batch, variant)).work("train", batch)
        work.call()
        work.call()
        peaks.append(live_bytes(device) - before)
        del work
        figures = {"batch": batch, "peak_bytes": peaks[-1]}
        yield Result(f"{variant.name}, {batch} images", None, f"{shown_bytes(peaks[-1])} at most", figures=figures)
    yield judge_memory(variant, (peaks[1] - peaks[0]) / small, per_image)


def judge_memory(variant: Variant, measured: float, calculated: float) -> Result:
    """Returns whether the measured bytes of an image are the calculated ones, within `WITHIN`."""
    without = "" if variant.is_calculated else " without it"
    message = f"{measured / MIB:.1f} MiB an image, calculated{without} {calculated / MIB:.1f}"
    figures = {"variant": variant.name, "measured_bytes": measured, "calculated_bytes": calculated}
    holds = 1 / WITHIN <= measured / calculated <= WITHIN if variant.is_calculated else None
    advice = "the calculation does not hold here: find the largest training.micro_batches by trying, and report this"
    return Result(f"{variant.name}, an image", holds, message, advice, figures)
