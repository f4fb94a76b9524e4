"""The folder of codes: files put in place whole and checked by digests, beside the weights that they decode with."""

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
from tfdecouple.corpus.codes_manifest import Manifest, ModelFacts, Shard, ShardRange
from tfdecouple.corpus.formats import FORMATS
from tfdecouple.errors import DataError, RunError, UserError, one_line
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.opened_run import hash_weights, load_model, write_run
from tfdecouple.runs.run_folder import load_config, load_weights
from tfdecouple.storage.files import TEMPORARY, file_sha256, move_into_place, temporary_file

# The run folder with the very weights that these codes come from: they decode with no others.
RUN = "_run"
# A line for each whole file, until the manifest takes them over: to write the manifest for each would take ever longer.
JOURNAL = "_shards.jsonl"
_LOCK = ".lock"

Report = Callable[[str], Any]


class CodesFolder:
    """A folder of codes that this process alone writes to, while it is entered.

    A file gets its name when it is whole: it is written under another and renamed. What a killed program left half
    written is removed by the next one.

    Args:
        path: the folder; made if absent.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._lock = contextlib.ExitStack()
        self._shards: dict[str, Shard] = {}

    def __enter__(self) -> CodesFolder:
        """Locks the folder and tidies it.

        Raises:
            UserError: where another program writes to it, it cannot be written, or it holds something else.
        """
        made = not self.path.exists()
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            if not made and Manifest.read(self.path) is None:
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

    def begin(self, manifest: Manifest, model: DecoupledModel, config: Config, step: int) -> None:
        """Writes a run folder with the weights, and the first manifest; from then on the folder belongs to this job.

        Raises:
            UserError: where they cannot be written.
        """
        run = self.path / RUN
        with self.writing():
            if run.exists():
                shutil.rmtree(run)
            run.mkdir()
            write_run(run, model, config, step)
            manifest.write(self.path)

    def missing(self, manifest: Manifest, report: Report, counter: Callable[[int], None]) -> list[ShardRange]:
        """Returns the files that are not there; one that is no longer what was written is removed first.

        Args:
            manifest: of the folder.
            report: receives a line for each file that is removed, and for damage of the journal.
            counter: receives how many files were compared.
        """
        found = []
        self._shards = recorded_shards(self.path, manifest, report)
        for done, shard in enumerate(manifest.ranges(), 1):
            path = self.path / shard.name
            if path.exists() and (problem := problem_of(path, self._shards.get(shard.name))):
                report(f"{path} {problem}: it is made anew")
                with self.writing():
                    path.unlink()
            if not path.exists():
                found.append(shard)
            counter(done)
        return found

    @contextlib.contextmanager
    def shard(self, manifest: Manifest, shard: ShardRange) -> Iterator[Callable[..., None]]:
        """Gives the function that writes codes to a file, and puts the file in place at the end, if that is reached.

        Raises:
            UserError: where it cannot be written.
        """
        images = 0
        with temporary_file(self.path / shard.name) as temporary:
            with self.writing():
                file = FORMATS[manifest.format].open(temporary, manifest.fields)

            def write(keys: Any, labels: Any, arrays: Any) -> None:
                nonlocal images
                images += len(keys)
                with self.writing():
                    file.write(keys, labels, arrays)

            try:
                yield write
            except BaseException:
                # The first error is reported, not that the unwanted file cannot be ended.
                with contextlib.suppress(Exception):
                    file.close()
                raise
            with self.writing():
                file.close()
                size, digest = temporary.stat().st_size, file_sha256(temporary)
                entry = Shard(name=shard.name, images=images, bytes=size, sha256=digest)
                with (self.path / JOURNAL).open("a", encoding="utf-8") as journal:
                    # The line before may have been cut short.
                    journal.write(f"\n{entry.model_dump_json()}\n")
                move_into_place(temporary, self.path / shard.name)
                self._shards[shard.name] = entry

    def finish(self, manifest: Manifest) -> Manifest:
        """Writes the last manifest, with all files and totals.

        Raises:
            UserError: where it cannot be written.
        """
        shards = tuple(self._shards[shard.name] for shard in manifest.ranges())
        images = sum(shard.images or 0 for shard in shards)
        skipped = sum(manifest.splits.values()) - images
        totals = {"images": images, "skipped": skipped, "bytes": sum(shard.bytes for shard in shards)}
        done = manifest.model_copy(update={"complete": True, "totals": totals, "shards": shards})
        with self.writing():
            done.write(self.path)
            (self.path / JOURNAL).unlink(missing_ok=True)
        return done

    def restore_weights(self, manifest: Manifest, model: DecoupledModel, config: Config, asked: ModelFacts) -> str:
        """Makes a model's weights those that the folder was begun with.

        Args:
            manifest: of the folder.
            model: of the run that is asked for, with its best weights.
            config: of that run.
            asked: the facts of that model.

        Returns:
            A note for the user, or "".

        Raises:
            UserError: where the run is another, or the kept weights are damaged.
        """
        begun = manifest.model
        if begun.weights_sha256 == asked.weights_sha256:
            return ""
        # A run of that name whose weights are older, or that has another model, does not continue the one then.
        trained_on = asked.run == begun.run and asked.step > begun.step
        if not trained_on or config.model != load_config(self.path / RUN).model:
            raise UserError(
                f"{self.path} was begun with the weights of update {begun.step} of the run {begun.run}, and those of "
                f"update {asked.step} of {asked.run} are others; take the old run, or another folder with --out"
            )
        load_weights(self.path / RUN, model, averaged=False)
        if hash_weights(model) != begun.weights_sha256:
            raise RunError(f"the weights in {self.path / RUN} were changed; name another folder with --out")
        return (
            f"{begun.run} has trained on to update {asked.step}; the codes go on with the weights of update "
            f"{begun.step}, which they were begun with"
        )


def recorded_shards(folder: pathlib.Path, manifest: Manifest, report: Report = lambda text: None) -> dict[str, Shard]:
    """Returns the files that were written, by name; damaged lines of the journal are reported and passed over.

    Raises:
        DataError: where the journal is there but cannot be read at all.
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
    # The newest counts.
    return {shard.name: shard for shard in shards}


def problem_of(path: pathlib.Path, shard: Shard | None) -> str | None:
    """Returns why a file is not what was written, None where it is."""
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


def verify(folder: pathlib.Path, manifest: Manifest, counter: Callable[[int], None]) -> list[str]:
    """Returns a line for each file that is not what was written, is missing or does not belong there; changes nothing.

    Args:
        folder: the codes.
        manifest: of the folder.
        counter: receives how many files were compared.
    """
    lines: list[str] = []
    shards, names = recorded_shards(folder, manifest, lines.append), manifest.names()
    there = [name for name in names if manifest.complete or (folder / name).exists()]
    for done, name in enumerate(there, 1):
        if problem := problem_of(folder / name, shards.get(name)):
            lines.append(f"{folder / name} {problem}")
        counter(done)
    others = {path.name for path in folder.glob(f"*.{manifest.format}")} - set(names)
    lines += [f"{folder / name} does not belong to these codes" for name in sorted(others)]
    if len(there) < len(names):
        lines.append(f"{folder} has {len(there)} of {len(names)} files: it is not complete")
    # A pipeline keeps no weights.
    if manifest.model.weights_sha256 is not None:
        try:
            if hash_weights(load_model(folder / RUN)) != manifest.model.weights_sha256:
                lines.append(f"{folder / RUN} holds other weights than made these codes")
        except UserError as error:
            lines.append(f"the weights of these codes cannot be read: {error}")
    return lines
