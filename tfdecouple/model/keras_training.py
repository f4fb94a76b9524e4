"""The parts of Keras' `fit`, `evaluate` and `predict`: metrics, checks before the first step, and the steps."""

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
from tfdecouple.model.gradient import differentiate, judge_step
from tfdecouple.model.networks import Networks
from tfdecouple.model.noise import u_noise, z_noise
from tfdecouple.runtime.numerics import sizes

# Names of the training options (`training.*`) that `compile` takes in addition to Keras' arguments.
OPTIONS = ("kl_weight", "precision", "memory", "jit_compile", "seed", "init_images", "max_skipped_steps")
# Names of arguments of Keras' `compile` that are refused, because the loss is the bound.
FIXED = ("loss", "loss_weights", "metrics", "weighted_metrics")
TERMS = ("reconstruction", "kl", "dequantization")
# The precision of training for each global Keras policy; any other policy gives float32 or is refused.
_POLICIES = {"mixed_bfloat16": "mixed_bfloat16", "bfloat16": "mixed_bfloat16"}


def compile_options(keras_options: dict[str, Any], **options: Any) -> TrainingConfig:
    """Returns the options of training, checked, from the arguments of `compile`.

    Args:
        keras_options: arguments for Keras' own `compile`.
        **options: values of all training options in `OPTIONS`, by name.

    Raises:
        UserError: if a loss or metrics are given, or Keras' policy is float16.
        ConfigError: if an option has an impossible value.
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
    # The default of Keras' `compile`, "auto", does not mean that the user wants XLA.
    options["jit_compile"] = options["jit_compile"] is True
    return from_plain(TrainingConfig, options, "training.")


# --- metrics ---


class BoundMetrics:
    """The metrics of the bound, from sums of its terms over images since the last reset, and counts of skipped steps.

    Args:
        bits_per_dim: function that converts nats per image to bits per colour value.
        kl_weight: weight of the KL term in the loss.
        most_skipped: number of skipped steps in a row after which training has diverged.

    Attributes:
        metrics: Keras metrics: the loss in nats per image, bits per dimension, and the terms in nats per image.
        skipped: number of steps in a row that were skipped.
        not_applied: number of steps that were skipped in this epoch.
    """

    def __init__(self, bits_per_dim: Callable[[Any], Any], kl_weight: float, most_skipped: int):
        starts = np.zeros(len(TERMS) + 1), np.int64(0), np.int64(0)
        self._sums, self.skipped, self.not_applied = (tf.Variable(start, trainable=False) for start in starts)
        self._most_skipped = most_skipped
        weights = [1.0, kl_weight, 1.0]
        functions: dict[str, Callable[[Any], Any]] = {
            "loss": lambda terms: tf.reduce_sum(terms * tf.constant(weights, tf.float64)),
            "bits_per_dim": lambda terms: bits_per_dim(tf.reduce_sum(terms)),
            **{name: operator.itemgetter(i) for i, name in enumerate(TERMS)},
        }
        self.metrics = [_MeanOfTerms(name, self._sums, function) for name, function in functions.items()]

    @property
    def images(self) -> tf.Tensor:
        """The number of images in the sums, int64."""
        return tf.cast(self._sums[-1], tf.int64)

    @property
    def converges(self) -> tf.Tensor:
        """Whether fewer steps in a row were skipped than count as divergence, a boolean scalar."""
        return self.skipped < self._most_skipped

    def results(self) -> dict[str, tf.Tensor]:
        """Returns the values of the metrics by name."""
        return {metric.name: metric.result() for metric in self.metrics}

    def add(self, sums: tf.Tensor) -> None:
        """Adds the sums of the three terms over a batch, in nats, and the number of images: together float64 `[4]`."""
        self._sums.assign_add(sums)

    def count_step(self, applied: tf.Tensor, sums: tf.Tensor) -> None:
        """Counts a step as applied or skipped, and adds its sums if the step was applied."""
        self.add(tf.where(applied, sums, tf.zeros_like(sums)))
        # After divergence the count stays, so that the host still sees it if it reads the count some steps later.
        skipped = self.skipped + tf.cast(self.converges, tf.int64)
        self.skipped.assign(tf.where(applied, tf.zeros_like(self.skipped), skipped))
        self.not_applied.assign_add(tf.cast(~applied, tf.int64))


class _MeanOfTerms(keras.metrics.Metric):
    """A metric computed from the mean terms of the bound; without images NaN, which no callback takes for the best."""

    def __init__(self, name: str, sums: tf.Variable, function: Callable[[tf.Tensor], tf.Tensor]):
        super().__init__(dtype="float64", name=name)
        self._bound_sums, self._function = sums, function

    def update_state(self, *arguments: Any, **options: Any) -> None:
        """Does nothing: `BoundMetrics.add` counts for all metrics."""

    def result(self) -> tf.Tensor:
        """Returns the value of the metric, a float64 scalar."""
        sums = tf.convert_to_tensor(self._bound_sums)
        return self._function(sums[:-1] / sums[-1])

    def reset_state(self) -> None:
        """Sets the sums that all metrics share to 0."""
        self._bound_sums.assign(tf.zeros_like(self._bound_sums))


class SkippedSteps(keras.callbacks.Callback):
    """A callback that warns of skipped steps, and ends training that has diverged.

    Args:
        metrics: metrics that count the skipped steps.
        every: number of steps between two reads of the count; each read makes a GPU wait.
    """

    def __init__(self, metrics: BoundMetrics, every: int):
        super().__init__()
        self._bound_metrics, self._every, self._steps = metrics, every, 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Sets the count of skipped steps in the epoch to 0."""
        self._bound_metrics.not_applied.assign(0)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Raises DivergedError if training has diverged; checks every `every` steps."""
        self._steps += 1
        if self._steps % self._every == 0:
            self._require_convergence()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Raises DivergedError if training has diverged, and warns if steps of the epoch were skipped."""
        self._require_convergence()
        if count := int(self._bound_metrics.not_applied.numpy()):
            warn_user(
                f"epoch {epoch + 1}: {count} step{'s were' if count > 1 else ' was'} not applied, for values that are "
                "not finite or inversions that came back too far off (docs/divergence.md)"
            )

    def _require_convergence(self) -> None:
        if not bool(self._bound_metrics.converges):
            raise DivergedError(
                f"training diverged: {int(self._bound_metrics.skipped.numpy())} steps in a row were not applied, for "
                "values that are not finite or inversions that came back too far off; the model has the weights before "
                "them. A smaller learning rate, a warm-up or clipping may help (docs/divergence.md); compile before "
                "you fit again"
            )


