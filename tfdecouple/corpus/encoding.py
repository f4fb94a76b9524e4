"""Functions that encode the images of a data set, batch by batch, into files of codes."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from tfdecouple.arguments import as_labels
from tfdecouple.corpus.codes_manifest import SCORES, Field, Manifest, ShardRange, key_bytes
from tfdecouple.corpus.folder import CodesFolder
from tfdecouple.data import Source
from tfdecouple.data.labels import check_labels
from tfdecouple.errors import DataError, InversionError, UserError, one_line
from tfdecouple.metrics.outliers import Scorer
from tfdecouple.model import DecoupledModel
from tfdecouple.model.round_trip import far_from_training
from tfdecouple.runtime.precision import full_float32

# A function from images, their indices in the split and their labels to the codes, arrays by field.
Encoder = Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, np.ndarray]]
Rows = dict[str, np.ndarray]


def make_encoder(model: DecoupledModel, fields: Sequence[Field], batch_size: int) -> Encoder:
    """Returns a function from at most `batch_size` images, uint8 `[n, height, width, channels]`, to their codes.

    The function is traced for one batch size, to which smaller batches are padded. Without v or scores the flow does
    not run. Scores are computed with one draw of the noise, which depends on the index of each image in its split.
    Labels matter only where z is a function of the label.
    """
    all_names = {field.name for field in fields}
    names = all_names.difference(SCORES)
    scorer = Scorer(model) if all_names - names else None
    specs = [tf.TensorSpec([batch_size, *model.config.image_shape], tf.uint8), tf.TensorSpec([batch_size], tf.int32)]
    by_label = model.config.has_class_codes

    @tf.function(input_signature=specs, autograph=False)
    def encode(images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        codes = {}
        if "v" in names:
            z, codes["v"] = model.encode(images, labels if by_label else None)[:2]
            if "z" in names:
                codes["z"] = z
        elif by_label and "z" in names:
            codes["z"] = tf.gather(model.class_codes, labels)
        if names - codes.keys():
            posterior = model.posterior(images)
            codes = {"z": posterior.mean(), "z_std": posterior.stddev(), **codes}
        return {name: codes[name] for name in names}

    @full_float32()
    def encoder(images: np.ndarray, index: np.ndarray, labels: np.ndarray | None = None) -> dict[str, np.ndarray]:
        count = len(images)
        own = np.zeros(batch_size, np.int32)
        if by_label:
            own[:count] = np.asarray(as_labels(labels, count, model.config.classes, required=True))
        filled = np.zeros((batch_size, *images.shape[1:]), np.uint8)
        filled[:count] = images
        try:
            codes = {name: value.numpy() for name, value in encode(tf.constant(filled), own).items()} if names else {}
            if scorer is not None:
                numbers = np.zeros(batch_size, np.int64)
                numbers[:count] = index
                codes |= scorer(filled, numbers, count)
            return {name: codes[name][:count] for name in all_names}
        except tf.errors.ResourceExhaustedError as error:
            raise UserError(
                f"out of memory with {batch_size} images at a time; name fewer with --batch-size"
            ) from error

    return encoder


def encode_shards(
    folder: CodesFolder,
    manifest: Manifest,
    shards: Sequence[ShardRange],
    source: Source,
    encoder: Encoder,
    *,
    batch_size: int,
    counter: Callable[[int], None],
) -> list[bytes]:
    """Encodes images, writes the files of their codes, and returns the keys of images that may not decode exactly.

    Args:
        folder: the folder to write to.
        manifest: the manifest of the folder.
        shards: the files to write, in the order of the manifest.
        source: the data set.
        encoder: the function that `make_encoder` returns.
        batch_size: number of images in a batch.
        counter: function that is called with the number of encoded images.

    Returns:
        The keys of images whose v is written and `far_from_training`.

    Raises:
        DataError: where an image cannot be read.
        InversionError: where a code is not finite.
        UserError: where a file cannot be written, or the memory is too small.
    """
    done = 0
    far: list[bytes] = []
    for group in _group_neighbours(shards):
        split, start, stop = group[0].split, group[0].start, group[-1].stop
        # A batch may belong to two files; `left` holds its rows for the next file.
        rows = encode_images(source, split, start, stop, encoder, batch_size)
        left: Rows | None = None
        for shard in group:
            with folder.shard(manifest, shard) as write:
                while left is not None or (left := next(rows, None)) is not None:
                    inside = int(np.searchsorted(left["index"], shard.stop))
                    inner, left = _split_rows(left, inside)
                    if inside:
                        keys = [key_bytes(source.key(split, int(index))) for index in inner["index"]]
                        _require_finite(inner, manifest.fields, keys)
                        if "v" in inner:
                            far += itertools.compress(keys, far_from_training(inner["v"]))
                        write(keys, inner["label"], inner)
                        counter(done + int(inner["index"][-1]) + 1 - shard.start)
                    if left is not None:
                        break
            done += shard.stop - shard.start
            counter(done)
    return far


def hash_keys(source: Source, splits: Sequence[str]) -> str:
    """Returns the SHA-256 of the names of all images in some splits, hexadecimal; "" for images without names."""
    digest = hashlib.sha256()
    named = [split for split in splits if source.splits[split].keys is not None]
    for split in named:
        for index in range(source.splits[split].size):
            digest.update(key_bytes(source.key(split, index)) + b"\n")
    return digest.hexdigest() if named else ""


def _group_neighbours(shards: Sequence[ShardRange]) -> Iterator[list[ShardRange]]:
    """Yields lists of files with successive images, so that a data set is read in few passes."""
    group: list[ShardRange] = []
    for shard in shards:
        if group and (group[-1].split, group[-1].stop) != (shard.split, shard.start):
            yield group
            group = []
        group.append(shard)
    if group:
        yield group


def encode_images(
    source: Source, split: str, start: int, stop: int, encoder: Encoder, batch_size: int
) -> Iterator[Rows]:
    """Yields the codes of the images from `start` up to `stop`, with "index" and "label", batch by batch in order."""
    options = tf.data.Options()
    options.deterministic = True
    examples = source.split(split).examples(start, stop).batch(batch_size).with_options(options).prefetch(2)
    images = examples.as_numpy_iterator()
    while True:
        try:
            with source.guard():
                batch = next(images, None)
        except tf.errors.OpError as error:
            raise DataError(f"cannot read {source.title}: {one_line(error)}") from error
        if batch is None:
            return
        labels = check_labels(source, batch["label"])
        yield {"index": batch["index"], "label": labels, **encoder(batch["image"], batch["index"], labels)}


def _split_rows(rows: Rows, row: int) -> tuple[Rows, Rows | None]:
    if row == len(rows["index"]):
        return rows, None
    return {n: values[:row] for n, values in rows.items()}, {n: values[row:] for n, values in rows.items()}


def _require_finite(rows: Rows, fields: Sequence[Field], keys: Sequence[bytes]) -> None:
    for field in fields:
        finite = np.isfinite(rows[field.name]).reshape(len(keys), -1).all(1)
        if not finite.all():
            key = keys[int(np.argmin(finite))].decode()
            raise InversionError(f"{field.name} of the image {key} is not finite; these weights cannot encode it")
