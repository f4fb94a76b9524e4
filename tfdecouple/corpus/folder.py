"""The folder of codes: complete files with digests, and the weights that decode them."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from filelock import FileLock, Timeout

from tfdecouple.config import Config
from tfdecouple.corpus.codes_manifest import Manifest, Shard, ShardRange
from tfdecouple.corpus.formats import open_file
from tfdecouple.errors import DataError, UserError, one_line
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.opened_run import hash_weights, load_model, write_run
from tfdecouple.storage.files import TEMPORARY, file_sha256, move_into_place, temporary_file

# The run folder with the weights that made these codes: no others decode them.
RUN = "_run"
# One line for each complete file, until the last manifest lists them: to write a manifest for each file would take
# longer and longer.
JOURNAL = "_shards.jsonl"
_LOCK = ".lock"

Report = Callable[[str], Any]


class CodesFolder:
    """A folder of codes, locked while it is entered.

    A file is written under a temporary name and renamed when it is complete. Temporary files of a killed program are
    removed by the next one.

    Args:
        path: the folder; made if absent.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._lock = FileLock(path / _LOCK, timeout=0)
        self._shards: dict[str, Shard] = {}

    def __enter__(self) -> CodesFolder:
        """Locks the folder and removes temporary files.

        Raises:
            UserError: where another program writes to it, it cannot be written, or it holds something else.
        """
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            # A program that was killed at its start leaves the lock, the weights and a temporary manifest.
            for entry in self.path.iterdir() if Manifest.read(self.path) is None else ():
                if entry.name not in (_LOCK, RUN) and not entry.match(TEMPORARY):
                    raise UserError(
                        f"{self.path} holds other files, such as {entry.name}; name a new folder or an empty one with "
                        "--out"
                    )
            try:
                self._lock.acquire()
            except Timeout as error:
                raise UserError(
                    f"another program is writing to {self.path}; wait for it, or name another folder with --out"
                ) from error
            for remains in self.path.glob(TEMPORARY):
                remains.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        """Unlocks the folder."""
        self._lock.release()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turns an error of the file system, also as TensorFlow raises it, into a UserError of one line."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            reason = getattr(error, "strerror", None) or one_line(error, first=True)
            if isinstance(error, tf.errors.ResourceExhaustedError):
                reason = os.strerror(errno.ENOSPC)
            raise UserError(
                f"cannot write to {self.path}: {reason}; what is whole there is kept, the same command goes on from it"
            ) from error

    def begin(self, manifest: Manifest, model: DecoupledModel, config: Config, step: int) -> None:
        """Writes the run folder with the weights, and the first manifest, which ties the folder to this job."""
        run = self.path / RUN
        with self.writing():
            if run.exists():
                shutil.rmtree(run)
            run.mkdir()
            write_run(run, model, config, step)
            manifest.write(self.path)

    def find_missing(self, manifest: Manifest, report: Report, counter: Callable[[int], None]) -> list[ShardRange]:
        """Returns the files that are still to be written; damaged files are removed and are among them.

        Args:
            manifest: of the folder.
            report: called with a line for each removed file, and for damage of the journal.
            counter: called with the number of files compared so far.
        """
        missing = []
        self._shards = read_shard_records(self.path, manifest, report)
        for done, shard in enumerate(manifest.ranges(), 1):
            path = self.path / shard.name
            if path.exists() and (problem := find_problem(path, self._shards.get(shard.name))):
                report(f"{path} {problem}: it is made anew")
                with self.writing():
                    path.unlink()
            if not path.exists():
                missing.append(shard)
            counter(done)
        return missing

    @contextlib.contextmanager
    def shard(self, manifest: Manifest, shard: ShardRange) -> Iterator[Callable[..., None]]:
        """Yields a function that appends codes to a new file, which gets its name when the context ends without error.

        Raises:
            UserError: where the file cannot be written.
        """
        images = 0
        with temporary_file(self.path / shard.name) as temporary:
            with self.writing():
                file = open_file(manifest.format, temporary, manifest.fields)

            def write(keys: Any, labels: Any, arrays: Any) -> None:
                nonlocal images
                images += len(keys)
                with self.writing():
                    file.write(keys, labels, arrays)

            try:
                yield write
            except BaseException:
                # The first error is reported, not that the file cannot be closed.
                with contextlib.suppress(Exception):
                    file.close()
                raise
            with self.writing():
                file.close()
                size, digest = temporary.stat().st_size, file_sha256(temporary)
                entry = Shard(name=shard.name, images=images, bytes=size, sha256=digest)
                with (self.path / JOURNAL).open("a", encoding="utf-8") as journal:
                    # A killed program may have left half a line before this one.
                    journal.write(f"\n{entry.model_dump_json()}\n")
                move_into_place(temporary, self.path / shard.name)
                self._shards[shard.name] = entry

    def finish(self, manifest: Manifest) -> Manifest:
        """Writes and returns the last manifest, with all files and totals."""
        shards = tuple(self._shards[shard.name] for shard in manifest.ranges())
        images = sum(shard.images or 0 for shard in shards)
        skipped = sum(manifest.splits.values()) - images
        totals = {"images": images, "skipped": skipped, "bytes": sum(shard.bytes for shard in shards)}
        done = manifest.model_copy(update={"complete": True, "totals": totals, "shards": shards})
        with self.writing():
            done.write(self.path)
            (self.path / JOURNAL).unlink(missing_ok=True)
        return done