# --- images from the user ---


def unpack_images(data: Any) -> tuple[Any, Any]:
    """Returns images and labels (or None) from the data that `fit` or a step receives.

    Args:
        data: images; a tuple of images and labels; or a dict with `image` and optionally `label`, as from TensorFlow
            Datasets.

    Raises:
        UserError: if the data contain weights of images.
        DataError: if a dict lacks `image`.
    """
    images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
    if weights is not None:
        raise UserError("every image counts alike in the bound: leave out sample_weight and class_weight")
    # Keras takes the pair in fit((images, labels)) for a single input; a list of plain numbers is one array.
    is_pair = isinstance(images, tuple | list) and labels is None and 1 <= len(images) <= 2
    if is_pair and all(hasattr(part, "shape") or tf.is_tensor(part) for part in images):
        images, labels = [*images, None][:2]
    if isinstance(images, dict):
        if "image" not in images:
            raise DataError(f"the data has {', '.join(map(str, images))}; it must have 'image'")
        images, labels = images["image"], images.get("label", labels)
    return images, labels


def is_lazy(x: Any) -> bool:
    """Returns whether data are read batch by batch from an object that shows neither dtype nor shape in advance."""
    is_array = isinstance(x, tuple | list | dict) or tf.is_tensor(x) or hasattr(x, "__array__")
    return isinstance(x, keras.utils.PyDataset) or not is_array


def check_images(x: Any, y: Any, config: ModelConfig) -> None:
    """Raises DataError if images x, or their labels y, do not match the model.

    Generators are checked later, while they are read. A model that knows no labels ignores labels with a warning.

    Raises:
        DataError: if images have the wrong type or shape, or labels are missing or unknown.
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


def check_validation(x: Any, split: float, validation: Any, config: ModelConfig) -> None:
    """Raises DataError if validation data do not match the model, or if training data cannot be split.

    Raises:
        DataError: if `check_images` refuses the validation data, or x is read batch by batch and `split` is not 0.
    """
    if validation is None:
        if split and is_lazy(x):
            raise DataError(
                f"validation_split is {split}, which takes the last images of arrays; of a data set or another "
                "iterable give those of the validation as validation_data"
            )
        return
    images, labels = validation if isinstance(validation, tuple) and len(validation) == 2 else (validation, None)
    with warnings.catch_warnings():
        # The check of the training images has given the same warning already.
        warnings.filterwarnings("ignore", "this model knows no labels")
        check_images(images, labels, config)


def require_one_device(model: keras.Model) -> None:
    """Raises UserError if the model was created for several devices."""
    if (count := model.distribute_strategy.num_replicas_in_sync) > 1:
        name = type(model.distribute_strategy).__name__
        raise UserError(f"Keras' methods run on one device, not on the {count} of a {name}: train by python train.py")


def count_trained(images: Any, split: float) -> int:
    """Returns how many images of an array Keras trains on, if the last ones, a part `split`, are for validation."""
    return math.floor(len(images) * (1 - split))


def first_images(x: Any, count: int, seed: int) -> tuple[Any, Any]:
    """Returns up to `count` images to initialise a model from, and data that still contain these images.

    Args:
        x: images, in the forms that `fit` accepts. From an array images are drawn at random; otherwise the first images
            are taken.
        count: number of images.
        seed: seed of the random choice.
    """
    if isinstance(x, keras.utils.PyDataset):
        numbers = itertools.count() if x.num_batches is None else range(x.num_batches)
        return _gather((x[number] for number in numbers), count)[0], x
    if is_lazy(x) or isinstance(x, tf.data.Dataset):
        images, read = _gather(x, count)
        # Keras accepts no iterators except generators.
        return images, (batch for batch in itertools.chain(read, x)) if isinstance(x, Iterator) else x
    images = np.asarray(unpack_images(x)[0])
    chosen = np.random.default_rng(seed).permutation(len(images))[:count]
    return images[np.sort(chosen)], x


def _gather(batches: Iterable[Any], count: int) -> tuple[np.ndarray, list[Any]]:
    """Returns the first `count` images of batches, and the list of batches that were read."""
    images, read = [], []
    for batch in batches:
        read.append(batch)
        images.append(np.asarray(unpack_images(batch)[0]))
        if sum(map(len, images)) >= count:
            break
    if not any(map(len, images)):
        raise DataError("there are no images to train on")
    return np.concatenate(images)[:count], read


def as_keras_takes(x: Any) -> Any:
    """Returns data in a form that Keras accepts: a generator yields tuples, and all other data stay the same."""
    if not isinstance(x, types.GeneratorType):
        return x
    return (batch if isinstance(batch, tuple) else (batch,) for batch in x)


def with_callbacks(callbacks: Any, watch: SkippedSteps, names: set[str]) -> Any:
    """Returns the user's callbacks and `watch`; callbacks that monitor a metric in `names` look for its minimum."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.append(watch)
    else:
        callbacks = [watch, *(callbacks if isinstance(callbacks, list | tuple) else filter(None, [callbacks]))]
    for callback in getattr(callbacks, "callbacks", callbacks):
        monitored = str(getattr(callback, "monitor", None)).removeprefix("val_")
        if getattr(callback, "mode", None) == "auto" and monitored in names:
            # In the mode "auto" Keras knows only for its own metrics whether smaller is better.
            callback.mode = "min"
    return callbacks


