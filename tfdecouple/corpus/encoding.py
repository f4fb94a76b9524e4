"""The encoding of the images of a data set: the folder of codes that `tfdecouple encode` writes, batch by batch."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
from filelock import FileLock, Timeout

from tfdecouple.arguments import as_labels
from tfdecouple.corpus.code_files import CodesManifest, Field, Rows, Shard, ShardRange, encode_image_key, write_codes
from tfdecouple.data.labels import check_labels
from tfdecouple.data.sources import Source
from tfdecouple.errors import UserError
from tfdecouple.metrics.metric import require_finite_values
from tfdecouple.model import DecoupledModel
from tfdecouple.model.codes import far_from_training
from tfdecouple.model.outlier_scores import SCORES, OutlierScorer
from tfdecouple.numerics.tf32 import full_float32
from tfdecouple.runs.opened_run import Run, hash_weights, load_model, write_run
from tfdecouple.storage.files import TEMPORARY, FileDigest, convert_tensorflow_errors, replace_file

# Name of the run folder with the weights of the encoding model. No other weights can decode the codes.
RUN = "_run"
_LOCK = ".lock"


@contextlib.contextmanager
def open_codes_folder(path: pathlib.Path, job: CodesManifest, run: Run) -> Iterator[CodesFolder]:
    """Returns a context that locks a folder of codes, new or left by an interrupted encoding.

    `job` is the manifest of the encoding to write. A new folder gets the weights of `run` and the manifest. The
    temporary files of a killed program are removed. If the folder holds another encoding, DataError is raised; if it
    holds other files or cannot be written, UserError.
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
        with convert_tensorflow_errors():
            yield
    except OSError as error:
        text = "complete files are kept, and the same command resumes"
        raise UserError(f"cannot write to {path}: {error.strerror or error}; {text}") from error


@dataclasses.dataclass
class CodesFolder:
    """A locked folder of codes (z, v); `manifest` lists the code files that are complete."""

    path: pathlib.Path
    manifest: CodesManifest

    def find_missing_shards(self, report: Callable[[str], object], counter: Callable[[int], None]) -> list[ShardRange]:
        """Removes damaged code files, and returns a `ShardRange` for each code file that is still to be written.

        `report` receives a text about each removed file, and `counter` the count of files checked so far.
        """
        complete = {shard.name: shard for shard in self.manifest.shards}
        ranges = self.manifest.list_shard_ranges()
        for done, shard in enumerate(ranges, 1):
            path = self.path / shard.name
            if path.exists() and (problem := find_shard_problem(path, complete.get(shard.name))):
                report(f"{path} {problem}: it is written again")
                with convert_write_errors(self.path):
                    path.unlink()
            counter(done)
        return [shard for shard in ranges if not (self.path / shard.name).exists()]

    def write_shard(self, shard: ShardRange, keys: Sequence[bytes], rows: Mapping[str, np.ndarray]) -> None:
        """Writes a file of codes under a temporary name, renames it, and adds it to the manifest.

        `keys` are the names of the file's images in UTF-8, and `rows` is a dict of "label" and code arrays with an
        entry for each image. Raises UserError if the file cannot be written.
        """
        with convert_write_errors(self.path), replace_file(self.path / shard.name) as temporary:
            write_codes(self.manifest.format, temporary, self.manifest.fields, keys, rows)
            entry = Shard(name=shard.name, images=len(keys), **FileDigest.from_file(temporary).model_dump())
            others = [other for other in self.manifest.shards if other.name != shard.name]
            self.manifest = self.manifest.model_copy(update={"complete": False, "shards": (*others, entry)})
            # The manifest comes first: a file without an entry would be written again after a kill.
            self.manifest.write_manifest(self.path)

    def finish(self) -> CodesManifest:
        """Writes and returns the manifest of the complete folder, with all code files in their order."""
        by_name = {shard.name: shard for shard in self.manifest.shards}
        shards = [by_name[shard.name] for shard in self.manifest.list_shard_ranges()]
        self.manifest = self.manifest.with_shards(shards, sum(shard.images or 0 for shard in shards))
        with convert_write_errors(self.path):
            self.manifest.write_manifest(self.path)
        return self.manifest


def find_shard_problem(path: pathlib.Path, shard: Shard | None) -> str | None:
    """Returns a text on how the file of codes at `path` differs from its manifest entry `shard`; None if they agree."""
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


# A function of images, their indices in the split and their labels. It returns {name of a field: array of codes}.
ImageEncoder = Callable[[np.ndarray, np.ndarray, np.ndarray], Rows]


