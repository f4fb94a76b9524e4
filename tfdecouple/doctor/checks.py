"""The checks, in their order: the one registry of `doctor`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from tfdecouple.doctor import build, devices, exactness, exports, memory, numerics, speed
from tfdecouple.doctor.examination import Examination
from tfdecouple.doctor.finding import Finding


@dataclasses.dataclass(frozen=True)
class Check:
    """Something that is looked at.

    Attributes:
        name: for `--only` and in `doctor.json`.
        title: of its part of the report.
        run: yields what it finds; what takes TensorFlow it runs by `Examination.findings`, in processes of their own.
        alone: whether no other may run meanwhile, since it measures time or memory, or others need what it finds.
    """

    name: str
    title: str
    run: Callable[[Examination], Iterator[Finding]]
    alone: bool = False


# The first finds the devices, which the others need.
CHECKS = (
    Check("build", "what is installed and what is there", build.check, alone=True),
    Check("numerics", "the same numbers on every device, in each precision", numerics.check),
    Check("exactness", "images come back from their codes", exactness.check),
    Check("exports", "images come back through exported files", exports.check),
    Check("devices", "all devices train as one does", devices.check),
    Check("speed", "how fast it is", speed.check, alone=True),
    Check("memory", "memory of training, measured and calculated", memory.check, alone=True),
)
