"""The options that are tried: what is changed, and what of the speed it concerns."""

from __future__ import annotations

import dataclasses

from tfdecouple.doctor.session import PHASES


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to run the model.

    Attributes:
        name: in tables.
        settings: `NAME=VALUE` as for `--set`; what is recommended where it is the fastest.
        phases: which of `session.PHASES` it changes.
        environment: variables of the process, likewise.
        gpu_only: whether it changes nothing on CPUs.
        in_quick: whether a quick examination tries it.
    """

    name: str
    settings: tuple[str, ...] = ()
    phases: tuple[str, ...] = ("train",)
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    gpu_only: bool = False
    in_quick: bool = False


# The one list to add to: times, numbers and the recommendation follow. The first is how everything is by default.
VARIANTS = (
    Variant("float32", phases=PHASES[:4], in_quick=True),
    Variant("tf32", ("training.precision=tf32",), gpu_only=True, in_quick=True),
    Variant("bfloat16 nets", ("training.precision=mixed_bfloat16",), in_quick=True),
    Variant("remat", ("training.remat=true",)),
)


def tried(on_gpu: bool, quick: bool) -> list[Variant]:
    """Returns the variants that are tried on a kind of device."""
    return [each for each in VARIANTS if (on_gpu or not each.gpu_only) and (each.in_quick or not quick)]
