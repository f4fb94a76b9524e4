"""The processor and the memory of this machine."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib

_CPUINFO = pathlib.Path("/proc/cpuinfo")
# Files of control groups (versions 2 and 1), which limit the memory of containers: memory in use, limit, parts of the
# memory in use, and the name of the part that only caches files.
_GROUP = "/sys/fs/cgroup"
_GROUP_FILES = (
    ("memory.current", "memory.max", "memory.stat", "inactive_file"),
    ("memory/memory.usage_in_bytes", "memory/memory.limit_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
_UNLIMITED = 2**63


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def read_cpuinfo(field: str) -> str:
    """Returns what Linux says of this machine's processor in a field, such as "flags"; "" on other systems."""
    with contextlib.suppress(OSError):
        for line in _CPUINFO.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""


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