# --- steps ---


def train_step(model: Networks, data: Any) -> dict[str, tf.Tensor]:
    """Returns the metrics after a step on a batch; weights change only if the verdict on the step allows it."""
    training, metrics = model.require_compiled("fit")
    images, labels = _take_images(model, data)
    seed = randomness.derive_seed(training.seed, "step", tf.convert_to_tensor(model.optimizer.iterations))
    if model.optimizer.gradient_accumulation_steps:
        # With gradient accumulation several steps share an iteration, so the number of images tells them apart.
        seed = randomness.derive_seed(seed, metrics.images)
    count = sizes(images)[0]
    share = differentiate(
        model,
        images,
        labels,
        training,
        seed=seed,
        own=slice(0, count),
        batch_size=count,
        trainable=model.trainable_variables,
        moving=moving_statistics(model),
        kl_weight=training.kl_weight,
    )
    verdict = judge_step(share, training.precision)
    applied = verdict.finite & verdict.inverted & metrics.converges

    def apply() -> tf.Tensor:
        model.optimizer.apply(share.gradients, model.trainable_variables)
        for variable, value in zip(moving_statistics(model), share.moving, strict=True):
            variable.assign(value)
        return tf.constant(True)

    # Keras' optimizers cannot make an update that changes nothing, so a skipped step does not call them.
    tf.cond(applied, apply, lambda: tf.constant(False))
    images_counted = tf.cast(count, tf.float64)
    sums = tf.concat([tf.cast(tf.stack(share.terms), tf.float64) * images_counted, [images_counted]], 0)
    metrics.count_step(applied, sums)
    return {**metrics.results(), "skipped_steps": metrics.not_applied + 0}


def test_step(model: Networks, data: Any) -> dict[str, tf.Tensor]:
    """Returns the metrics after adding the bound of a batch."""
    training, metrics = model.require_compiled("evaluate")
    images, labels = _take_images(model, data)
    index = metrics.images + tf.range(tf.shape(images, tf.int64)[0])
    which = training.seed, tf.zeros_like(index), index
    config = model.config
    noise = z_noise(config.latent_dim, *which), u_noise(config.image_shape, *which, config.has_dequantizer)
    elbo = model.elbo_from_noise(images, *noise, labels=labels)
    terms = tf.cast(tf.stack([elbo.reconstruction, elbo.kl, elbo.dequantization], -1), tf.float64)
    metrics.add(tf.concat([tf.reduce_sum(terms, 0), [tf.cast(tf.shape(terms)[0], tf.float64)]], 0))
    return metrics.results()


def predict_step(model: Networks, data: Any) -> Any:
    """Returns the codes of a batch; v alone for a model without z."""
    codes = model.encode(*_take_images(model, data))
    return codes.v if codes.z is None else tuple(codes)


def moving_statistics(model: Networks) -> list[keras.Variable]:
    """Returns the variables with the moving statistics of batch normalisation."""
    return [variable for variable in model.non_trainable_variables if variable.path.endswith(("_mean", "_variance"))]


def _take_images(model: Networks, data: Any) -> tuple[tf.Tensor, Any]:
    """Returns the images of a batch, and the labels (None for a model that knows no labels)."""
    images, labels = unpack_images(data)
    images = tf.convert_to_tensor(images)
    require_images(images, model.config.image_shape)
    return images, model.wanted_labels(labels)
