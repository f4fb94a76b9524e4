"""How fast this machine trains, evaluates, encodes and decodes, beside its limit of matrix products and of dispatch."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tfdecouple.config import Config, load_preset, override
from tfdecouple.costs import multiply_adds
from tfdecouple.doctor import trained
from tfdecouple.doctor.finding import Finding
from tfdecouple.doctor.options import DEFAULT, Variant
from tfdecouple.doctor.session import CROPS, Session, as_timed, timed

if TYPE_CHECKING:
    from tfdecouple.doctor.examination import Examination

# Images a batch, on CPUs and on GPUs; larger ones until memory ends.
BATCHES = {"CPU": (4, 16, 64), "GPU": (1, 16, 64, 256, 1024)}
QUICK_BATCH = 16
# Least seconds of a measurement, of which there are `_TIMES`; the median counts.
_SECONDS, _TIMES = {True: 0.3, False: 2.0}, 3
# Of the calls for a limit.
_MOST_SECONDS = 1.0
# Side of the square matrices of the limit; operations in a chain of the dispatch rate.
_SIDE = {"CPU": 2048, "GPU": 8192}
_CHAIN = 1000
# Forward and backward passes in a step of training, in the work of a forward pass.
_PASSES = {"train": 3}


def config_of(preset: str | None, settings: list[str]) -> Config:
    """Returns the config that is timed: of a preset, or of the small model that comes along.

    Raises:
        ConfigError: for an unknown preset, or options that do not hold.
    """
    return override(load_preset(preset) if preset else trained.CONFIG, settings)


def timed_config(preset: str | None, settings: list[str], batch: int, *more: str) -> Config:
    """Returns the config of a measurement: as `config_of`, with so many images a batch, soon begun."""
    few = [f"data.photograph_crops={max(CROPS, batch)}", "training.init_images=64"]
    return override(as_timed(config_of(preset, []), batch), [*few, *settings, *more])


def limits(device: str) -> Iterator[dict[str, Any]]:
    """Yields how much arithmetic a device does in a second, by type, and how many operations it can be given."""
    import tensorflow as tf

    from tfdecouple.runtime.shards import shard_count
    from tfdecouple.runtime.tf32 import full_float32, tensor_float_32

    # An operation may have one thread: as many products side by side as a batch has shards keep all cores busy.
    count = shard_count()
    products = tf.function(lambda *matrices: tf.add_n([tf.matmul(a, a)[0, 0] for a in matrices]), autograph=False)

    def multiply(matrices: list[tf.Tensor]) -> float:
        # Read back, or a GPU would only be told of it.
        return float(products(*matrices))

    side = _SIDE[device[:3]]
    kinds = {"float32": (tf.float32, full_float32), "bfloat16": (tf.bfloat16, full_float32)}
    if device.startswith("GPU"):
        kinds["tf32"] = (tf.float32, tensor_float_32)
    yield {"doing": f"products of {side} x {side} matrices on {device}"}
    rates = {}
    for name, (dtype, precision) in kinds.items():
        with tf.device(device), precision():
            drawn = [tf.random.stateless_normal([side, side], [1, number]) for number in range(count)]
            matrices = [tf.cast(a, dtype) for a in drawn]
            rates[name] = count * 2 * side**3 / best_seconds(functools.partial(multiply, matrices))
    yield {"device": device, "flops": rates}
    yield {"doing": f"operations a second on {device}"}
    with tf.device(device):
        x = tf.ones([8])

        @tf.function(autograph=False)
        def chain(x: tf.Tensor) -> tf.Tensor:
            for _ in range(_CHAIN):
                x = tf.sin(x)
            return x

        def singly() -> Any:
            y = x
            for _ in range(_CHAIN):
                y = tf.sin(y)
            return y.numpy()

        calls: dict[str, Callable[[], Any]] = {"in_graph": lambda: chain(x).numpy(), "eager": singly}
        yield {"device": device, "dispatch": {name: _CHAIN / best_seconds(call) for name, call in calls.items()}}


def best_seconds(call: Callable[[], Any]) -> float:
    """Returns the least time of some calls, of fewer where each takes long."""
    call()
    walls = timed(call, 1, 1)[0]
    while len(walls) < 5 and sum(walls) < _MOST_SECONDS:
        walls += timed(call, 1, 1)[0]
    return min(walls)


def measure(
    preset: str | None,
    settings: list[str],
    phases: list[str],
    batch: int,
    devices: int,
    seconds: float,
) -> Iterator[dict[str, Any]]:
    """Yields how many images a second a model does, phase by phase."""
    begun = time.perf_counter()
    session = Session(timed_config(preset, settings, batch), devices=devices)
    for phase in phases:
        yield {"doing": f"{phase}, {batch} images"}
        work = session.work(phase, batch)
        work.call()
        first = time.perf_counter() - begun
        second = timed(work.call, 1, 1)[0][0]
        calls = max(1, math.ceil(seconds / second))
        walls, _ = timed(work.call, _TIMES, calls, work.begin)
        rate = work.images * calls / statistics.median(walls)
        yield {"phase": phase, "batch": batch, "devices": devices, "images_per_s": rate, "first_s": round(first, 1)}
        begun = time.perf_counter()


def judge_limits(found: dict[str, Any]) -> Finding:
    """Tells the limits of a device."""
    device = found["device"]
    if "flops" in found:
        said = ", ".join(f"{value / 1e9:,.0f} GFLOP/s in {name}" for name, value in found["flops"].items())
        return Finding(f"{device}, matrix products", None, said, figures=found)
    rates = found["dispatch"]
    said = f"{rates['in_graph']:,.0f} operations/s in a graph, {rates['eager']:,.0f} one by one"
    return Finding(f"{device}, dispatch", None, said, figures=found)


def check(examination: Examination) -> Iterator[Finding]:
    """Measures the limits, then each variant over the batches."""
    request, device = examination.request, examination.devices[0]
    flops: dict[str, float] = {}
    target, what = "tfdecouple.doctor.speed:limits", f"limits of {device}"
    for finding in examination.findings(target, judge_limits, what, {"device": device}, promise=False):
        flops.update(finding.figures.get("flops", {}))
        yield finding
    work = multiply_adds(config_of(request.preset, list(request.settings)).model)
    for batch in (QUICK_BATCH,) if request.quick else BATCHES[device[:3]]:
        for variant in examination.variants(device):
            if not variant.together:
                yield from _times(examination, variant, batch, 1, flops, work)
    if (count := len(examination.devices)) > 1:
        for variant in examination.variants(device):
            if variant.together or variant is DEFAULT:
                yield from _times(examination, variant, QUICK_BATCH * count, count, flops, work, phases=["train"])


def _times(
    examination: Examination,
    variant: Variant,
    batch: int,
    devices: int,
    flops: dict[str, float],
    work: int,
    phases: list[str] | None = None,
) -> Iterator[Finding]:
    request = examination.request
    where = f"{batch} images" + (f" on {devices} devices" if devices > 1 else "")

    def judge(found: dict[str, Any]) -> Finding:
        phase, rate = found["phase"], found["images_per_s"]
        figures = {**found, "variant": variant.name, "settings": list(variant.settings)}
        said = f"{rate:,.1f} images/s, the first after {found['first_s']:.1f} s"
        if limit := flops.get("float32"):
            # A multiply-add is two operations.
            figures["of_limit"] = rate * 2 * work * _PASSES.get(phase, 1) / (limit * devices)
            said += f", {figures['of_limit']:.0%} of the float32 limit"
        return Finding(f"{phase}, {variant.name}, {where}", None, said, figures=figures)

    arguments = {
        "preset": request.preset,
        "settings": [*request.settings, *variant.settings],
        "phases": phases or list(variant.phases),
        "batch": batch,
        "devices": devices,
        "seconds": _SECONDS[request.quick],
    }
    target, what = "tfdecouple.doctor.speed:measure", f"{variant.name}, {where}"
    # The largest batches need all memory that there is.
    alone, environment = not request.quick, variant.environment
    yield from examination.findings(target, judge, what, arguments, promise=False, environment=environment, alone=alone)
