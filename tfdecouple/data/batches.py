"""Functions that make `tf.data` datasets and iterators of image batches, for training and evaluation."""

import math
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tfdecouple.config import DataConfig
from tfdecouple.data.sources import Source
from tfdecouple.data.splits import ALGORITHM, fold_into_seed
from tfdecouple.errors import DataError
from tfdecouple.system.progress import Counter


def count_epoch_steps(source: Source, batch_size: int) -> int:
    """Returns how many complete batches of training images an epoch has; raises DataError if there is none."""
    size = source.sizes["train"]
    if batch_size > size:
        raise DataError(f"the batch size is {batch_size}, but {source.name} has {size} training images; use fewer")
    return size // batch_size


def make_training_batches(
    source: Source,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    micro_batches: int = 1,
    context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Returns an infinite `tf.data.Dataset` of augmented training batches, shuffled anew for each epoch (appendix C.1).

    The batch with index k, counted from 0 over all epochs, depends only on `source`, `config`, `batch_size`, `seed` and
    k. A run that is resumed with `start_step=k` therefore gets the same images, to the bit, as an unbroken run. All
    random operations are stateless, because `tf.data.Dataset.shuffle` would also depend on `tf.random.set_seed`.

    Args:
        source: the opened data set.
        config: the data config. If its `pad_and_crop` reaches the shorter side of the images, DataError is raised.
        batch_size: count of images in a batch, over all devices; a multiple of `micro_batches` times the replica count.
        seed: the seed of order and augmentation, an int below 2**63.
        start_step: index k of the first batch. Earlier images of the same epoch are neither decoded nor augmented.
        micro_batches: count M of equal parts of each batch, which the dataset yields one after another.
        context: the context that `tf.distribute.Strategy.distribute_datasets_from_function` gives to an input pipeline.
            With P pipelines and R replicas, pipeline p decodes only the p-th of P equal slices of every part, and
            yields the slice as R / P batches, one for each of its replicas. None for one pipeline and one replica.

    Returns:
        A dataset of dicts: "image" uint8 [B, height, width, channels] and "label" int32 [B] (-1 for none), where B is
        `batch_size / M`, or `batch_size / M / R` with a `context`.
    """
    context = context or tf.distribute.InputContext()
    steps = count_epoch_steps(source, batch_size)
    shorter = min(source.image_shape[:2])
    if config.pad_and_crop >= shorter:
        raise DataError(
            f"data.pad_and_crop is {config.pad_and_crop}; it must be below the shorter side of the images, {shorter}"
        )
    split = source.open_split("train")
    first_epoch, first_step = divmod(start_step, steps)
    images_per_epoch = steps * batch_size
    micro_batch = batch_size // micro_batches
    # Two numbers are folded into the seed, so that order and augmentation are independent.
    order_seed, augmentation_seed = (fold_into_seed(tf.constant([seed, 0], tf.int64), number) for number in (0, 1))

    # AutoGraph would take 0.3 s to rewrite the functions of a pipeline, which have no control flow on tensors.
    @tf.autograph.experimental.do_not_convert
    def epoch_records(epoch: tf.Tensor) -> tf.data.Dataset:
        order = split.shuffle_records(fold_into_seed(order_seed, epoch)).take(images_per_epoch)
        done = tf.where(tf.equal(epoch, first_epoch), tf.constant(first_step * batch_size, tf.int64), 0)
        return order.enumerate(epoch * images_per_epoch).skip(done)

    # The position in the batch decides which pipeline decodes an image, because the image's noise depends on it, too.
    slice_size = micro_batch // context.num_input_pipelines

    @tf.autograph.experimental.do_not_convert
    def is_local(number: tf.Tensor, record: tf.Tensor) -> tf.Tensor:
        return tf.equal(number % micro_batch // slice_size, context.input_pipeline_id)

    @tf.autograph.experimental.do_not_convert
    def make_example(number: tf.Tensor, record: tf.Tensor) -> dict[str, tf.Tensor]:
        image, label = split.decode_record(record)
        seed = fold_into_seed(augmentation_seed, number)
        return {"image": augment_image(image, seed, config.pad_and_crop, config.horizontal_flip), "label": label}

    # Decoding comes after the loop over epochs, so that tf.data prefetches images of the next epoch in time.
    records = tf.data.Dataset.range(first_epoch, tf.int64.max).flat_map(epoch_records)
    if context.num_input_pipelines > 1:
        records = records.filter(is_local)
    batches = (
        records.map(make_example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(context.get_per_replica_batch_size(micro_batch), drop_remainder=True)
        .apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    )
    return _set_pipeline_options(batches)


def round_batch_size(batch_size: int, count: int, devices: int) -> int:
    """Returns min(batch_size, count), rounded up to a multiple of the count of `devices`, for `count` images.

    >>> round_batch_size(250, 1000, 4), round_batch_size(250, 5, 2)
    (252, 6)
    """
    return math.ceil(min(batch_size, count) / devices) * devices


def make_evaluation_batches(
    source: Source, split: str, *, batch_size: int, limit: int = 0, indices: np.ndarray | None = None
) -> tf.data.Dataset:
    """Returns a `tf.data.Dataset` of batches of equal size, which have each image of a split once, not augmented.

    `batch_size` is the count B of images in a batch, over all devices. `limit` is the count of images to take from the
    beginning of the split; 0 for all. `indices`, int [n], in any order, choose images of the split; None for all.

    The batches are dicts: "image" uint8 [B, height, width, channels], "label" int32 [B] (-1 for none), "index" int64
    [B], the images' indices in the split, and "weight" float32 [B], 0 for padding of the last batch, otherwise 1.
    """
    examples = _decode_examples(source, split, indices)
    if limit:
        examples = examples.take(limit)

    weighted = examples.map(lambda example: {**example, "weight": tf.ones([])})
    zeros = {name: tf.zeros(spec.shape, spec.dtype) for name, spec in weighted.element_spec.items()}
    padding = tf.data.Dataset.from_tensors(zeros).repeat(batch_size - 1)
    return _set_pipeline_options(weighted.concatenate(padding).batch(batch_size, drop_remainder=True))


def slice_for_replicas(batches: tf.data.Dataset, context: tf.distribute.InputContext) -> tf.data.Dataset:
    """Cuts each evaluation batch into a slice per replica; returns a dataset of the slices of one input pipeline.

    With P pipelines and R replicas, pipeline p yields R / P slices of each batch, from index p * R / P on. A slice of a
    tensor `[batch, ...]` is a tensor `[batch / R, ...]`. `context` gives p, P and R.
    """
    replicas = context.num_replicas_in_sync
    count = replicas // context.num_input_pipelines
    first = context.input_pipeline_id * count

    @tf.autograph.experimental.do_not_convert
    def slice_batch(batch: tf.Tensor) -> tf.Tensor:
        def cut(values: tf.Tensor) -> tf.Tensor:
            return tf.reshape(values, [replicas, -1, *values.shape[1:]])[first:][:count]

        return tf.nest.map_structure(cut, batch)

    return batches if replicas == 1 else batches.map(slice_batch).unbatch()


def load_images(source: Source, split: str, count: int, at_most: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first `count` readable images of a split, uint8 [count, ...], and their labels, int32 [count].

    With `at_most`, the function returns all images of a split that has fewer than `count`, but at least one. DataError
    is raised if the split is unknown or has too few images, or if an image is unreadable and not skipped.
    """
    with source.guard():
        loaded = next(source.open_split(split).decode_examples().take(count).batch(count).as_numpy_iterator(), None)
    available = 0 if loaded is None else len(loaded["label"])
    if loaded is None or (available < count and not at_most):
        raise DataError(f"{count} images were requested; {source.name} has {available} of them in {split}")
    return loaded["image"], loaded["label"]


def read_chosen_batches(
    source: Source, split: str, indices: np.ndarray, *, batch_size: int, title: str = ""
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of the images of a split with the indices `indices`, int `[n]`, in ascending order.

    Progress is shown under `title`, such as "encoding", by default "reading SPLIT".
    A batch is a dict of "image" uint8 [b, height, width, channels], "label" int32 [b] (-1 for none) and "index" int64
    [b]; the last batch may be smaller. A repeated index counts once. Other images are not decoded, except that with
    `data.on_bad_image` "skip" the next readable image replaces an unreadable one. DataError is raised if the split is
    unknown, an index is too large, or an image is unreadable and not skipped.
    """
    done, batches = 0, _decode_examples(source, split, indices).batch(batch_size)
    with source.guard(), Counter(title or f"reading {split}", len(indices)) as counter:
        for batch in _set_pipeline_options(batches).as_numpy_iterator():
            yield batch
            counter(done := done + len(batch["label"]))


def _decode_examples(source: Source, split: str, indices: np.ndarray | None) -> tf.data.Dataset:
    opened = source.open_split(split)
    if indices is None:
        return opened.decode_examples()
    chosen = np.unique(np.asarray(indices, np.int64))
    if len(chosen) and chosen[-1] >= opened.size:
        raise DataError(f"there is no image {chosen[-1]} in {split} of {source.name}; it has {opened.size}")
    return opened.decode_examples(chosen, replace_unreadable=True)


def _set_pipeline_options(batches: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # Autotuning is off, because the end of a pipeline waits for its tuning thread, which possibly sleeps for long.
    options.autotune.enabled = False
    # Workers share out images, not files, because a data set can have fewer files than there are workers.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return batches.with_options(options).prefetch(2)


def augment_image(image: tf.Tensor, seed: tf.Tensor, pad: int, horizontal_flip: bool) -> tf.Tensor:
    """Shifts and mirrors an image, uint8 [height, width, channels], at random; `seed`, int64 [2], decides how.

    The image is shifted by at most `pad` pixels along each axis; its reflection fills the gap, as in
    `numpy.pad(mode="reflect")`. If `horizontal_flip` is true, the image is mirrored with probability 1/2.
    """
    if not (horizontal_flip or pad):
        return image
    height, width = image.shape[:2]
    rows, columns = tf.range(height), tf.range(width)
    draws = tf.random.stateless_uniform([3], seed, alg=ALGORITHM)
    if pad:
        # Shift and flip only change the indices of rows and columns, which is faster than `tf.pad` and `tf.slice`.
        shifts = tf.cast(tf.floor(draws[:2] * (2 * pad + 1)), tf.int32) - pad
        rows, columns = _reflect_indices(rows + shifts[0], height - 1), _reflect_indices(columns + shifts[1], width - 1)
    if horizontal_flip:
        columns = tf.where(draws[2] < 0.5, tf.reverse(columns, [0]), columns)
    return tf.gather(tf.gather(image, rows), columns, axis=1)


def _reflect_indices(indices: tf.Tensor, last: int) -> tf.Tensor:
    return last - tf.abs(last - tf.abs(indices))