def make_image_encoder(model: DecoupledModel, fields: Sequence[Field], batch_size: int) -> ImageEncoder:
    """Returns a function that computes the codes `fields` of at most `batch_size` images, as {name: array}.

    The arguments of the function are images, uint8 `[n, height, width, channels]`, their indices in the split, which
    key the noise of outlier scores, and their labels, which a model uses if its z is a function of the label. The
    function pads smaller batches, so that TensorFlow traces the model once, and runs the flow only for v and scores.
    """
    all_names = {field.name for field in fields}
    names = all_names.difference(SCORES)
    scorer = OutlierScorer(model) if all_names - names else None
    specs = [tf.TensorSpec([batch_size, *model.config.image_shape], tf.uint8), tf.TensorSpec([batch_size], tf.int32)]
    by_label = model.config.has_label_codes

    @tf.function(input_signature=specs, autograph=False)
    def encode(images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        codes = {}
        if "v" in names:
            codes["z"], codes["v"] = model.encode(images, labels if by_label else None)[:2]
        elif model.code_net is not None:
            codes["z"] = model.code_net(labels)
        if names - codes.keys():
            posterior = model.posterior(images)
            codes = {"z": posterior.mean(), "z_std": posterior.stddev(), **codes}
        return {name: codes[name] for name in names}

    @full_float32()
    def encoder(images: np.ndarray, index: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        def pad(values: np.ndarray) -> np.ndarray:
            return np.pad(values, [(0, batch_size - len(images))] + [(0, 0)] * (values.ndim - 1))

        if by_label:
            labels = np.asarray(as_labels(labels, len(images), model.config.classes, required=True))
        try:
            codes = {name: value.numpy() for name, value in encode(pad(images), pad(labels)).items()} if names else {}
            if scorer is not None:
                codes |= scorer(pad(images), pad(index), len(images))
        except tf.errors.ResourceExhaustedError as error:
            text = f"out of memory with {batch_size} images at a time; name fewer with --batch-size"
            raise UserError(text) from error
        return {name: codes[name][: len(images)] for name in all_names}

    return encoder


def encode_shards(
    folder: CodesFolder,
    shards: Sequence[ShardRange],
    source: Source,
    encoder: ImageEncoder,
    batch_size: int,
    counter: Callable[[int], None],
) -> list[bytes]:
    """Encodes images into code files; returns the keys of images whose v is `far_from_training` and may be inexact.

    `shards` are the code files to write, in the order of the manifest. `counter` receives the count of images encoded
    so far. An image that cannot be read raises DataError, a code that is not finite RunError, a full disk UserError.
    """
    done, far, fields = 0, list[bytes](), folder.manifest.fields
    empty = {field.name: np.zeros((0, *field.shape), np.float32) for field in fields}
    for split, group in itertools.groupby(shards, lambda shard: shard.split):
        files = list(group)
        indices = np.concatenate([np.arange(shard.start, shard.stop) for shard in files])
        batches = _read_batches(source, split, indices, batch_size)
        rows: Rows = {"index": np.zeros(0, np.int64), "label": np.zeros(0, np.int32), **empty}
        for shard in files:
            # A batch may span several files, so `rows` keeps the images of the last batch that belong to later files.
            parts = [rows]
            while np.max(parts[-1]["index"], initial=-1) < shard.stop - 1 and (batch := next(batches, None)):
                labels = check_labels(source, batch["label"])
                codes = encoder(batch["image"], batch["index"], labels)
                parts.append({"index": batch["index"], "label": labels, **codes})
                counter(done := done + len(labels))
            rows = {name: np.concatenate([part[name] for part in parts]) for name in rows}
            end = int(np.searchsorted(rows["index"], shard.stop))
            codes = {name: values[:end] for name, values in rows.items()}
            rows = {name: values[end:] for name, values in rows.items()}
            for field in fields:
                require_finite_values(f"{field.name} of {split}", codes[field.name], codes["index"])
            keys = [encode_image_key(source.find_image_key(split, int(index))) for index in codes["index"]]
            if "v" in codes:
                far += itertools.compress(keys, far_from_training(codes["v"]))
            folder.write_shard(shard, keys, codes)
    return far


def hash_image_keys(source: Source, splits: Sequence[str]) -> str:
    """Returns the SHA-256, in hexadecimal, of the keys of all images in `splits`; "" if no split has keys."""
    keys = [encode_image_key(key) + b"\n" for split in splits for key in source.splits[split].keys or ()]
    return hashlib.sha256(b"".join(keys)).hexdigest() if keys else ""


def _read_batches(source: Source, split: str, indices: np.ndarray, batch_size: int) -> Iterator[Rows]:
    with source.guard():
        examples = source.open_split(split).decode_examples(indices)
        yield from examples.batch(batch_size).prefetch(2).as_numpy_iterator()
