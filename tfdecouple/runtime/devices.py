"""The devices, cores and memory of this machine, and the settings of TensorFlow on GPUs and on CPUs.

Options that change a run's numbers are in its config (`training.precision`, `jit_compile`, `bytes_per_pack`); the
settings here concern the machine alone. Environment variables change them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Self

from tfdecouple.errors import ConfigError

# The first variable is TensorFlow's own.
ALLOW_GROWTH = "TF_FORCE_GPU_ALLOW_GROWTH"
GRAPPLER, SHARDS = "TFDECOUPLE_GRAPPLER", "TFDECOUPLE_SHARDS"

# Files of control groups, which limit containers, in their second and their first version: the memory in use, the
# limit, and the parts of the use with the name of the part that only caches files.
_GROUP = "/sys/fs/cgroup"
_GROUP_FILES = (
    ("memory.current", "memory.max", "memory.stat", "inactive_file"),
    ("memory/memory.usage_in_bytes", "memory/memory.limit_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
_UNLIMITED = 2**63


@dataclasses.dataclass(frozen=True)
class Settings:
    """How TensorFlow is set up in a process of ours.

    Attributes:
        grappler: whether Grappler rewrites graphs before their first run. It does on GPUs, as is TensorFlow's default.
            On CPUs it does not: on two cores the rewriting took 10 of the 29 seconds to the first training step of the
            quickstart, and each step was slower for it (58 images/s instead of 98).
        memory_growth: whether TensorFlow takes a GPU's memory as it needs it, instead of all at its start.
        device_batches: how many batches are copied to each device before their step.
        shards: in how many shards CPUs compute a batch side by side (`runtime/execution.py`); an operation has its
            share of the threads. Two threads compute two shards, which was measured. More threads compute one, so that
            an operation may take all of them, as is TensorFlow's own choice.
    """

    grappler: bool
    memory_growth: bool
    device_batches: int
    shards: int

    @classmethod
    def choose(cls, gpus: int, cores: int, environment: Mapping[str, str] | None = None) -> Self:
        """Returns the settings for a machine, as the environment changes them.

        Args:
            gpus: how many GPUs TensorFlow sees.
            cores: how many cores the process may use, or how many threads it asks for.
            environment: variables; None for those of the process.

        Raises:
            ConfigError: naming a variable and its value.
        """
        environment = os.environ if environment is None else environment
        shards = environment.get(SHARDS, "").strip() or str(cores if cores <= 2 else 1)
        if not (shards.isascii() and shards.isdigit() and int(shards) <= 1024):
            raise ConfigError(f"{SHARDS} is {environment[SHARDS]!r}; it must be a whole number from 0 to 1024")
        return cls(
            grappler=_read_switch(environment, GRAPPLER, gpus > 0),
            memory_growth=_read_switch(environment, ALLOW_GROWTH, gpus > 0),
            device_batches=2 if gpus else 1,
            shards=min(max(1, int(shards)), cores),
        )

    def apply(self) -> None:
        """Sets up TensorFlow, which must not have started a device yet; afterwards only Grappler can still be set."""
        import tensorflow as tf

        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not self.grappler})
        if ALLOW_GROWTH not in os.environ:
            for gpu in tf.config.list_physical_devices("GPU"):
                # Where a user's code has started TensorFlow, its memory stays as it is.
                try:
                    tf.config.experimental.set_memory_growth(gpu, self.memory_growth)
                except RuntimeError:
                    return


def current() -> Settings:
    """Returns the settings for this process, whether or not they have been applied."""
    import tensorflow as tf

    return Settings.choose(len(tf.config.get_visible_devices("GPU")), cores())


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_switch(environment: Mapping[str, str], name: str, default: bool) -> bool:
    # TensorFlow takes these words for its own variables.
    words = {"1": True, "true": True, "0": False, "false": False}
    text = environment.get(name, "").strip().lower()
    if not text:
        return default
    if text not in words:
        raise ConfigError(f"{name} is {environment[name]!r}; it must be 1 or 0 (or true or false)")
    return words[text]


# --- memory ---


def machine_memory() -> int:
    """Returns the bytes of memory of this machine, or of the container where it has less."""
    limits = [_UNLIMITED]
    with contextlib.suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for _, limit, _, _ in _GROUP_FILES:
        # Without a limit the file contains "max" or is missing.
        with contextlib.suppress(OSError, ValueError):
            limits.append(_read_number(f"{_GROUP}/{limit}"))
    return min(limit for limit in limits if limit > 0)


def free_memory() -> int:
    """Returns the bytes of memory that this process may still take of the machine, its container and `ulimit -v`."""
    free = [machine_memory()]
    with contextlib.suppress(OSError, ValueError, KeyError):
        free.append(1024 * _read_fields("/proc/meminfo")["MemAvailable"])
    for used, limit, parts, cache in _GROUP_FILES:
        with contextlib.suppress(OSError, ValueError, KeyError):
            # The kernel drops cached files when a process needs the memory.
            cached = _read_fields(f"{_GROUP}/{parts}")[cache]
            in_use = max(0, _read_number(f"{_GROUP}/{used}") - cached)
            free.append(_read_number(f"{_GROUP}/{limit}") - in_use)
    if (space := address_space()) < _UNLIMITED:
        with contextlib.suppress(OSError, ValueError, KeyError):
            free.append(space - 1024 * _read_fields("/proc/self/status")["VmSize"])
    return max(0, min(free))


def address_space() -> int:
    """Returns the bytes of addresses that this process may use (`ulimit -v`); 2**63 without a limit."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    except (ImportError, OSError):
        return _UNLIMITED
    return _UNLIMITED if limit == resource.RLIM_INFINITY else limit


def shown_bytes(count: int) -> str:
    """Returns a number of bytes for people.

    >>> shown_bytes(1_500_000_000), shown_bytes(4 * 10**18)
    ('1.5 GB', '4,000,000,000.0 GB')
    """
    return f"{count // 10**8 / 10:,.1f} GB"


def _read_number(path: str) -> int:
    return int(pathlib.Path(path).read_text(encoding="ascii"))


def _read_fields(path: str) -> dict[str, int]:
    """Returns the numbers of a file whose lines hold a name, a number and perhaps a unit."""
    lines = (line.replace(":", " ").split() for line in pathlib.Path(path).read_text(encoding="ascii").splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
