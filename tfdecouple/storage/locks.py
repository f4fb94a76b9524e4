"""Locks between programs: a file that one process at a time holds, until it ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def locked(path: pathlib.Path, *, wait: bool = False, keep: bool = True) -> Iterator[None]:
    """Holds a lock while it is entered; no other program has it meanwhile.

    Args:
        path: of the lock's file; made if absent, in a folder that exists.
        wait: whether to wait for another program that holds it.
        keep: whether the file stays when the lock is let go.

    Raises:
        BlockingIOError: where another program holds it and `wait` is False.
        OSError: where the file cannot be made, or its file system knows no locks.
    """
    descriptor = _acquire(path, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield
    finally:
        if not keep:
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: pathlib.Path, operation: int) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, operation)
            # Who held it before may have removed the file after it was opened here: then nobody else would meet this
            # lock.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
