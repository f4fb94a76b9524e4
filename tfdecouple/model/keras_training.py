"""Functions of Keras' `fit`, `evaluate` and `predict`: metrics, checks before the first step, and the steps."""

from __future__ import annotations

import itertools
import math
import operator
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.arguments import as_labels, as_tensor, require_images
from tfdecouple.config import ModelConfig, TrainingConfig, from_plain
from tfdecouple.errors import DataError, DivergedError, UserError, warn_user
from tfdecouple.model.gradient import Share, differentiate, in_slot, judge_step
from tfdecouple.model.networks import Networks
from tfdecouple.model.noise import u_noise, z_noise
from tfdecouple.runtime.numerics import sizes

# The options of `training.*` that `compile` takes beside Keras' own.
OPTIONS = ("kl_weight", "precision", "memory", "jit_compile", "seed", "init_images", "max_skipped_steps")
# Arguments of Keras' `compile` that the bound leaves no room for.
FIXED = ("loss", "loss_weights", "metrics", "weighted_metrics")
TERMS = ("reconstruction", "kl", "dequantization")
# The precision of training under Keras' global policy.
_POLICIES = {"mixed_bfloat16": "mixed_bfloat16", "bfloat16": "mixed_bfloat16"}


def compile_options(keras_options: dict[str, Any], **options: Any) -> TrainingConfig:
    """Returns the options of training that `compile` was given, checked.

    Args:
        keras_options: arguments for Keras' own `compile`.
        **options: `OPTIONS` by name.

    Raises:
        UserError: for a loss or metrics of one's own, or a global policy in float16.
        ConfigError: for an impossible value.
    """
    for name in FIXED:
        if keras_options.get(name) is not None:
            raise UserError(
                f"compile got {name}; the loss is the negative evidence lower bound and its terms are the metrics: "
                "leave it out"
            )
    policy = keras.config.dtype_policy().name
    if options["precision"] is None and "float16" in policy and policy not in _POLICIES:
        raise UserError(
            f"Keras' policy is {policy}, in which these models do not train; take mixed_bfloat16, or "
            "compile(precision='float32')"
        )
    options["precision"] = options["precision"] or _POLICIES.get(policy, "float32")
    # "auto" of Keras is no wish for XLA.
    options["jit_compile"] = options["jit_compile"] is True
    return from_plain(TrainingConfig, options, "training.")


# --- metrics ---


