"""The inputs and outputs of the checks of `doctor`: requests, variants of the model, tasks and results."""

from __future__ import annotations

import dataclasses
from typing import Any

# The phases of a model that can be timed.
PHASES = ("train", "eval", "encode", "decode", "sample")


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the report.

    Attributes:
        what: the thing that was checked, in a few words.
        holds: whether a promise holds; None for a measurement that belongs to no promise.
        message: the result in words.
        advice: the remedy where the promise does not hold.
        figures: the numbers behind the message, plain JSON.
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
        name: the name in tables.
        settings: `NAME=VALUE` as for `--set`, recommended where the variant is the fastest.
        phases: the phases that the variant changes.
        gradient: the largest distance of the gradient from that of float32 on a CPU, relative to its norm; docs/gpu.md,
            "The bounds", has the measurements.
        gpu_only: whether the variant changes nothing on CPUs.
        in_quick: whether `--quick` tries the variant.
        is_calculated: whether `networks/costs.py` calculates the memory of the variant.
    """

    name: str
    settings: tuple[str, ...] = ()
    phases: tuple[str, ...] = ("train",)
    gradient: float = 1e-3
    gpu_only: bool = False
    in_quick: bool = False
    is_calculated: bool = True


# The first is the default. The numbers, times, memory and recommendation of the report follow this list.
VARIANTS = (
    Variant("float32", phases=PHASES[:4], in_quick=True),
    Variant("tf32", ("training.precision=tf32",), gradient=0.01, gpu_only=True, in_quick=True),
    Variant("bfloat16 nets", ("training.precision=mixed_bfloat16",), gradient=0.1, in_quick=True),
    Variant("recompute", ("training.memory=recompute",)),
    Variant("invert", ("training.memory=invert",)),
    Variant("XLA", ("training.jit_compile=true",), phases=PHASES[:4], is_calculated=False),
)
DEFAULT = VARIANTS[0]


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of the command.

    Attributes:
        preset: the preset that is timed; None for the bundled small model, whose memory is not measured.
        settings: `NAME=VALUE` that change the preset.
        quick: whether only checks of about a minute run.
        devices: the number of devices that train; None for all GPUs, or one CPU.
        timeout: seconds after which the process of a check is ended.
    """

    preset: str | None = None
    settings: tuple[str, ...] = ()
    quick: bool = False
    devices: int | None = None
    timeout: float = 900.0


@dataclasses.dataclass(frozen=True)
class Task:
    """The work of one process: a check of one variant.

    Attributes:
        request: the options of the command.
        variant: the way to run the model.
        devices: the devices that compute, by TensorFlow's names, such as "GPU:0".
    """

    request: Request
    variant: Variant = DEFAULT
    devices: tuple[str, ...] = ("CPU:0",)
