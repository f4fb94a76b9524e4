"""The memory of this machine, as far as this process may have it."""

from __future__ import annotations

import contextlib
import os
import pathlib

# Limits that containers set: of the second and the first version of control groups.
_GROUP_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory() -> int:
    """Returns the bytes of memory of this machine, or of the container where it has less."""
    limits = [2**63]
    with contextlib.suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in _GROUP_FILES:
        # Without a limit the file says "max", or is not there.
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(pathlib.Path(name).read_text(encoding="ascii")))
    return min(limit for limit in limits if limit > 0)


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
