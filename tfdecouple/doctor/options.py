"""The ways to run a model that are tried: what is changed, what it concerns, and how far it may move a gradient."""

from __future__ import annotations

import dataclasses

from tfdecouple.doctor.session import PHASES
from tfdecouple.runtime import settings


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to run the model.

    Attributes:
        name: in tables.
        settings: `NAME=VALUE` as for `--set`; what is recommended where it is the fastest.
        phases: which of `session.PHASES` it changes.
        gradient: how far the gradient of a step may be from that of float32 on a CPU, relative to its norm. What was
            measured is in docs/gpu.md, "The bounds".
        environment: variables of the process, likewise recommended.
        together: whether it concerns several devices together, and is compared and timed on all of them instead of one.
        gpu_only: whether it changes nothing on CPUs.
        in_quick: whether a quick examination tries it.
        is_calculated: whether `costs.py` knows what memory it takes.
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


# The one list to add to: numbers, times, memory and recommendation follow. The first is how everything is by default.
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
    # In TensorFlow's own word: it takes "false" here, and no 0.
    Variant("all GPU memory at once", environment={settings.ALLOW_GROWTH: "false"}, gpu_only=True),
    Variant("shared launching threads", environment={settings.THREAD_MODE: "global"}, gpu_only=True),
    Variant("shared data threads", environment={settings.DATA_THREADS: "0"}, gpu_only=True),
    Variant("no batch ahead", environment={settings.DEVICE_BATCHES: "0"}, gpu_only=True),
)
DEFAULT = VARIANTS[0]


def tried(gpu: bool, quick: bool) -> list[Variant]:
    """Returns the variants that are tried on a GPU, or on a CPU."""
    return [each for each in VARIANTS if (gpu or not each.gpu_only) and (each.in_quick or not quick)]


def by_name(name: str) -> Variant:
    """Returns the variant of this name."""
    return {each.name: each for each in VARIANTS}[name]
