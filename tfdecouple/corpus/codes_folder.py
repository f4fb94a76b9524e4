"""The folder that `tfdecouple encode` writes: files of codes, their SHA-256, and the weights to decode the codes."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from filelock import FileLock, Timeout

from tfdecouple.corpus.code_files import CodesManifest, Shard, ShardRange, write_codes
from tfdecouple.errors import UserError, one_line
from tfdecouple.runs.opened_run import Run, hash_weights, load_model, write_run
from tfdecouple.storage.files import TEMPORARY, FileDigest, move_into_place, temporary_file

# Name of the run folder with the weights of the encoding model. No other weights can decode the codes.
RUN = "_run"
_LOCK = ".lock"


@contextlib.contextmanager
def open_codes_folder(path: pathlib.Path, job: CodesManifest, run: Run) -> Iterator[CodesFolder]:
    """Returns a context that locks a new or begun folder of codes, for the encoding that the manifest `job` describes.

    A new folder gets the weights of `run` and the manifest. The temporary files of a killed program are removed.

    Raises:
        DataError: if the folder holds another encoding.
        UserError: if another program or other files are in the folder, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with convert_write_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            begun = CodesManifest.read_manifest(path)
            # A folder without a manifest can hold files that a program left when it was killed early.
            for entry in path.iterdir() if begun is None else ():
                if entry.name not in (_LOCK, RUN) and not entry.match(TEMPORARY):
                    raise UserError(f"{path} holds other files, such as {entry.name}; name a new folder with --out")
            try:
                stack.enter_context(FileLock(path / _LOCK, timeout=0))
            except Timeout as error:
                raise UserError(f"another program is writing to {path}; wait for it, or name another --out") from error
            for remains in path.glob(TEMPORARY):
                remains.unlink()
            if begun is None:
                shutil.rmtree(path / RUN, ignore_errors=True)
                (path / RUN).mkdir()
                write_run(path / RUN, run.model, run.config, run.step)
                job.write_manifest(path)
            else:
                begun.require_same_job(job, path)
        yield CodesFolder(path, begun or job)


@contextlib.contextmanager
def convert_write_errors(path: pathlib.Path) -> Iterator[None]:
    """Returns a context that raises UserError, "cannot write", instead of file errors of Python or TensorFlow."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        is_full = isinstance(error, tf.errors.ResourceExhaustedError)
        reason = os.strerror(errno.ENOSPC) if is_full else getattr(error, "strerror", "") or one_line(error, first=True)
        text = f"cannot write to {path}: {reason}; complete files are kept, and the same command resumes"
        raise UserError(text) from error


@dataclasses.dataclass
class CodesFolder:
    """A locked folder of codes (z, v); `manifest` lists the code files that are complete."""

    path: pathlib.Path
    manifest: CodesManifest

    def find_missing_shards(self, report: Callable[[str], Any], counter: Callable[[int], None]) -> list[ShardRange]:
        """Removes damaged code files, and returns a `ShardRange` for each code file that is still to be written.

        `report` receives a text about each removed file, and `counter` the count of files checked so far.
        """
        missing, complete = [], {shard.name: shard for shard in self.manifest.shards}
        for done, shard in enumerate(self.manifest.list_shard_ranges(), 1):
            path = self.path / shard.name
            if path.exists() and (problem := find_shard_problem(path, complete.get(shard.name))):
                report(f"{path} {problem}: it is written again")
                with convert_write_errors(self.path):
                    path.unlink()
            if not path.exists():
                missing.append(shard)
            counter(done)
        return missing

    def write_shard(self, shard: ShardRange, keys: Sequence[bytes], rows: Mapping[str, np.ndarray]) -> None:
        """Writes a file of codes under a temporary name, renames it, and adds it to the manifest.

        `keys` are the names of the file's images in UTF-8, and `rows` is a dict of "label" and code arrays with an
        entry for each image. Raises UserError if the file cannot be written.
        """
        with convert_write_errors(self.path), temporary_file(self.path / shard.name) as temporary:
            write_codes(self.manifest.format, temporary, self.manifest.fields, keys, rows)
            entry = Shard(name=shard.name, images=len(keys), **FileDigest.from_file(temporary).model_dump())
            others = [other for other in self.manifest.shards if other.name != shard.name]
            self.manifest = self.manifest.model_copy(update={"complete": False, "shards": (*others, entry)})
            # The manifest comes first: a file without an entry would be written again after a kill.
            self.manifest.write_manifest(self.path)
            move_into_place(temporary, self.path / shard.name)

    def finish(self) -> CodesManifest:
        """Writes and returns the manifest of the complete folder, with all code files in their order."""
        by_name = {shard.name: shard for shard in self.manifest.shards}
        shards = [by_name[shard.name] for shard in self.manifest.list_shard_ranges()]
        self.manifest = self.manifest.with_shards(shards, sum(shard.images or 0 for shard in shards))
        with convert_write_errors(self.path):
            self.manifest.write_manifest(self.path)
        return self.manifest


def find_shard_problem(path: pathlib.Path, shard: Shard | None) -> str | None:
    """Returns a text on how a code file differs from `shard`, its entry in the manifest; None if it is equal."""
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
    """Returns a list of problems of a folder of codes: files that are changed, missing or unknown; other weights.

    The callback `counter` receives the count of files checked so far.
    """
    lines, shards = list[str](), {shard.name: shard for shard in manifest.shards}
    names = manifest.list_shard_names()
    present = [name for name in names if manifest.complete or (folder / name).exists()]
    for done, name in enumerate(present, 1):
        if problem := find_shard_problem(folder / name, shards.get(name)):
            lines.append(f"{folder / name} {problem}")
        counter(done)
    others = {path.name for path in folder.glob(f"*.{manifest.format}")} - set(names)
    lines += [f"{folder / name} does not belong to these codes" for name in sorted(others)]
    if len(present) < len(names):
        lines.append(f"{folder} has {len(present)} of {len(names)} files: it is not complete")
    # Codes of `encode-beam` come without weights that could be checked.
    if manifest.model.weights_sha256 is not None:
        try:
            if hash_weights(load_model(folder / RUN)) != manifest.model.weights_sha256:
                lines.append(f"{folder / RUN} holds other weights than made these codes")
        except UserError as error:
            lines.append(f"the weights of these codes cannot be read: {error}")
    return lines
