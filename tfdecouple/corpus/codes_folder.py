"""The folder that `tfdecouple encode` writes: files of codes, their SHA-256, and the weights to decode the codes."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from filelock import FileLock, Timeout

from tfdecouple.config import Config
from tfdecouple.corpus.code_files import write_codes
from tfdecouple.corpus.codes_manifest import CodesManifest, Shard, ShardRange
from tfdecouple.errors import UserError, one_line
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.opened_run import hash_weights, load_model, write_run
from tfdecouple.storage.files import TEMPORARY, FileDigest, move_into_place, temporary_file

# Name of the run folder with the weights of the encoding model. No other weights can decode the codes.
RUN = "_run"
# Name of the journal, which gets a line for each complete file. Writing the growing manifest after each file instead
# would take longer and longer. When all files are complete, the manifest lists them, and the journal is removed.
JOURNAL = "_shards.jsonl"
_LOCK = ".lock"

Report = Callable[[str], Any]


class CodesFolder:
    """A folder of codes (z, v) at `path`, which need not exist; `with CodesFolder(path) as folder` locks the folder.

    A file has a temporary name until it is complete. The temporary files of a killed program are removed when the
    `with` statement begins.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._lock = FileLock(path / _LOCK, timeout=0)
        self._shards: dict[str, Shard] = {}

    def __enter__(self) -> CodesFolder:
        """Locks the folder; UserError if another program or other files are in it, or it cannot be written."""
        with self.convert_write_errors():
            self.path.mkdir(parents=True, exist_ok=True)
            # A folder without a manifest can hold files that a program left when it was killed early.
            for entry in self.path.iterdir() if CodesManifest.read_manifest(self.path) is None else ():
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
        self._lock.release()

    @contextlib.contextmanager
    def convert_write_errors(self) -> Iterator[None]:
        """Returns a context that raises UserError, "cannot write", instead of file errors of Python or TensorFlow."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            reason = getattr(error, "strerror", None) or one_line(error, first=True)
            if isinstance(error, tf.errors.ResourceExhaustedError):
                reason = os.strerror(errno.ENOSPC)
            raise UserError(
                f"cannot write to {self.path}: {reason}; complete files are kept, and the same command resumes"
            ) from error

    def begin_codes_folder(self, manifest: CodesManifest, model: DecoupledModel, config: Config, step: int) -> None:
        """Writes into this folder of codes a run folder with the weights of `model`, and the manifest `manifest`.

        `config` is the config of the run, and `step` the training step of the weights. Raises UserError if the folder
        cannot be written.
        """
        run = self.path / RUN
        with self.convert_write_errors():
            if run.exists():
                shutil.rmtree(run)
            run.mkdir()
            write_run(run, model, config, step)
            manifest.write_manifest(self.path)

    def find_missing_shards(
        self, manifest: CodesManifest, report: Report, counter: Callable[[int], None]
    ) -> list[ShardRange]:
        """Removes damaged code files, and returns a `ShardRange` for each code file that is still to be written.

        `report` is a callback that receives a text about each removed file and each damaged line of the journal.
        `counter` is a callback that receives the count of files checked so far.
        """
        missing = []
        self._shards = read_shard_records(self.path, manifest, report)
        for done, shard in enumerate(manifest.list_shard_ranges(), 1):
            path = self.path / shard.name
            if path.exists() and (problem := find_shard_problem(path, self._shards.get(shard.name))):
                report(f"{path} {problem}: it is written again")
                with self.convert_write_errors():
                    path.unlink()
            if not path.exists():
                missing.append(shard)
            counter(done)
        return missing

    def write_shard(
        self, manifest: CodesManifest, shard: ShardRange, keys: Sequence[bytes], rows: Mapping[str, np.ndarray]
    ) -> None:
        """Writes a file of codes under a temporary name, adds the file's SHA-256 to the journal, and renames the file.

        `keys` are the names of the file's images in UTF-8, and `rows` is a dict of "label" and code arrays with an
        entry for each image. Raises UserError if the file cannot be written.
        """
        with self.convert_write_errors(), temporary_file(self.path / shard.name) as temporary:
            write_codes(manifest.format, temporary, manifest.fields, keys, rows)
            digest = FileDigest.from_file(temporary).model_dump()
            entry = Shard(name=shard.name, images=len(keys), **digest)
            with (self.path / JOURNAL).open("a", encoding="utf-8") as journal:
                # The entry begins with a line break, because a killed program can have left an incomplete line.
                journal.write(f"\n{entry.model_dump_json()}\n")
            move_into_place(temporary, self.path / shard.name)
            self._shards[shard.name] = entry

    def finish_codes_folder(self, manifest: CodesManifest) -> CodesManifest:
        """Writes and returns the manifest of the complete folder, which lists all code files; removes the journal."""
        shards = tuple(self._shards[shard.name] for shard in manifest.list_shard_ranges())
        images = sum(shard.images or 0 for shard in shards)
        skipped = sum(manifest.splits.values()) - images
        totals = {"images": images, "skipped": skipped, "bytes": sum(shard.bytes for shard in shards)}
        done = manifest.model_copy(update={"complete": True, "totals": totals, "shards": shards})
        with self.convert_write_errors():
            done.write_manifest(self.path)
            (self.path / JOURNAL).unlink(missing_ok=True)
        return done


def read_shard_records(folder: pathlib.Path, manifest: CodesManifest, report: Report) -> dict[str, Shard]:
    """Returns {file name: `Shard`} of manifest and journal; `report` receives a text for each damaged line."""
    try:
        lines = (folder / JOURNAL).read_bytes().splitlines()
    except FileNotFoundError:
        lines = []
    shards = list(manifest.shards)
    for line in filter(None, lines):
        try:
            shards.append(Shard.model_validate_json(line, strict=True))
        except ValueError:
            report(f"{folder / JOURNAL} has a damaged line")
    # The last entry of a file replaces earlier entries, because a damaged file is written again and gets a new entry.
    return {shard.name: shard for shard in shards}


def find_shard_problem(path: pathlib.Path, shard: Shard | None) -> str | None:
    """Returns a text on how a code file differs from `shard`, its entry in manifest or journal; None if it is equal."""
    if shard is None:
        return "has no SHA-256 on record"
    try:
        digest = FileDigest.from_file(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if digest.bytes != shard.bytes:
        return f"has {digest.bytes:,} bytes, {shard.bytes:,} were written"
    return None if digest.sha256 == shard.sha256 else "has another content than was written (its SHA-256 differs)"


def verify_codes(folder: pathlib.Path, manifest: CodesManifest, counter: Callable[[int], None]) -> list[str]:
    """Returns a list of problems of a folder of codes: a text for each file that is changed, missing or unknown.

    Further texts say that the folder is incomplete, or that the weights in it did not make the codes. `counter` is a
    callback that receives the count of files checked so far.
    """
    lines: list[str] = []
    shards, names = read_shard_records(folder, manifest, lines.append), manifest.list_shard_names()
    there = [name for name in names if manifest.complete or (folder / name).exists()]
    for done, name in enumerate(there, 1):
        if problem := find_shard_problem(folder / name, shards.get(name)):
            lines.append(f"{folder / name} {problem}")
        counter(done)
    others = {path.name for path in folder.glob(f"*.{manifest.format}")} - set(names)
    lines += [f"{folder / name} does not belong to these codes" for name in sorted(others)]
    if len(there) < len(names):
        lines.append(f"{folder} has {len(there)} of {len(names)} files: it is not complete")
    # Codes of `encode-beam` come without weights that could be checked.
    if manifest.model.weights_sha256 is not None:
        try:
            if hash_weights(load_model(folder / RUN)) != manifest.model.weights_sha256:
                lines.append(f"{folder / RUN} holds other weights than made these codes")
        except UserError as error:
            lines.append(f"the weights of these codes cannot be read: {error}")
    return lines
