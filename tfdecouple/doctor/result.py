"""The inputs and outputs of the checks of `doctor`: requests, variants of the model, tasks and results."""

from __future__ import annotations

import dataclasses
from typing import Any

# The phases of a model's work that can be timed.
PHASES = ("train", "eval", "encode", "decode", "sample")


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a check or measurement, which is one line of the report.

    Attributes:
        what: the subject of the check, in a few words.
        holds: whether a promise holds; None for a measurement that belongs to no promise.
        message: the result in words.
        advice: the remedy if the promise does not hold.
        figures: the numbers behind the message, as plain values for JSON.
    """

    what: str
    holds: bool | None
    message: str
    advice: str = ""
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A variant of training and inference that is checked and timed, such as another precision.

    Attributes:
        name: the name of the variant in tables.
        settings: the settings `NAME=VALUE`, as for `--set`, that select the variant.
        phases: the phases of `PHASES` that the variant changes.
        gradient: the largest relative distance of the gradient from the gradient in float32 on a CPU; docs/gpu.md, "The
            bounds", has the measurements.
        gpu_only: whether the variant changes nothing on CPUs.
        in_quick: whether `--quick` tries the variant.
    """

    name: str
    settings: tuple[str, ...] = ()
    phases: tuple[str, ...] = ("train",)
    gradient: float = 1e-3
    gpu_only: bool = False
    in_quick: bool = False


# All variants in the order of the report; the first is the default.
VARIANTS = (
    Variant("float32", phases=PHASES[:4], in_quick=True),
    Variant("tf32", ("training.precision=tf32",), gradient=0.01, gpu_only=True, in_quick=True),
    Variant("bfloat16 nets", ("training.precision=mixed_bfloat16",), gradient=0.1, in_quick=True),
    Variant("recompute", ("training.memory=recompute",)),
    Variant("invert", ("training.memory=invert",)),
    Variant("XLA", ("training.jit_compile=true",), phases=PHASES[:4]),
)
DEFAULT = VARIANTS[0]


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of the command `doctor`; without a preset the bundled small model is timed."""

    preset: str | None = None
    settings: tuple[str, ...] = ()
    quick: bool = False
    devices: int | None = None
    timeout: float = 900.0


@dataclasses.dataclass(frozen=True)
class Task:
    """The task of one process: to check one variant, on the devices with these names of TensorFlow."""

    request: Request
    variant: Variant = DEFAULT
    devices: tuple[str, ...] = ("CPU:0",)
