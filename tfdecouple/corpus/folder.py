"""The folder that codes go to: files put in place whole, so that a program which was ended goes on where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from filelock import FileLock, Timeout

from tfdecouple.corpus.checking import JOURNAL, listed, noted, problem_of
from tfdecouple.corpus.formats import FORMATS
from tfdecouple.corpus.manifest import Manifest, ShardRange
from tfdecouple.errors import UserError, one_line
from tfdecouple.storage.files import TEMPORARY, beside, put_in_place, sha256_of

# The run folder with the very weights that these codes come from: they decode with no others.
RUN = "_run"
_LOCK = ".lock"


class CodesFolder:
    """A folder of codes that this process alone writes to, while it is entered.

    A file gets its name when it is whole: it is written under another and renamed. What a killed program left half
    written is removed by the next one. `checking.py` says whether a file is still what was written.

    Args:
        path: the folder; made if absent.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> CodesFolder:
        """Locks the folder and tidies it.

        Raises:
            UserError: where another program writes to it, it cannot be written, or it holds something else.
        """
        made = not self.path.exists()
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            if not made:
                self._refuse_other_content()
            try:
                self._lock.enter_context(FileLock(self.path / _LOCK, timeout=0))
            except Timeout as error:
                raise UserError(
                    f"another program is writing to {self.path}; wait for it, or name another folder with --out"
                ) from error
            for remains in self.path.glob(TEMPORARY):
                remains.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        """Unlocks the folder."""
        self._lock.close()

    def _refuse_other_content(self) -> None:
        if Manifest.read(self.path) is not None:
            return
        # A program that was ended as it began leaves the lock, the weights and a manifest half written.
        for entry in self.path.iterdir():
            if entry.name not in (_LOCK, RUN) and not entry.match(TEMPORARY):
                raise UserError(
                    f"{self.path} holds other files, such as {entry.name}; name a new folder or an empty one with --out"
                )

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turns an error of the file system into one line.

        Raises:
            UserError: where the disk is full or cannot be written.
        """
        try:
            yield
        except OSError as error:
            raise self._cannot_write(error.strerror or str(error)) from error
        except tf.errors.ResourceExhaustedError as error:
            raise self._cannot_write(os.strerror(errno.ENOSPC)) from error
        except (tf.errors.UnknownError, tf.errors.PermissionDeniedError) as error:
            raise self._cannot_write(one_line(error, first=True)) from error

    def _cannot_write(self, reason: str) -> UserError:
        return UserError(
            f"cannot write to {self.path}: {reason}; what is whole there is kept, the same command goes on from it"
        )

    def begin(self, manifest: Manifest) -> None:
        """Writes the first manifest; from then on the folder belongs to this job.

        Raises:
            UserError: where it cannot be written.
        """
        with self.writing():
            manifest.write(self.path)

    def clear_run(self) -> pathlib.Path:
        """Returns the path of the run folder with the weights, made empty."""
        run = self.path / RUN
        with self.writing():
            if run.exists():
                shutil.rmtree(run)
            run.mkdir()
        return run

    def missing(
        self, manifest: Manifest, say: Callable[[str], None], counter: Callable[[int], None]
    ) -> list[ShardRange]:
        """Returns the files that are not there; one that is no longer what was written is removed and is missing.

        Args:
            manifest: of the folder.
            say: is told of each file that is removed, and of what could not be checked as it should.
            counter: is told how many files were looked at.
        """
        found = []
        entries = noted(self.path, manifest, say)
        if without := [entry["name"] for entry in entries.values() if entry["sha256"] is None]:
            say(f"{self.path}: no SHA-256 was noted of {listed(without)}; they are read instead, which finds less")
        for done, shard in enumerate(manifest.ranges(), 1):
            path = self.path / shard.name
            if path.exists() and (problem := problem_of(path, shard, entries.get(shard.name), manifest.format)):
                say(f"{path} {problem}: it is made anew")
                with self.writing():
                    path.unlink()
            if not path.exists():
                found.append(shard)
            counter(done)
        return found

    @contextlib.contextmanager
    def shard(self, manifest: Manifest, shard: ShardRange) -> Iterator[ShardWriter]:
        """Gives a file to write to, and puts it in place at the end; leaves nothing where that is not reached.

        Raises:
            UserError: where it cannot be written.
        """
        with beside(self.path / shard.name) as temporary:
            with self.writing():
                writer = ShardWriter(manifest, temporary)
            try:
                yield writer
            except BaseException:
                # What went wrong is to be told, not that a file which nobody wants cannot be ended.
                with contextlib.suppress(Exception):
                    writer.close()
                raise
            with self.writing():
                writer.close()
                entry = {"name": shard.name, "images": writer.images, **_sealed(temporary)}
                put_in_place(temporary, self.path / shard.name)
                with (self.path / JOURNAL).open("a", encoding="utf-8") as journal:
                    journal.write(json.dumps(entry) + "\n")

    def finish(self, manifest: Manifest) -> Manifest:
        """Writes the last manifest, with all files and totals.

        Raises:
            UserError: where it cannot be written.
        """
        known = noted(self.path, manifest)
        entries = []
        with self.writing():
            for shard in manifest.ranges():
                # A program that was killed between the renaming and the line left a file of which none is said.
                entry = known.get(shard.name)
                whole = entry is not None and None not in entry.values()
                entries.append(entry if entry and whole else self._looked_at(manifest, shard))
            images = sum(entry["images"] for entry in entries)
            totals = {
                "images": images,
                "skipped": sum(manifest.splits.values()) - images,
                "bytes": sum(entry["bytes"] for entry in entries),
            }
            done = dataclasses.replace(manifest, complete=True, totals=totals, shards=tuple(entries))
            done.write(self.path)
            (self.path / JOURNAL).unlink(missing_ok=True)
        return done

    def _looked_at(self, manifest: Manifest, shard: ShardRange) -> dict[str, Any]:
        path = self.path / shard.name
        return {"name": shard.name, "images": FORMATS[manifest.format].count(path), **_sealed(path)}


class ShardWriter:
    """A file on its way.

    Args:
        manifest: says the format.
        path: of the file.

    Attributes:
        images: how many were written.
    """

    def __init__(self, manifest: Manifest, path: pathlib.Path):
        self.images = 0
        self._shard = FORMATS[manifest.format].open(path, manifest.fields)

    def write(self, keys: Sequence[bytes], labels: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """See `TFRecordShard.write`."""
        self._shard.write(keys, labels, arrays)
        self.images += len(keys)

    def close(self) -> None:
        """See `TFRecordShard.close`."""
        self._shard.close()


def _sealed(path: pathlib.Path) -> dict[str, Any]:
    """Returns the size and the hash of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
