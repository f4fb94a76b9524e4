"""Whether the files in a folder of codes are still what was written."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfdecouple.corpus.checked import shard_entry
from tfdecouple.corpus.formats import FORMATS
from tfdecouple.corpus.manifest import Manifest, ShardRange
from tfdecouple.errors import DataError, one_line
from tfdecouple.storage.files import parse_json, sha256_of

# A line for each whole file, until the manifest takes them over: writing the manifest anew for each would take ever
# longer.
JOURNAL = "_shards.jsonl"


def noted(
    folder: pathlib.Path, manifest: Manifest, say: Callable[[str], None] = lambda text: None
) -> dict[str, dict[str, Any]]:
    """Returns what was noted of whole files when they were written, by name.

    Args:
        folder: the codes.
        manifest: of the folder.
        say: is told of lines that cannot be read; the files of which they spoke count as not noted.

    Raises:
        DataError: where the journal is there but cannot be read at all.
    """
    entries = list(manifest.shards)
    try:
        lines = [line for line in (folder / JOURNAL).read_bytes().splitlines() if line]
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise DataError(f"cannot read {folder / JOURNAL}: {error.strerror or error}") from error
    damaged = 0
    for line in lines:
        try:
            entries.append(shard_entry(parse_json(line)))
        except ValueError:
            # A line that was cut short is followed by nothing, or by the line of a later program.
            damaged += 1
    if damaged:
        say(f"{folder / JOURNAL} has {damaged} damaged line{'s' if damaged > 1 else ''}: those files are read instead")
    # The newest counts.
    return {entry["name"]: entry for entry in entries}


def problem_of(path: pathlib.Path, shard: ShardRange | None, entry: dict[str, Any] | None, kind: str) -> str | None:
    """Returns why a file is not what was written, None where it is.

    Args:
        path: the file.
        shard: the images that belong into it; None where that is not known.
        entry: what was noted of it (`shard_entry`); None where nothing was. Without a SHA-256 the file is read from end
            to end, which finds damage in a TFRecord file by its own checksums, in a Parquet file only some.
        kind: the format, a key of `FORMATS`.
    """
    try:
        if not path.exists():
            return "is missing"
        if not path.is_file():
            return "is no file"
        if entry and path.stat().st_size != entry["bytes"]:
            return f"has {path.stat().st_size:,} bytes, {entry['bytes']:,} were written"
        if entry and entry["sha256"]:
            return (
                None
                if sha256_of(path) == entry["sha256"]
                else "has another content than was written (its SHA-256 differs)"
            )
        images = FORMATS[kind].count(path)
    except (OSError, ValueError, tf.errors.OpError) as error:
        return f"cannot be read ({one_line(error, 200)})"
    if entry and entry["images"] not in (None, images):
        return f"holds {images:,} images, {entry['images']:,} were written"
    if shard and images > shard.stop - shard.start:
        return f"holds {images:,} images, {shard.stop - shard.start:,} belong into it"
    return None


def verify(folder: pathlib.Path, manifest: Manifest, say: Callable[[str], None], counter: Callable[[int], None]) -> int:
    """Checks each file of a folder of codes; changes nothing.

    Args:
        folder: the codes.
        manifest: of the folder.
        say: is told a line for each file that is not what was written, is missing or does not belong there.
        counter: is told how many files were looked at.

    Returns:
        How many lines of these there were.
    """
    bad = 0

    def tell(text: str) -> None:
        nonlocal bad
        bad += 1
        say(text)

    entries = noted(folder, manifest, say)
    ranges = {} if manifest.complete else {shard.name: shard for shard in manifest.ranges()}
    names = manifest.names()
    there = [name for name in names if manifest.complete or (folder / name).exists()]
    if without := [name for name in there if (entries.get(name) or {}).get("sha256") is None]:
        say(f"{folder}: no SHA-256 was noted of {listed(without)}; they are read instead, which finds less")
    for done, name in enumerate(there, 1):
        if problem := problem_of(folder / name, ranges.get(name), entries.get(name), manifest.format):
            tell(f"{folder / name} {problem}")
        counter(done)
    for path in sorted(folder.glob(f"*.{manifest.format}")):
        if path.name not in set(names):
            tell(f"{path} does not belong to these codes")
    if len(there) < len(names):
        tell(f"{folder} has {len(there)} of {len(names)} files: it is not complete")
    return bad


def listed(names: Sequence[str]) -> str:
    """Returns how many files there are, and the name of one."""
    return names[0] if len(names) == 1 else f"{len(names)} files, such as {names[0]}"
