"""Whether a step of training takes the memory that is calculated for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tfdecouple.costs import activations, state_bytes
from tfdecouple.doctor.finding import Finding
from tfdecouple.doctor.options import Variant
from tfdecouple.doctor.session import COUNTING, Session, peak_live_bytes
from tfdecouple.doctor.speed import config_of, timed_config
from tfdecouple.parameters import count_parameters
from tfdecouple.runtime.memory import shown_bytes

if TYPE_CHECKING:
    from tfdecouple.doctor.examination import Examination

MIB = 2**20
# What the larger of two batches needs beyond the smaller, about: enough to see above all else that is held.
_DIFFERENCE_MIB = {"CPU": 256, "GPU": 2048}
# Measured over calculated: by how much calculation may be off without a warning.
WITHIN = 4 / 3


def measure(preset: str | None, settings: list[str], batch: int) -> Iterator[dict[str, Any]]:
    """Yields the most memory that TensorFlow's tensors had in two steps of training, in bytes, on GPU or CPU."""
    import tensorflow as tf

    yield {"doing": f"memory of {batch} images"}
    # Few to start from: what the start holds must not hide what a step holds.
    session = Session(timed_config(preset, settings, batch, "training.init_images=16"))
    device = "GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0"
    if device == "GPU:0":
        tf.config.experimental.reset_memory_stats(device)
    work = session.work("train", batch)
    for _ in range(2):
        work.call()
    yield {"batch": batch, "peak_bytes": peak_live_bytes(device)}


def check(examination: Examination) -> Iterator[Finding]:
    """Compares what is measured with what is calculated, variant by variant of the preset."""
    request = examination.request
    if request.preset is None:
        yield Finding("memory of training", None, "measured with --preset NAME")
        return
    for variant in examination.variants(examination.devices[0]):
        if "train" in variant.phases:
            yield from _compare(examination, variant)


def _compare(examination: Examination, variant: Variant) -> Iterator[Finding]:
    request = examination.request
    settings = [*request.settings, *variant.settings]
    config = config_of(request.preset, settings)
    training = config.training
    per_image = activations(config.model, memory=training.memory, precision=training.precision).total
    small = max(2, round(_DIFFERENCE_MIB[examination.devices[0][:3]] * MIB / per_image))
    peaks: dict[int, int] = {}

    def told(found: dict[str, Any]) -> Finding:
        peaks[found["batch"]] = found["peak_bytes"]
        what = f"{variant.name}, {found['batch']} images"
        return Finding(what, None, f"{shown_bytes(found['peak_bytes'])} at most", figures=found)

    for batch in (small, 2 * small):
        arguments = {"preset": request.preset, "settings": settings, "batch": batch}
        what = f"{variant.name}, {batch} images"
        target = "tfdecouple.doctor.memory:measure"
        yield from examination.findings(
            target, told, what, arguments, promise=False, environment={**COUNTING, **variant.environment}, alone=True
        )
    if len(peaks) == 2:
        measured = (peaks[2 * small] - peaks[small]) / small
        parameters = count_parameters(config.model)["total"]
        state = state_bytes(parameters, averages=training.ema_decay > 0, micro_batches=training.passes)
        yield judge(variant, measured, per_image, state)


def judge(variant: Variant, measured: float, calculated: float, state: int) -> Finding:
    """Says how the memory of an image that was measured stands to that which is calculated, both in bytes.

    Of a variant that the calculation knows nothing of nothing is promised.
    """
    ratio = measured / calculated
    without = "" if variant.is_calculated else " without it"
    said = f"{measured / MIB:.1f} MiB an image, calculated{without} {calculated / MIB:.1f}, beside {shown_bytes(state)}"
    figures = {
        "variant": variant.name,
        "settings": list(variant.settings),
        "measured_bytes": measured,
        "calculated_bytes": calculated,
        "state_bytes": state,
    }
    if not variant.is_calculated or 1 / WITHIN <= ratio <= WITHIN:
        return Finding(f"{variant.name}, an image", variant.is_calculated or None, said, figures=figures)
    advice = "the calculation does not hold here: find the largest training.micro_batches by trying, and report this"
    return Finding(f"{variant.name}, an image", False, said, advice, figures)
