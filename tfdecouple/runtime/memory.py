"""The memory of this machine, as far as this process may have it."""

from __future__ import annotations

import contextlib
import os
import pathlib

# Of control groups, by which containers are limited, the second version and the first: the files of what is used, of
# the limit, and of what the use is made of, with the name there of what files hold.
_GROUP = "/sys/fs/cgroup"
_GROUPS = (
    ("memory.current", "memory.max", "memory.stat", "inactive_file"),
    ("memory/memory.usage_in_bytes", "memory/memory.limit_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def machine_memory() -> int:
    """Returns the bytes of memory of this machine, or of the container where it has less."""
    limits = [2**63]
    with contextlib.suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for _, limit, _, _ in _GROUPS:
        # Without a limit the file says "max", or is not there.
        with contextlib.suppress(OSError, ValueError):
            limits.append(_number(f"{_GROUP}/{limit}"))
    return min(limit for limit in limits if limit > 0)


def free_memory() -> int:
    """Returns the bytes of memory that this process may still take of the machine, its container and `ulimit -v`."""
    free = [machine_memory()]
    with contextlib.suppress(OSError, ValueError, KeyError):
        free.append(1024 * _fields("/proc/meminfo")["MemAvailable"])
    for used, limit, parts, files in _GROUPS:
        with contextlib.suppress(OSError, ValueError, KeyError):
            # What files hold goes when something else needs the room.
            cached = _fields(f"{_GROUP}/{parts}")[files]
            free.append(_number(f"{_GROUP}/{limit}") - max(0, _number(f"{_GROUP}/{used}") - cached))
    if (space := address_space()) < 2**63:
        with contextlib.suppress(OSError, ValueError, KeyError):
            free.append(space - 1024 * _fields("/proc/self/status")["VmSize"])
    return max(0, min(free))


def address_space() -> int:
    """Returns the bytes of addresses that this process may use (`ulimit -v`); 2**63 without a limit."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    except (ImportError, OSError):
        return 2**63
    return 2**63 if limit == resource.RLIM_INFINITY else limit


def shown_bytes(count: int) -> str:
    """Returns a number of bytes for people.

    >>> shown_bytes(1_500_000_000), shown_bytes(4 * 10**18)
    ('1.5 GB', '4,000,000,000.0 GB')
    """
    return f"{count // 10**8 / 10:,.1f} GB"


def _number(path: str) -> int:
    return int(pathlib.Path(path).read_text(encoding="ascii"))


def _fields(path: str) -> dict[str, int]:
    """Returns the numbers of a file with a name and a number in each line, and perhaps a unit."""
    lines = (line.replace(":", " ").split() for line in pathlib.Path(path).read_text(encoding="ascii").splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
