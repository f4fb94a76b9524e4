"""Facts about this machine: processor cores and flags, versions of packages, total memory, free memory."""

import contextlib
import functools
import importlib.metadata
import os
import pathlib
import platform

# The largest number of devices of one process.
MOST_DEVICES = 256
_CPUINFO = pathlib.Path("/proc/cpuinfo")
# Folder of Linux' control groups, which limit the memory of containers.
_GROUP = "/sys/fs/cgroup"
# For control groups of version 2, then of version 1: the files with the bytes in use, with the limit in bytes, and with
# a table of what the bytes are used for; then the name of the table's entry for cached files.
_GROUP_FILES = (
    ("memory.current", "memory.max", "memory.stat", "inactive_file"),
    ("memory/memory.usage_in_bytes", "memory/memory.limit_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def count_cores() -> int:
    """Returns the number of processor cores that the operating system lets this process use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def read_cpuinfo(field: str) -> str:
    """Returns a field of Linux' /proc/cpuinfo, such as "flags", as text; "" if the field or the file is missing."""
    with contextlib.suppress(OSError):
        for line in _CPUINFO.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""


def describe_machine() -> dict[str, object]:
    """Returns a dict of facts about this machine on which speed depends: processor, cores, load, versions."""
    return {
        "processor": read_cpuinfo("model name") or platform.processor(),
        "cores": count_cores(),
        "load_average_at_start": [round(load, 2) for load in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")},
    }


def read_total_memory() -> int:
    """Returns the memory of this machine in bytes, or the memory limit of this process's container if that is lower."""
    limits = [2**63]
    with contextlib.suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for _, limit, _, _ in _GROUP_FILES:
        # Without a limit the file is missing, or has the text "max", which raises ValueError.
        with contextlib.suppress(OSError, ValueError):
            limits.append(_read_number(f"{_GROUP}/{limit}"))
    return min(limit for limit in limits if limit > 0)


def read_free_memory() -> int:
    """Returns how many bytes this process can still allocate: the smallest limit of machine, container and `ulimit`."""
    free = [read_total_memory()]
    with contextlib.suppress(OSError, ValueError, KeyError):
        free.append(1024 * _read_fields("/proc/meminfo")["MemAvailable"])
    for used, limit, parts, cache in _GROUP_FILES:
        with contextlib.suppress(OSError, ValueError, KeyError):
            # Cached files count as free memory, because Linux drops them when a process needs the memory.
            cached = _read_fields(f"{_GROUP}/{parts}")[cache]
            in_use = max(0, _read_number(f"{_GROUP}/{used}") - cached)
            free.append(_read_number(f"{_GROUP}/{limit}") - in_use)
    with contextlib.suppress(ImportError, OSError, ValueError, KeyError):
        import resource

        if (space := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
            free.append(space - 1024 * _read_fields("/proc/self/status")["VmSize"])
    return max(0, min(free))


def format_bytes(count: int) -> str:
    """Returns a count of bytes as text in gigabytes (10^9 bytes), rounded down to one decimal, for messages.

    >>> format_bytes(1_500_000_000), format_bytes(4 * 10**18)
    ('1.5 GB', '4,000,000,000.0 GB')
    """
    return f"{count // 10**8 / 10:,.1f} GB"


def _read_number(path: str) -> int:
    """Returns the integer that is the whole text of a Linux file such as memory.max; ValueError for other text."""
    return int(pathlib.Path(path).read_text(encoding="ascii"))


def _read_fields(path: str) -> dict[str, int]:
    """Returns {name: number} from the lines of a Linux file such as /proc/meminfo, without units such as "kB"."""
    lines = (line.replace(":", " ").split() for line in pathlib.Path(path).read_text(encoding="ascii").splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