class BoundMetrics:
    """Sums of the bound's terms over the images since Keras reset its metrics, and counts of skipped steps.

    Create it inside the scope of the strategy that trains. The sums that are added are those of all devices.

    Args:
        bits_per_dim: from nats per image to bits per colour value.
        kl_weight: of the KL term in the loss.
        most_skipped: training has diverged after so many steps in a row that were not applied.

    Attributes:
        metrics: `loss`, which training minimises, in nats per image; `bits_per_dim`; the terms in nats per image.
        skipped: steps in a row that were not applied.
        not_applied: steps of this epoch that were not applied.
    """

    def __init__(self, bits_per_dim: Callable[[Any], Any], kl_weight: float, most_skipped: int):
        self._sums, self.skipped, self.not_applied = (
            tf.Variable(start, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
            for start in (np.zeros(len(TERMS) + 1), np.int64(0), np.int64(0))
        )
        self._most_skipped = most_skipped

        def loss(terms: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(terms * tf.constant([1.0, kl_weight, 1.0], tf.float64))

        def bound(terms: tf.Tensor) -> tf.Tensor:
            return bits_per_dim(tf.reduce_sum(terms))

        self.metrics = [_MetricOfTerms("loss", self._sums, loss), _MetricOfTerms("bits_per_dim", self._sums, bound)]
        self.metrics += [_MetricOfTerms(name, self._sums, operator.itemgetter(i)) for i, name in enumerate(TERMS)]

    @property
    def images(self) -> tf.Tensor:
        """How many images were counted, int64."""
        return tf.cast(self._sums[-1], tf.int64)

    @property
    def converges(self) -> tf.Tensor:
        """Whether training has not diverged."""
        return self.skipped < self._most_skipped

    def results(self) -> dict[str, tf.Tensor]:
        """Returns the metrics by name."""
        return {metric.name: metric.result() for metric in self.metrics}

    def add(self, sums: tf.Tensor) -> None:
        """Counts images.

        Args:
            sums: of the three terms over the images, in nats, and how many they are, float64 `[4]`.
        """
        self._sums.assign_add(sums)

    def count_step(self, applied: tf.Tensor, sums: tf.Tensor) -> None:
        """Counts a step, and its images where it was applied.

        Args:
            applied: whether it was.
            sums: as for `add`.
        """
        self.add(tf.where(applied, sums, tf.zeros_like(sums)))
        # The count stops once training has diverged, however many steps are taken before the host reads it.
        skipped = self.skipped + tf.cast(self.converges, tf.int64)
        self.skipped.assign(tf.where(applied, tf.zeros_like(self.skipped), skipped))
        self.not_applied.assign_add(tf.cast(~applied, tf.int64))

    def require_convergence(self) -> None:
        """Ends a training that has diverged.

        Raises:
            DivergedError: in one line.
        """
        if not bool(self.converges):
            raise DivergedError(
                f"training diverged: {int(self.skipped.numpy())} steps in a row were not applied, for values that are "
                "not finite or inversions that came back too far off; the model has the weights before them. A smaller "
                "learning rate, a warm-up or clipping may help (docs/divergence.md); compile before you fit again"
            )


class _MetricOfTerms(keras.metrics.Metric):
    """A figure made of the mean terms of the bound; NaN where no image was counted, so that no callback takes it."""

    def __init__(self, name: str, sums: tf.Variable, figure: Callable[[tf.Tensor], tf.Tensor]):
        super().__init__(dtype="float64", name=name)
        self._bound_sums, self._figure = sums, figure

    def update_state(self, *arguments: Any, **options: Any) -> None:
        """Does nothing: `BoundMetrics.add` counts for all of them."""

    def result(self) -> tf.Tensor:
        """Returns the figure, a float64 scalar."""
        sums = tf.convert_to_tensor(self._bound_sums)
        return self._figure(sums[:-1] / sums[-1])

    def reset_state(self) -> None:
        """Forgets the images of all figures, which share their sums."""
        self._bound_sums.assign(tf.zeros_like(self._bound_sums))


class SkippedSteps(keras.callbacks.Callback):
    """Warns of steps that were not applied, and ends a training that has diverged.

    It reads from the devices every `max_skipped_steps` steps: a GPU would stand still at each read.

    Args:
        metrics: what the steps count in.
        every: steps between two reads.
    """

    def __init__(self, metrics: BoundMetrics, every: int):
        super().__init__()
        self._bound_metrics, self._every, self._steps = metrics, every, 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Counts from 0 on."""
        self._bound_metrics.not_applied.assign(0)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Reads the count, where it is time."""
        self._steps += 1
        if self._steps % self._every == 0:
            self._bound_metrics.require_convergence()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Reads the counts, and warns."""
        self._bound_metrics.require_convergence()
        if count := int(self._bound_metrics.not_applied.numpy()):
            warn_user(
                f"epoch {epoch + 1}: {count} step{'s were' if count > 1 else ' was'} not applied, for values that are "
                "not finite or inversions that came back too far off (docs/divergence.md)"
            )


# --- the images that users give ---


def unpack_images(data: Any) -> tuple[Any, Any]:
    """Returns the images of data that Keras hands to a step, or a user to `fit`, and their labels or None.

    Args:
        data: images; a tuple of images and labels; or a dict with `image` and perhaps `label`, as TensorFlow Datasets
            gives it.

    Raises:
        UserError: for weights of images.
        DataError: for a dict without `image`.
    """
    images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
    if weights is not None:
        raise UserError("every image counts alike in the bound: leave out sample_weight and class_weight")
    # fit((images, labels)) is to Keras one input of two parts; a list of numbers is one array.
    is_pair = isinstance(images, tuple | list) and labels is None and 1 <= len(images) <= 2
    if is_pair and all(hasattr(part, "shape") or tf.is_tensor(part) for part in images):
        images, labels = [*images, None][:2]
    if isinstance(images, dict):
        if "image" not in images:
            raise DataError(f"the data has {', '.join(map(str, images))}; it must have 'image'")
        images, labels = images["image"], images.get("label", labels)
    return images, labels


def check_images(x: Any, y: Any, config: ModelConfig) -> None:
    """Refuses data that are no images of a model, or lack labels that it needs, before anything is done with them.

    Generators and the like are checked as they are read. Labels are ignored with a warning by a model that knows none.

    Raises:
        DataError: for images of another type or shape, or labels that are missing or unknown.
    """
    if isinstance(x, tf.data.Dataset):
        images, labels = unpack_images(x.element_spec)
        if tf.TensorShape(images.shape).rank == 3:
            raise DataError("the data set gives single images; call dataset.batch(64), or of another size, before")
        require_images(images, config.image_shape)
    elif is_lazy(x):
        labels = y
    else:
        images, labels = unpack_images(x if y is None else (x, y))
        if not hasattr(images, "dtype"):
            images = as_tensor(images, "images", DataError)
        require_images(images, config.image_shape)
        if config.has_classes:
            as_labels(labels, len(images), config.classes, config.has_class_codes)
    if labels is not None and not config.has_classes:
        warn_user("this model knows no labels: those that are given are ignored")


def check_fit(model: Networks, x: Any, y: Any, batch_size: int | None, split: float, validation: Any) -> None:
    """Refuses training and validation data of `fit`, and what several devices do not allow.

    Args:
        model: a compiled model.
        x: of `fit`, as the others.
        y: labels.
        batch_size: of arrays.
        split: `validation_split`.
        validation: `validation_data`, or None.

    Raises:
        DataError: as `check_images`, or for a split of data that come batch by batch.
        UserError: for devices.
    """
    if split and validation is None and is_lazy(x):
        raise DataError(
            f"validation_split is {split}, which takes the last images of arrays; of a data set or another iterable "
            "give those of the validation as validation_data"
        )
    check_images(x, y, model.config)
    if validation is not None:
        is_pair = isinstance(validation, tuple) and len(validation) == 2
        images, labels = validation if is_pair else (validation, None)
        with warnings.catch_warnings():
            # Said of the training images already.
            warnings.filterwarnings("ignore", "this model knows no labels")
            check_images(images, labels, model.config)
        split = 0.0
    if model.distribute_strategy.num_replicas_in_sync > 1:
        _check_devices(model, x, batch_size, split)


def _check_devices(model: Networks, x: Any, batch_size: int | None, split: float) -> None:
    strategy = model.distribute_strategy
    count = strategy.num_replicas_in_sync
    several_machines = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    if several_machines or not isinstance(strategy, tf.distribute.MirroredStrategy):
        raise UserError(
            f"fit runs on one device or under a MirroredStrategy, not under a {type(strategy).__name__}: train by "
            "python train.py, on several machines, too (docs/cluster.md)"
        )
    if model.optimizer.gradient_accumulation_steps:
        raise UserError("gradient_accumulation_steps works on one device alone; train by python train.py")
    for what, variable in (("model", model.initialized), ("optimizer", model.optimizer.iterations)):
        if not isinstance(variable.value, tf.distribute.DistributedValues):
            raise UserError(f"the {what} was made outside of the scope of the strategy; make it within")
    if isinstance(x, tf.data.Dataset):
        size = unpack_images(x.element_spec)[0].shape[0]
        if size is None:
            raise DataError(
                f"on {count} devices all batches must be of one size: dataset.batch(size, drop_remainder=True)"
            )
    elif is_lazy(x):
        return
    else:
        size, images = batch_size or 32, trained_on(unpack_images(x)[0], split)
        if images % size:
            raise DataError(
                f"on {count} devices all batches must be of one size: {images} images are no multiple of "
                f"batch_size={size}"
            )
    if size % count:
        raise DataError(f"batches of {size} images cannot be divided evenly among {count} devices")


def trained_on(images: Any, split: float) -> int:
    """Returns on how many images of an array Keras trains: it takes the last ones for the validation."""
    return math.floor(len(images) * (1 - split))


def first_images(x: Any, count: int, seed: int) -> tuple[Any, Any]:
    """Takes images to start a model from.

    Args:
        x: what `fit` was given: of arrays images are drawn from all over them, of others the first are taken.
        count: how many are wanted; fewer come where there are fewer.
        seed: of that draw.

    Returns:
        The images, uint8 `[n, height, width, channels]`, and x, for a generator one that gives all of it again.
    """
    if isinstance(x, keras.utils.PyDataset):
        numbers = itertools.count() if x.num_batches is None else range(x.num_batches)
        return _gather((x[number] for number in numbers), count)[0], x
    if is_lazy(x) or isinstance(x, tf.data.Dataset):
        images, read = _gather(x, count)
        return images, (_replay(read, x) if isinstance(x, Iterator) else x)
    images = np.asarray(unpack_images(x)[0])
    chosen = np.random.default_rng(seed).permutation(len(images))[:count]
    return images[np.sort(chosen)], x


def _gather(batches: Iterable[Any], count: int) -> tuple[np.ndarray, list[Any]]:
    """Returns the first images of some batches, and the batches that were read for them."""
    images, read, found = [], [], 0
    for batch in batches:
        read.append(batch)
        images.append(np.asarray(unpack_images(batch)[0]))
        found += len(images[-1])
        if found >= count:
            break
    if not found:
        raise DataError("there are no images to train on")
    return np.concatenate(images)[:count], read


def _replay(read: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    # Keras takes a generator, and no other iterator.
    yield from itertools.chain(read, rest)


def as_keras_takes(x: Any) -> Any:
    """Returns data as they are, but a generator as one of tuples, which Keras wants of it."""
    if not isinstance(x, types.GeneratorType):
        return x
    return (batch if isinstance(batch, tuple) else (batch,) for batch in x)


def is_lazy(x: Any) -> bool:
    """Returns whether data come batch by batch, and show what they are only then."""
    is_array = isinstance(x, tuple | list | dict) or tf.is_tensor(x) or hasattr(x, "__array__")
    return isinstance(x, keras.utils.PyDataset) or not is_array


def with_callbacks(callbacks: Any, watch: SkippedSteps, names: set[str]) -> Any:
    """Returns the callbacks of `fit` with ours, those that monitor one of our metrics set to look for less of it.

    Args:
        callbacks: of the user: one, several, a `CallbackList` or None.
        watch: ours.
        names: of our metrics.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.append(watch)
    else:
        callbacks = [watch, *(callbacks if isinstance(callbacks, list | tuple) else filter(None, [callbacks]))]
    for callback in getattr(callbacks, "callbacks", callbacks):
        monitored = str(getattr(callback, "monitor", None)).removeprefix("val_")
        if getattr(callback, "mode", None) == "auto" and monitored in names:
            # Keras knows the direction of its own metrics alone.
            callback.mode = "min"
    return callbacks


# --- steps, on each device ---


def train_step(model: Networks, data: Any) -> dict[str, tf.Tensor]:
    """Takes a step on this device's images of a batch: bound, gradient, and an update where it can be trusted."""
    training, metrics = model.require_compiled("fit")
    (images, labels), replica = _take_images(model, data), tf.distribute.get_replica_context()
    local = sizes(images)[0]
    batch = local * replica.num_replicas_in_sync
    seed = randomness.fold(training.seed, "step", tf.convert_to_tensor(model.optimizer.iterations))
    if model.optimizer.gradient_accumulation_steps:
        # Several steps are one iteration of the optimizer.
        seed = randomness.fold(seed, metrics.images)
    start = tf.cast(replica.replica_id_in_sync_group, tf.int32) * local
    share = differentiate(
        model,
        images,
        labels,
        training,
        seed=seed,
        own=slice(start, start + local),
        batch_size=batch,
        trainable=model.trainable_variables,
        moving=moving_statistics(model),
        kl_weight=training.kl_weight,
    )
    share = _reduce(share, replica)
    verdict = judge_step(share, training.precision)
    applied = verdict.finite & verdict.inverted & metrics.converges
    images_counted = tf.cast(batch, tf.float64)
    sums = tf.concat([tf.cast(tf.stack(share.terms), tf.float64) * images_counted, [images_counted]], 0)

    def update(strategy: Any, applied: Any, gradients: list[Any], moving: list[Any], sums: Any) -> None:
        applied = _first(strategy, applied)

        def apply() -> tf.Tensor:
            strategy.extended.call_for_each_replica(_apply_gradients, args=(model, gradients))
            for variable, value in zip(moving_statistics(model), moving, strict=True):
                strategy.extended.update(variable.value, lambda old, new: old.assign(new), args=(value,), group=False)
            return tf.constant(True)

        # Keras' optimizers cannot be given an update by nothing.
        tf.cond(applied, apply, lambda: tf.constant(False))
        metrics.count_step(applied, _first(strategy, sums))

    replica.merge_call(update, args=(applied, share.gradients, share.moving, sums))
    return {**metrics.results(), "skipped_steps": metrics.not_applied + 0}


def test_step(model: Networks, data: Any) -> dict[str, tf.Tensor]:
    """Measures this device's images of a batch."""
    training, metrics = model.require_compiled("evaluate")
    replica = tf.distribute.get_replica_context()
    images, labels, local = _pad_empty(*_take_images(model, data), replica)
    index = metrics.images + _images_before(local, replica) + tf.range(tf.shape(images, tf.int64)[0])
    which = training.seed, tf.zeros_like(index), index
    config = model.config
    noise = z_noise(config.latent_dim, *which), u_noise(config.image_shape, *which, config.has_dequantizer)
    elbo = model.elbo_from_noise(images, *noise, labels=labels)
    terms = tf.cast(tf.stack([elbo.reconstruction, elbo.kl, elbo.dequantization], -1), tf.float64)
    sums = tf.concat([tf.reduce_sum(terms[:local], 0), [tf.cast(local, tf.float64)]], 0)
    sums = replica.all_reduce(tf.distribute.ReduceOp.SUM, sums)
    replica.merge_call(lambda strategy, sums: metrics.add(_first(strategy, sums)), args=(sums,))
    return metrics.results()


def predict_step(model: Networks, data: Any) -> Any:
    """Encodes this device's images of a batch; v alone where there is no z."""
    images, labels, local = _pad_empty(*_take_images(model, data), tf.distribute.get_replica_context())
    codes = model.encode(images, labels)
    return codes.v[:local] if codes.z is None else (codes.z[:local], codes.v[:local])


def moving_statistics(model: Networks) -> list[keras.Variable]:
    """Returns the moving statistics of batch normalisation."""
    return [variable for variable in model.non_trainable_variables if variable.path.endswith(("_mean", "_variance"))]


def run_within(context: Callable[[], Any], function: Any) -> Callable[..., Any]:
    """Returns a function that runs another one in a context."""

    def run(*arguments: Any) -> Any:
        with context():
            return function(*arguments)

    return run


def _take_images(model: Networks, data: Any) -> tuple[tf.Tensor, Any]:
    """Returns images, and their labels where the model knows labels and there are some."""
    images, labels = unpack_images(data)
    images = tf.convert_to_tensor(images)
    require_images(images, model.config.image_shape)
    return images, model.wanted_labels(labels)


def _reduce(share: Share, replica: Any) -> Share:
    """Adds up the devices' shares (of the statistics the mean), for all devices."""
    count = replica.num_replicas_in_sync
    if count == 1:
        return share
    add, mean = tf.distribute.ReduceOp.SUM, tf.distribute.ReduceOp.MEAN
    error = in_slot(share.inversion_error, tf.cast(replica.replica_id_in_sync_group, tf.int32), count)
    return Share(
        replica.all_reduce(add, share.gradients),
        replica.all_reduce(mean, share.moving) if share.moving else [],
        replica.all_reduce(add, share.terms),
        tf.reduce_max(replica.all_reduce(add, error)),
    )


def _apply_gradients(model: Networks, gradients: list[tf.Tensor]) -> None:
    count, optimizer = tf.distribute.get_replica_context().num_replicas_in_sync, model.optimizer
    if count > 1:
        # Keras clips before it adds up over the devices, each its own share: here all have the sum already.
        if optimizer.clipnorm:
            gradients = [tf.clip_by_norm(gradient, optimizer.clipnorm) for gradient in gradients]
        elif optimizer.global_clipnorm:
            gradients = tf.clip_by_global_norm(gradients, optimizer.global_clipnorm)[0]
        elif optimizer.clipvalue:
            most = optimizer.clipvalue
            gradients = [tf.clip_by_value(gradient, -most, most) for gradient in gradients]
        gradients = [gradient / count for gradient in gradients]
    optimizer.apply(gradients, model.trainable_variables)


def _first(strategy: Any, value: Any) -> tf.Tensor:
    """Returns the value of the first device, where all have the same."""
    return strategy.experimental_local_results(value)[0]


def _pad_empty(images: tf.Tensor, labels: Any, replica: Any) -> tuple[tf.Tensor, Any, tf.Tensor]:
    """Returns images and labels, and how many there were, int64; where a device of several has none, one of zeros."""
    local = tf.shape(images, tf.int64)[0]
    if replica.num_replicas_in_sync > 1:
        # A convolution has no answer to an empty batch.
        missing = tf.maximum(1 - local, 0)
        images = tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]])
        labels = None if labels is None else tf.pad(labels, [[0, missing]])
    return images, labels, local


def _images_before(local: tf.Tensor, replica: Any) -> tf.Tensor:
    """Returns how many images of a batch the devices before this one have."""
    count = replica.num_replicas_in_sync
    if count == 1:
        return tf.zeros_like(local)
    number = tf.cast(replica.replica_id_in_sync_group, tf.int32)
    all_sizes = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.one_hot(number, count, local, 0, dtype=tf.int64))
    return tf.reduce_sum(tf.where(tf.range(count) < number, all_sizes, 0))
