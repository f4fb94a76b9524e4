"""Writing files so that a reader sees the old content or the new, never half of either."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

# What a program that was ended while it wrote leaves behind, as a pattern.
TEMPORARY = ".*.tmp"


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole: beside its place first, then renamed in.

    Raises:
        OSError: where the disk is full or the folder cannot be written; the old file is untouched then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole, in UTF-8.

    Raises:
        OSError: as `write_bytes`.
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: pathlib.Path, values: Any) -> None:
    """Writes plain values as indented JSON, whole.

    Raises:
        OSError: as `write_text`.
    """
    write_text(path, json.dumps(values, indent=2) + "\n")
