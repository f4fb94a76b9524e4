"""Functions that encode the images of a data set, batch by batch, and write their codes into files."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from tfdecouple.arguments import as_labels
from tfdecouple.corpus.code_files import SCORES, Field, ShardRange, encode_image_key
from tfdecouple.corpus.codes_folder import CodesFolder
from tfdecouple.data import Source
from tfdecouple.data.labels import check_labels
from tfdecouple.errors import DataError, UserError, one_line
from tfdecouple.metrics.metric import require_finite_values
from tfdecouple.metrics.outliers import OutlierScorer
from tfdecouple.model import DecoupledModel
from tfdecouple.model.codes import far_from_training
from tfdecouple.numerics.tf32 import full_float32

# A function of images, their indices in the split and their labels. It returns {name of a field: array of codes}.
ImageEncoder = Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, np.ndarray]]
Rows = dict[str, np.ndarray]


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
    by_label = model.config.has_class_codes

    @tf.function(input_signature=specs, autograph=False)
    def encode(images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        codes = {}
        if "v" in names:
            codes["z"], codes["v"] = model.encode(images, labels if by_label else None)[:2]
        elif by_label:
            codes["z"] = tf.gather(model.class_codes, labels)
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
    """Encodes images into code files; returns the keys of images that may decode inexactly (`far_from_training`).

    `shards` are the code files to write, in the order of the manifest. `encoder` is the result of `make_image_encoder`,
    and `counter` receives the count of images encoded so far. Without v among the codes, no key is returned. An image
    that cannot be read raises DataError, a code that is not finite RunError, and a full disk or memory UserError.
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
    digest, keys = hashlib.sha256(), [key for split in splits for key in source.splits[split].keys or ()]
    for key in keys:
        digest.update(encode_image_key(key) + b"\n")
    return digest.hexdigest() if keys else ""


def _read_batches(source: Source, split: str, indices: np.ndarray, batch_size: int) -> Iterator[Rows]:
    try:
        with source.guard():
            examples = source.open_split(split).decode_examples(indices)
            yield from examples.batch(batch_size).prefetch(2).as_numpy_iterator()
    except tf.errors.OpError as error:
        raise DataError(f"cannot read {source.title}: {one_line(error)}") from error