def read_shard_records(
    folder: pathlib.Path, manifest: Manifest, report: Report = lambda text: None
) -> dict[str, Shard]:
    """Returns the files that were written, by name; damaged lines of the journal are counted in a report.

    Raises:
        DataError: where there is a journal that cannot be read.
    """
    try:
        lines = list(filter(None, (folder / JOURNAL).read_bytes().splitlines()))
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise DataError(f"cannot read {folder / JOURNAL}: {error.strerror or error}") from error
    shards, damaged = list(manifest.shards), 0
    for line in lines:
        try:
            shards.append(Shard.model_validate_json(line, strict=True))
        except ValueError:
            damaged += 1
    if damaged:
        report(f"{folder / JOURNAL} has {damaged} damaged line{'s' if damaged > 1 else ''}")
    # A later record of a file replaces an earlier one.
    return {shard.name: shard for shard in shards}


def find_problem(path: pathlib.Path, shard: Shard | None) -> str | None:
    """Returns how a file differs from its record, for a message; None where it does not differ."""
    try:
        if not path.exists():
            return "is missing"
        if not path.is_file():
            return "is no file"
        if shard is None:
            return "has no SHA-256 on record"
        if path.stat().st_size != shard.bytes:
            return f"has {path.stat().st_size:,} bytes, {shard.bytes:,} were written"
        return (
            None if file_sha256(path) == shard.sha256 else "has another content than was written (its SHA-256 differs)"
        )
    except OSError as error:
        return f"cannot be read ({one_line(error, 200)})"


def verify_codes(folder: pathlib.Path, manifest: Manifest, counter: Callable[[int], None]) -> list[str]:
    """Returns a line for each file that differs from its record, is missing or does not belong there.

    Args:
        folder: the folder of codes.
        manifest: of the folder.
        counter: called with the number of files compared so far.
    """
    lines: list[str] = []
    shards, names = read_shard_records(folder, manifest, lines.append), manifest.names()
    there = [name for name in names if manifest.complete or (folder / name).exists()]
    for done, name in enumerate(there, 1):
        if problem := find_problem(folder / name, shards.get(name)):
            lines.append(f"{folder / name} {problem}")
        counter(done)
    others = {path.name for path in folder.glob(f"*.{manifest.format}")} - set(names)
    lines += [f"{folder / name} does not belong to these codes" for name in sorted(others)]
    if len(there) < len(names):
        lines.append(f"{folder} has {len(there)} of {len(names)} files: it is not complete")
    # encode-beam keeps no weights.
    if manifest.model.weights_sha256 is not None:
        try:
            if hash_weights(load_model(folder / RUN)) != manifest.model.weights_sha256:
                lines.append(f"{folder / RUN} holds other weights than made these codes")
        except UserError as error:
            lines.append(f"the weights of these codes cannot be read: {error}")
    return lines
