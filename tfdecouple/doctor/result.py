"""What a check of `doctor` is given, and what it returns: requests, variants of the model, results."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfdecouple.runtime import settings

# What can be timed of a model; each takes a number of images.
PHASES = ("train", "eval", "encode", "decode", "sample")


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the report.

    Attributes:
        what: the thing that was checked, in a few words.
        holds: whether a promise holds; None for a measurement that belongs to no promise.
        message: the result in words.
        advice: what to do where the promise does not hold.
        figures: the numbers behind it, plain JSON.
    """

    what: str
    holds: bool | None
    message: str
    advice: str = ""
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses a failure without advice."""
        if self.holds is False and not self.advice:
            raise ValueError(f"the result {self.what!r} does not hold and has no advice")


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to run the model.

    Attributes:
        name: for tables.
        settings: `NAME=VALUE` as for `--set`, recommended where the variant is the fastest.
        phases: the phases that it changes.
        gradient: bound for the gradient's distance from float32 on a CPU, relative to its norm; docs/gpu.md, "The
            bounds", has the measurements.
        environment: variables of the process, recommended likewise.
        together: whether it concerns several devices together, and is compared and timed on all of them.
        gpu_only: whether it changes nothing on CPUs.
        in_quick: whether `--quick` tries it.
        is_calculated: whether `costs.py` knows the memory that it takes.
    """

    name: str
    settings: tuple[str, ...] = ()
    phases: tuple[str, ...] = ("train",)
    gradient: float = 1e-3
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    together: bool = False
    gpu_only: bool = False
    in_quick: bool = False
    is_calculated: bool = True


# The first is the default. Numbers, times, memory and recommendation follow from this list.
VARIANTS = (
    Variant("float32", phases=PHASES[:4], in_quick=True),
    Variant("tf32", ("training.precision=tf32",), gradient=0.01, gpu_only=True, in_quick=True),
    Variant("bfloat16 nets", ("training.precision=mixed_bfloat16",), gradient=0.1, in_quick=True),
    Variant("recompute", ("training.memory=recompute",)),
    Variant("invert", ("training.memory=invert",)),
    Variant("XLA", ("training.jit_compile=true",), phases=PHASES[:4], is_calculated=False),
    Variant("one pack", ("training.bytes_per_pack=0",), together=True, gpu_only=True),
    Variant("Grappler off", environment={settings.GRAPPLER: "0"}, phases=PHASES[:4], gpu_only=True),
    Variant("NHWC", environment={settings.LAYOUT: "nhwc"}, phases=PHASES[:4], gpu_only=True),
    # TensorFlow accepts "false" here, and not 0.
    Variant("all GPU memory at once", environment={settings.ALLOW_GROWTH: "false"}, gpu_only=True),
    Variant("shared launching threads", environment={settings.THREAD_MODE: "global"}, gpu_only=True),
    Variant("shared data threads", environment={settings.DATA_THREADS: "0"}, gpu_only=True),
    Variant("no batch ahead", environment={settings.DEVICE_BATCHES: "0"}, gpu_only=True),
)
DEFAULT = VARIANTS[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to check.

    Attributes:
        preset: the model that is timed; None for the bundled small one, whose memory is not measured.
        settings: `NAME=VALUE` that change the preset.
        quick: whether only what takes about a minute is tried.
        devices: how many devices train; None for all GPUs, or one CPU.
        timeout: seconds after which a check's process is ended.
    """

    preset: str | None = None
    settings: tuple[str, ...] = ()
    quick: bool = False
    devices: int | None = None
    timeout: float = 900.0


@dataclasses.dataclass(frozen=True)
class Task:
    """What one process does: a check of one variant.

    Attributes:
        request: as the user made it.
        variant: the way to run the model.
        devices: the devices that compute, by TensorFlow's names, such as "GPU:0".
    """

    request: Request
    variant: Variant = DEFAULT
    devices: tuple[str, ...] = ("CPU:0",)
