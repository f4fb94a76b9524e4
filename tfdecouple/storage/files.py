"""Files read within bounds, and written so that a reader sees the old content or the new, never half of either."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
import stat
from collections.abc import Iterable, Iterator
from typing import Any

from tfdecouple.errors import UntrustedError

# What a program that was ended while it wrote leaves behind, as a pattern.
TEMPORARY = ".*.tmp"

# A list of numbers in indented JSON. No string has a line break in it.
_NUMBERS = re.compile(r'\[\n([^][{}"]*)\]')

# JSON nested deeper is nothing that this project writes.
_DEPTH = 50


def require_own_files(folder: pathlib.Path) -> None:
    """Refuses a folder that holds anything but files, folders and links within it: each other entry leads elsewhere.

    Raises:
        UntrustedError: naming the first such entry.
    """
    root = os.path.realpath(folder)
    for where, folders, files in os.walk(folder):
        for path in (os.path.join(where, name) for name in (*folders, *files)):
            target = os.path.realpath(path)
            if os.path.islink(path) and os.path.commonpath([root, target]) != root:
                raise UntrustedError(f"{path} is a link to {target}, out of the folder; put there what it leads to")
            # A training that goes on may have removed it meanwhile.
            if os.path.lexists(path) and not os.path.isfile(path) and not os.path.isdir(path):
                raise UntrustedError(f"{path} is neither a file nor a folder; remove it")
        if where == os.path.join(folder, "wandb"):
            # The client of Weights & Biases links its logs to a cache; nothing here reads or writes these folders.
            folders[:] = [name for name in folders if not name.startswith(("run-", "offline-run-"))]


def read_bytes(path: str | pathlib.Path, at_most: int) -> bytes:
    """Returns the bytes of a file, which may be a stranger's.

    Raises:
        OSError: where it cannot be read.
        ValueError: where it is no regular file, or has more than `at_most` bytes.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        # A pipe would be waited for without an end.
        raise ValueError("it is no regular file")
    if status.st_size > at_most:
        raise ValueError(f"it has {status.st_size:,} bytes, and at most {at_most:,} are read")
    with open(path, "rb") as file:
        return file.read(at_most)


def read_json(path: str | pathlib.Path, at_most: int = 2**20) -> Any:
    """Returns the plain values of a JSON file, which may be a stranger's; see `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, at_most))


def parse_json(text: str | bytes) -> Any:
    """Returns the plain values of a JSON text, or of its bytes in UTF-8, which may be a stranger's.

    Raises:
        ValueError: where it is no JSON or no UTF-8, nested deeper than anything of ours, or has numbers beyond 64 bits,
            NaN or Infinity, which JSON does not know.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        values = json.loads(text, parse_constant=_no_number, parse_int=_whole, parse_float=_finite)
        depth = 0
        level = [values]
        while level and depth <= _DEPTH:
            depth += 1
            level = [inner for value in level for inner in _inner(value)]
    except RecursionError:
        level = [None]
    if level:
        raise ValueError(f"it is nested deeper than {_DEPTH} levels")
    return values


def _inner(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _whole(text: str) -> int:
    # Python takes quadratic time for long ones.
    if len(text) > 20 or abs(int(text)) >= 2**63:
        raise ValueError(f"the number {text[:20]}... has more than 64 bits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text[:400])
    if not math.isfinite(value) or len(text) > 400:
        raise ValueError(f"the number {text[:20]}... is too long or too large")
    return value


@contextlib.contextmanager
def beside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a hidden path beside a file, to write its content to; what is left there at the end is removed.

    Args:
        path: where `put_in_place` is to put the file; its folder is made if absent.

    Raises:
        OSError: where the folder cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def put_in_place(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Renames a whole file from `beside` to its path, once the disk has it.

    Raises:
        OSError: where the disk is full; the old file is untouched then.
    """
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def sha256_of(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file's bytes, hexadecimal.

    Raises:
        OSError: where the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole: beside its place first, then renamed in.

    Raises:
        OSError: where the disk is full or the folder cannot be written; the old file is untouched then.
    """
    with beside(path) as temporary:
        temporary.write_bytes(content)
        put_in_place(temporary, path)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole, in UTF-8.

    Raises:
        OSError: as `write_bytes`.
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: pathlib.Path, values: Any) -> None:
    """Writes plain values as indented JSON, whole; a list of numbers takes one line.

    Null stands for NaN and infinities, which JSON does not know and `parse_json` refuses.

    Raises:
        OSError: as `write_text`.
    """
    written = json.dumps(_with_nulls(values), indent=2, allow_nan=False)
    text = _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", written)
    write_text(path, text + "\n")


def _with_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_nulls(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
