"""The devices, cores and memory of this machine, and the settings of TensorFlow for them.

The settings here depend on the machine, and environment variables change them. Options that change the numbers of a
run are in the run's config (`training.precision`, `jit_compile`, `bytes_per_pack`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Self

from tfdecouple.errors import ConfigError

# Names of environment variables; the first is TensorFlow's own.
ALLOW_GROWTH = "TF_FORCE_GPU_ALLOW_GROWTH"
GRAPPLER, SHARDS = "TFDECOUPLE_GRAPPLER", "TFDECOUPLE_SHARDS"

# Files of control groups (versions 2 and 1), which limit the memory of containers: memory in use, limit, parts of the
# memory in use, and the name of the part that only caches files.
_GROUP = "/sys/fs/cgroup"
_GROUP_FILES = (
    ("memory.current", "memory.max", "memory.stat", "inactive_file"),
    ("memory/memory.usage_in_bytes", "memory/memory.limit_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
_UNLIMITED = 2**63


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of TensorFlow in a process.

    Attributes:
        grappler: whether Grappler rewrites graphs before their first run; by default on GPUs only. On two CPU cores the
            rewriting took 10 of the 29 seconds to the first training step of the quickstart, and made each step slower
            (58 images/s instead of 98).
        memory_growth: whether TensorFlow takes a GPU's memory as needed, instead of all memory at the start.
        device_batches: how many batches are copied to each device in advance.
        shards: number of shards of a batch that CPUs compute side by side (`runtime/execution.py`), each with its share
            of the threads. The default is two shards for two threads, and one shard for more threads, so that an
            operation may take all of them, as TensorFlow does.
    """

    grappler: bool
    memory_growth: bool
    device_batches: int
    shards: int

    @classmethod
    def choose(cls, gpus: int, cores: int, environment: Mapping[str, str] | None = None) -> Self:
        """Returns the default settings for a machine, changed by the environment variables.

        Args:
            gpus: how many GPUs TensorFlow sees.
            cores: how many cores or threads the process may use.
            environment: environment variables; None for the variables of the process.

        Raises:
            ConfigError: if a variable has an invalid value.
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
        """Applies the settings to TensorFlow; once TensorFlow has started a device, only Grappler is still changed."""
        import tensorflow as tf

        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not self.grappler})
        if ALLOW_GROWTH not in os.environ:
            for gpu in tf.config.list_physical_devices("GPU"):
                # If a user's code has started TensorFlow, TensorFlow refuses the change, and the user's setting stays.
                try:
                    tf.config.experimental.set_memory_growth(gpu, self.memory_growth)
                except RuntimeError:
                    return


def current() -> Settings:
    """Returns the settings for this process, applied or not."""
    import tensorflow as tf

    return Settings.choose(len(tf.config.get_visible_devices("GPU")), cores())


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_switch(environment: Mapping[str, str], name: str, default: bool) -> bool:
    # TensorFlow accepts the same words in its own environment variables.
    words = {"1": True, "true": True, "0": False, "false": False}
    text = environment.get(name, "").strip().lower()
    if not text:
        return default
    if text not in words:
        raise ConfigError(f"{name} is {environment[name]!r}; it must be 1 or 0 (or true or false)")
    return words[text]


# --- memory ---


def machine_memory() -> int:
    """Returns the bytes of memory of this machine, or of the container if its limit is lower."""
    limits = [_UNLIMITED]
    with contextlib.suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for _, limit, _, _ in _GROUP_FILES:
        # Without a limit the file contains "max" or is missing.
        with contextlib.suppress(OSError, ValueError):
            limits.append(_read_number(f"{_GROUP}/{limit}"))
    return min(limit for limit in limits if limit > 0)


def free_memory() -> int:
    """Returns the bytes of memory that this process may still take: the limits are machine, container, `ulimit -v`."""
    free = [machine_memory()]
    with contextlib.suppress(OSError, ValueError, KeyError):
        free.append(1024 * _read_fields("/proc/meminfo")["MemAvailable"])
    for used, limit, parts, cache in _GROUP_FILES:
        with contextlib.suppress(OSError, ValueError, KeyError):
            # Cached files do not count, because the kernel drops them when a process needs the memory.
            cached = _read_fields(f"{_GROUP}/{parts}")[cache]
            in_use = max(0, _read_number(f"{_GROUP}/{used}") - cached)
            free.append(_read_number(f"{_GROUP}/{limit}") - in_use)
    if (space := address_space()) < _UNLIMITED:
        with contextlib.suppress(OSError, ValueError, KeyError):
            free.append(space - 1024 * _read_fields("/proc/self/status")["VmSize"])
    return max(0, min(free))


def address_space() -> int:
    """Returns the size in bytes of the address space that this process may use (`ulimit -v`); 2**63 without a limit."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    except (ImportError, OSError):
        return _UNLIMITED
    return _UNLIMITED if limit == resource.RLIM_INFINITY else limit


def shown_bytes(count: int) -> str:
    """Returns a number of bytes as text in gigabytes, for messages.

    >>> shown_bytes(1_500_000_000), shown_bytes(4 * 10**18)
    ('1.5 GB', '4,000,000,000.0 GB')
    """
    return f"{count // 10**8 / 10:,.1f} GB"


def _read_number(path: str) -> int:
    return int(pathlib.Path(path).read_text(encoding="ascii"))


def _read_fields(path: str) -> dict[str, int]:
    """Returns the numbers, by name, of a file whose lines hold a name, a number and perhaps a unit."""
    lines = (line.replace(":", " ").split() for line in pathlib.Path(path).read_text(encoding="ascii").splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
