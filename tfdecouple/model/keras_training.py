"""Training with Keras: `compile`, `fit`, `evaluate` and `predict`, methods of `DecoupledModel`, and their steps."""

import inspect
import itertools
import math
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.arguments import as_images, as_labels, as_tensor, require_images
from tfdecouple.config import Config, ModelConfig, TrainingConfig, parse_config
from tfdecouple.config.training import OPTIMIZER_OPTIONS, RUN_OPTIONS, STEP_OPTIONS
from tfdecouple.errors import DataError, DivergedError, UserError, warn_user
from tfdecouple.execution.run_mode import RunMode
from tfdecouple.layers.base import disable_autograph
from tfdecouple.model.base_model import require_initialized
from tfdecouple.model.codes import Codes, Coding, require_finite, warn_of_far_images
from tfdecouple.model.densities import Densities
from tfdecouple.model.initialization import Initialization
from tfdecouple.model.step_effects import add_first_noise, compute_kl_weight
from tfdecouple.model.training_step import NO_IMAGE, DeviceResult, TrainingStep, locate_images
from tfdecouple.numerics.arithmetic import get_sizes, sum_over_devices
from tfdecouple.numerics.tf32 import full_float32
from tfdecouple.storage.files import Facts

TERMS = ("reconstruction", "kl", "dequantization")


def make_training_config(options: Facts) -> TrainingConfig:
    """Returns the `TrainingConfig` of the arguments of `compile`, {name: value}; raises the errors of `compile`."""
    for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
        if options.get(name) is not None:
            raise UserError(
                f"compile got {name}; the loss is the negative evidence lower bound and its terms are the metrics: "
                "leave it out"
            )
    for name in options.keys() & {*OPTIMIZER_OPTIONS, *RUN_OPTIONS}:
        instead = "give a Keras optimizer" if name in OPTIMIZER_OPTIONS else "fit has arguments and callbacks"
        raise UserError(f"compile got {name}, an option of train.py; {instead} instead, or train by python train.py")
    # A name that Keras does not know either is passed on, so that `parse_config` suggests the nearest option.
    others = inspect.signature(keras.Model.compile).parameters.keys() - {*STEP_OPTIONS}
    policy, values = keras.config.dtype_policy().name, {name: options[name] for name in options.keys() - others}
    if values.get("precision") is None:
        is_bfloat16 = policy in ("bfloat16", "mixed_bfloat16")
        if "float16" in policy and not is_bfloat16:
            raise UserError(
                f"Keras' policy is {policy}, in which these models do not train; take mixed_bfloat16, or "
                "compile(precision='float32')"
            )
        values["precision"] = "mixed_bfloat16" if is_bfloat16 else "float32"
    # Keras' default for this argument, "auto", does not mean that the user wants XLA, so only True switches XLA on.
    values["jit_compile"] = values.get("jit_compile") is True
    return parse_config(TrainingConfig, values, "training.")


class BoundMetrics:
    """The Keras metrics of the evidence lower bound, means over images since the last reset; counts of skipped steps.

    Args:
        bits_per_dim: function that converts nats per image to bits per colour value.
        training: options of training, of which `kl_weight` and `max_skipped_steps` are used.

    Attributes:
        metrics: Keras metrics: the loss in nats per image, bits per dimension, and the terms in nats per image.
        skipped: count of steps skipped since the last applied step, an int64 variable.
        not_applied: count of steps skipped in this epoch, an int64 variable.
    """

    def __init__(self, bits_per_dim: Callable[[tf.Tensor], tf.Tensor], training: TrainingConfig):
        self._bits_per_dim, self._training = bits_per_dim, training
        self.metrics = [_MeanOfImages(name, "float64") for name in ("loss", "bits_per_dim", *TERMS)]
        self.skipped, self.not_applied = (tf.Variable(np.int64(0), trainable=False) for _ in range(2))

    @property
    def image_count(self) -> tf.Tensor:
        """The count of images over which the metrics of the bound are means, an int64 scalar."""
        return tf.cast(self.metrics[0].count, tf.int64)

    @property
    def converges(self) -> tf.Tensor:
        """Whether fewer than `max_skipped_steps` consecutive steps were skipped, a boolean scalar."""
        return self.skipped < self._training.max_skipped_steps

    def collect_results(self) -> dict[str, tf.Tensor]:
        """Returns {name: value} of all metrics of the bound, with float64 scalars as values."""
        return {metric.name: metric.result() for metric in self.metrics}

    def add_images(self, terms: tf.Tensor, count: tf.Tensor, kl_weight: float | tf.Tensor) -> None:
        """Adds `count` images to these metrics, given their means of the bound's `terms` in nats, float64 `[3]`."""
        reconstruction, kl, dequantization = separate = tf.unstack(terms)
        loss = reconstruction + kl_weight * kl + dequantization
        for metric, value in zip(self.metrics, [loss, self._bits_per_dim(tf.add_n(separate)), *separate], strict=True):
            metric.update_state(value, count)

    def count_step(self, applied: tf.Tensor, terms: tf.Tensor, count: tf.Tensor, kl_weight: tf.Tensor) -> None:
        """Counts a training step as applied or skipped; if it was applied, adds its `count` images to the metrics."""
        terms, count = (tf.where(applied, value, tf.zeros_like(value)) for value in (terms, count))
        self.add_images(terms, count, kl_weight)
        # Once training has diverged, no step resets this count, because the host reads it only every few steps.
        skipped = self.skipped + tf.cast(self.converges, tf.int64)
        self.skipped.assign(tf.where(applied, tf.zeros_like(self.skipped), skipped))
        self.not_applied.assign_add(tf.cast(~applied, tf.int64))


class _MeanOfImages(keras.metrics.Mean):
    """A Keras metric: the mean over images. Without images it is NaN, which no callback takes for the best mean.

    Each device adds the images of all devices, so that the mean is the same on each of them.
    """

    def add_variable(self, *arguments: object, aggregation: object = None, **options: object) -> keras.Variable:
        """Returns a new variable whose copies on all devices are equal; Keras would add the copies up."""
        return super().add_variable(*arguments, aggregation="only_first_replica", **options)

    def result(self) -> tf.Tensor:
        """Returns this metric's mean over images, a float64 scalar; NaN if there are no images."""
        return tf.convert_to_tensor(self.total) / tf.convert_to_tensor(self.count)


class SkippedSteps(keras.callbacks.Callback):
    """A Keras callback that warns of skipped steps, and ends training after `max_skipped_steps` of them in a row."""

    def __init__(self, metrics: BoundMetrics, training: TrainingConfig):
        super().__init__()
        self._bound_metrics, self._every, self._steps = metrics, training.max_skipped_steps, 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._bound_metrics.not_applied.assign(0)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Raises DivergedError if training has diverged, which is checked every `max_skipped_steps` steps."""
        self._steps += 1
        if self._steps % self._every == 0:
            self._require_convergence()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Raises DivergedError if training has diverged; otherwise warns if steps of this epoch were skipped."""
        self._require_convergence()
        if count := int(self._bound_metrics.not_applied.numpy()):
            warn_user(
                f"epoch {epoch + 1}: {count} step{'s were' if count > 1 else ' was'} not applied, for values that are "
                "not finite or inexact inversions (docs/troubleshooting.md)"
            )

    def _require_convergence(self) -> None:
        if not bool(self._bound_metrics.converges):
            raise DivergedError(
                f"training diverged: {int(self._bound_metrics.skipped.numpy())} steps in a row were not applied, for "
                "values that are not finite or inexact inversions; the model has the weights before them. A smaller "
                "learning rate, a warm-up or clipping may help (docs/troubleshooting.md); compile before you fit again"
            )


def require_equal_weights(*weights: object) -> None:
    """Raises UserError unless all `weights` of images or classes, arguments of Keras' `fit`, are None."""
    if any(weight is not None for weight in weights):
        raise UserError("all images have equal weight in the bound: leave out sample_weight and class_weight")


def unpack_images(data: Any) -> tuple:
    """Returns (images, labels), with None for no labels, from the data that `fit` or a training step receives.

    The data are images; a tuple of images and labels; or a dict with `image` and optionally `label`, as from TensorFlow
    Datasets. A dict without `image` raises DataError, and sample weights raise UserError.
    """
    images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
    require_equal_weights(weights)
    # Keras takes the pair in fit((images, labels)) for one input, so it is split here. A list of numbers is no pair.
    is_pair = isinstance(images, tuple | list) and labels is None and 1 <= len(images) <= 2
    if is_pair and all(hasattr(part, "shape") or tf.is_tensor(part) for part in images):
        images, labels = [*images, None][:2]
    if isinstance(images, dict):
        if "image" not in images:
            raise DataError(f"the data has {', '.join(map(str, images))}; it must have 'image'")
        images, labels = images["image"], images.get("label", labels)
    return images, labels


def is_read_by_batches(x: object) -> bool:
    """Returns whether x, an argument of `fit`, yields batches (a data set, a generator), rather than being an array."""
    return not (isinstance(x, tuple | list | dict) or tf.is_tensor(x) or hasattr(x, "__array__"))


def check_images(x: Any, y: Any, config: ModelConfig) -> None:
    """Raises DataError if arguments x or y of `fit` do not fit the model; generators are checked in each step."""
    if x is None:
        raise DataError("there are no images: the first argument is None")
    if isinstance(x, tf.data.Dataset):
        images, labels = unpack_images(x.element_spec)
        require_images(images, config.image_shape)
    elif is_read_by_batches(x):
        labels = y
    else:
        images, labels = unpack_images(x if y is None else (x, y))
        if not hasattr(images, "dtype"):
            images = as_tensor(images, "images", DataError)
        require_images(images, config.image_shape)
        if config.has_labels:
            as_labels(labels, len(images), config.classes, config.has_label_codes)
    if labels is not None and not config.has_labels:
        warn_user("this model has no labels: the given labels are ignored")


def require_one_scope(model: keras.Model) -> None:
    """Raises UserError unless model and optimizer were made in the scope of the same `tf.distribute` strategy.

    `steps_per_execution` is refused on several devices, where Keras' loop of steps fails in TensorFlow for every model.
    """
    strategy, optimizer = model.distribute_strategy, getattr(model, "optimizer", None)
    if optimizer is not None and optimizer._distribution_strategy is not strategy:
        name = type(strategy).__name__
        made = "outside of every strategy" if name.startswith("_Default") else f"in the scope of a {name}"
        raise UserError(
            f"the model was made {made}, the optimizer elsewhere; make the model and the optimizer, and call compile, "
            "in one scope"
        )
    if strategy.num_replicas_in_sync > 1 and optimizer is not None and model.steps_per_execution > 1:
        raise UserError(f"steps_per_execution is {model.steps_per_execution}; on several devices it must be 1")


def read_first_images(x: Any, split: float, count: int, seed: int) -> np.ndarray:
    """Returns a NumPy array of at most `count` training images from `x`, an argument of `fit`, to initialise a model.

    From an array, the images are drawn at random, but not from its last fraction `split`, which `fit` keeps for
    validation. From a data set or another iterable, the first images are returned. An iterator raises DataError,
    because Keras could not read the same images again.
    """
    if isinstance(x, Iterator):
        raise DataError("fit would use up images of a generator: call model.initialize(images) before")
    if is_read_by_batches(x):
        batches = iter(x)
        if isinstance(x, keras.utils.PyDataset):
            batches = map(x.__getitem__, itertools.count() if x.num_batches is None else range(x.num_batches))
        batches_read: list[np.ndarray] = []
        while sum(map(len, batches_read)) < count and (batch := next(batches, None)) is not None:
            batches_read.append(np.asarray(unpack_images(batch)[0]))
        images = np.concatenate(batches_read)[:count] if batches_read else np.zeros(0)
    else:
        images = np.asarray(unpack_images(x)[0])
        images = images[: math.floor(len(images) * (1 - split))]
        images = images[np.sort(np.random.default_rng(seed).permutation(len(images))[:count])]
    if not len(images):
        raise DataError("there are no images to train on")
    return images


def wrap_generator(x: Any) -> Any:
    """Wraps the batches of a generator x in tuples, as Keras requires; returns any other x unchanged."""
    if not isinstance(x, types.GeneratorType):
        return x
    return (batch if isinstance(batch, tuple) else (batch,) for batch in x)


def _build_optimizer(model: keras.Model) -> None:
    # Keras places an optimizer's variables on the weights' devices, for which it needs the strategy's scope.
    with model.distribute_strategy.scope():
        model.optimizer.build(model.trainable_variables)


def list_moving_statistics(model: keras.Model) -> list[keras.Variable]:
    """Returns a list of the variables with moving means and variances of all batch normalisations in the model."""
    return [variable for variable in model.non_trainable_variables if variable.path.endswith(("_mean", "_variance"))]


@disable_autograph
class Training(Coding, Densities, Initialization):
    """The methods of Keras that train, evaluate and predict, and their steps."""

    _options: TrainingConfig | None = None
    _bound_metrics: BoundMetrics | None = None
    train_function: Callable
    test_function: Callable
    predict_function: Callable

    def compile(self, optimizer: Any = "adam", loss: None = None, **options: Any) -> None:
        """Sets the options of `fit` and `evaluate`, which minimise and measure the negative evidence lower bound.

        Args:
            optimizer: a Keras optimizer, with its schedule, clipping and weight decay, or the name of an optimizer.
            loss: must be None, because the loss is always the negative evidence lower bound.
            **options: `run_eagerly`, `steps_per_execution` and `auto_scale_loss` as in Keras, and those options of
                `TrainingConfig` that take effect in each step (`config.training.STEP_OPTIONS`), such as `kl_weight`,
                `noise`, `memory` or `seed`, with its defaults; `precision` is by default that of Keras' global policy.

        Raises:
            UserError: if a loss, metrics, or an option of `train.py` that has no effect here are given, or Keras'
                policy is float16.
            ConfigError: if an option has an impossible value.
        """
        for name in ("compute_loss", "compute_metrics"):
            if getattr(type(self), name) is not getattr(keras.Model, name):
                raise UserError(
                    f"{type(self).__name__} overrides {name}, which fit never calls, because the loss is always the "
                    "negative bound; override train_step"
                )
        # The config of a run also checks that options of model and training suit each other.
        training = Config(model=self.config, training=make_training_config({"loss": loss, **options})).training
        options = {name: value for name, value in options.items() if name not in STEP_OPTIONS}
        dimensions = math.prod(self.config.image_shape)
        metrics = BoundMetrics(lambda nats: self.quantizer.convert_to_bits_per_dim(nats, dimensions), training)
        # Keras' `jit_compile` would make XLA compile a whole training step, so it stays off; XLA compiles layers only.
        keras.Model.compile(self, optimizer, jit_compile=False, **options)
        # These attributes are set last, so that they keep their old values if Keras refuses an argument.
        self._options, self._bound_metrics = training, metrics

    def get_compile_config(self) -> Facts:
        """Returns {name: value} of the arguments of this model's `compile`, plain values that Keras saves with it."""
        config = keras.Model.get_compile_config(self)
        if not config or self._options is None:
            return config
        return {**config, **{name: getattr(self._options, name) for name in STEP_OPTIONS}}

    def compile_from_config(self, config: Facts) -> None:
        """Compiles a loaded model with the dict that `get_compile_config` returned when the model was saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        _build_optimizer(self)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """A compiled model's Keras metrics, a list: the loss, bits per dimension and the terms of the lower bound."""
        return keras.Model.metrics.fget(self) if self._bound_metrics is None else list(self._bound_metrics.metrics)

    def _require_compiled(self, method: str) -> tuple[TrainingConfig, BoundMetrics]:
        """Returns training config and metrics from `compile`; raises UserError if `method`, such as fit, cannot run."""
        if self._options is None or self._bound_metrics is None:
            raise UserError(f"call model.compile(optimizer) before {method}")
        require_one_scope(self)
        return self._options, self._bound_metrics

    def fit(self, x: Any = None, y: Any = None, *rest: Any, **options: Any) -> keras.callbacks.History:
        """Trains the model on images, as `keras.Model.fit` does, and returns the history.

        A model that is not initialised yet is first initialised from `init_images` training images. A step is skipped,
        and changes no weight, if its loss or gradient is not finite, or if activations that the memory mode "invert"
        recovers are too inexact.

        Args:
            x: uint8 images `[n, height, width, channels]`, or a data set (or another iterable) of batches; a batch is
                images, a tuple of images and labels, or a dict with `image` and `label`.
            y: labels of the images, ignored by a model without labels.
            *rest: further positional arguments of `keras.Model.fit`.
            **options: further options of `keras.Model.fit`. The option `validation_data` has the form of x, or is a
                tuple of images and labels.

        Returns:
            Keras' `History`, whose attribute `history` is {name of metric: list of one value for each epoch}. Names of
            validation metrics begin with "val_".

        Raises:
            UserError: if the model was not compiled, or an option or the devices do not suit training on the bound.
            DataError: if images or labels do not fit the model.
            DivergedError: if `max_skipped_steps` steps in a row were skipped.
        """
        training, metrics = self._require_compiled("fit")
        require_equal_weights(options.get("sample_weight"), options.get("class_weight"))
        check_images(x, y, self.config)
        validation = options.get("validation_data")
        if validation is not None:
            is_pair = isinstance(validation, tuple) and len(validation) == 2
            validation_x, validation_y = validation if is_pair else (validation, None)
            check_images(validation_x, validation_y, self.config)
            options["validation_data"] = wrap_generator(validation)
        if not self._has_weights():
            split = 0.0 if validation is not None else options.get("validation_split", 0.0)
            images = read_first_images(x, split, training.init_images, training.seed)
            require_images(images, self.config.image_shape)
            if options.get("verbose", True):
                text = f"initialising the weights from {len(images)} training images, then tracing the first step"
                print(text, flush=True)
            self.initialize(add_first_noise(images, training), seed=training.seed)
        if isinstance(x, tf.data.Dataset):
            # Keras does not shuffle a `tf.data.Dataset`, and would warn about the default of its `fit`, shuffle=True.
            options.setdefault("shuffle", False)
        callbacks = tf.nest.flatten(options.pop("callbacks", None) or [])
        callbacks.insert(0, SkippedSteps(metrics, training))
        names = {metric.name for metric in metrics.metrics}
        for callback in callbacks:
            # Keras cannot know that smaller values of these metrics are better, so "auto" is replaced by "min".
            if getattr(callback, "mode", "") == "auto" and callback.monitor.removeprefix("val_") in names:
                callback.mode = "min"
        try:
            return keras.Model.fit(self, wrap_generator(x), y, *rest, callbacks=callbacks, **options)
        except tf.errors.InvalidArgumentError as error:
            if NO_IMAGE not in error.message:
                raise
            devices = self.distribute_strategy.num_replicas_in_sync
            raise DataError(
                f"{NO_IMAGE}, and in training each of the {devices} devices needs one; leave out images of the last "
                "batch, or batch them yourself by tf.data's batch(size, drop_remainder=True)"
            ) from None

    def evaluate(self, x: Any = None, y: Any = None, *rest: Any, **options: Any) -> Any:
        """Returns the metrics of the evidence lower bound, means over all images, as `keras.Model.evaluate` does.

        The noise of an image depends only on the seed of `compile` and on the index of the image. So every batch size
        gives the same results, and so does `tfdecouple evaluate` for the same images.

        The arguments are those of `keras.Model.evaluate`, with x and y in the forms that `fit` accepts.
        """
        self._require_compiled("evaluate")
        require_initialized(self)
        if not options.get("_use_cached_eval_dataset"):
            check_images(x, y, self.config)
        return keras.Model.evaluate(self, wrap_generator(x), y, *rest, **options)

    def predict(self, x: Any, *rest: Any, **options: Any) -> Codes:
        """Encodes images batch by batch, and returns all codes as `Codes(z, v)` of NumPy arrays.

        The arguments are those of `keras.Model.predict`, with images in the forms that `fit` accepts. Codes that are
        not finite raise InversionError.
        """
        require_initialized(self)
        require_one_scope(self)
        check_images(x, None, self.config)
        outputs = keras.Model.predict(self, wrap_generator(x), *rest, **options)
        codes = Codes(*outputs) if self.config.has_latent else Codes(None, outputs)
        require_finite("predict gave codes that are not finite", *[code for code in codes if code is not None])
        warn_of_far_images(codes.v)
        return codes

    def make_train_function(self, force: bool = False) -> None:
        """Sets `train_function`, which Keras' `fit` calls to run steps, with TF32 only if `precision` is "tf32"."""
        if self.train_function is not None and not force:
            return
        training, _ = self._require_compiled("fit")
        require_initialized(self)
        if not self.optimizer.built:
            # A step calls the optimizer inside `tf.cond`, where the optimizer could not create its variables.
            _build_optimizer(self)
        keras.Model.make_train_function(self, force)
        # TensorFlow reads its switch for TF32 when operations run, so the context surrounds each call, not the trace.
        context: Any = RunMode(precision=training.precision).switch_tf32()
        self.train_function = context(self.train_function)

    def make_test_function(self, force: bool = False) -> None:
        """Sets `test_function`, which Keras' `evaluate` calls to evaluate batches, in full float32 (without TF32)."""
        if self.test_function is None or force:
            keras.Model.make_test_function(self, force)
            self.test_function = full_float32()(self.test_function)

    def make_predict_function(self, force: bool = False) -> None:
        """Sets `predict_function`, which Keras' `predict` calls to encode batches, in full float32 (without TF32)."""
        if self.predict_function is None or force:
            keras.Model.make_predict_function(self, force)
            self.predict_function = full_float32()(self.predict_function)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Runs a step of `fit` on a device's part of a batch; returns {name: value} of the metrics over all devices.

        A skipped step changes no weight. A training loop of one's own calls this method by `strategy.run`.
        """
        training, metrics = self._require_compiled("fit")
        images, labels = self._read_batch(data)
        labels = as_labels(labels, get_sizes(images)[0], self.config.classes, self.config.has_label_codes)
        optimizer, place = self.optimizer, locate_images(images, trains=True)
        update = tf.convert_to_tensor(optimizer.iterations)
        seed = randomness.derive_seed(training.seed, "step", update)
        if optimizer.gradient_accumulation_steps:
            # Steps that accumulate gradients for one update share a value of `iterations`; the image count varies the
            # seed.
            seed = randomness.derive_seed(seed, metrics.image_count)
        trainable, moving = self.trainable_variables, list_moving_statistics(self)

        def apply(total: DeviceResult, is_sound: tf.Tensor, norm: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
            strategy, applied = self.distribute_strategy, is_sound & metrics.converges

            def change(gradients: list[tf.Tensor], statistics: list[tf.Tensor]) -> None:
                replica = tf.distribute.get_replica_context()
                if replica.num_replicas_in_sync > 1:
                    # A Keras optimizer clips the gradients of each device and then adds them up. For the result of a
                    # single device, the first device passes the sums, and the others pass zeros.
                    share = tf.cast(tf.equal(replica.replica_id_in_sync_group, 0), tf.float32)
                    gradients = [gradient * share for gradient in gradients]
                optimizer.apply(gradients, trainable)
                for variable, value in zip(moving, statistics, strict=True):
                    variable.assign(value)

            def change_all() -> tf.Tensor:
                strategy.run(change, args=(total.gradients, total.moving))
                return tf.constant(True)

            # Gradients of zero would still change the state of a Keras optimizer, so a skipped step does not call it.
            # The optimizer leaves the replica context, which TensorFlow allows only where the context began inside
            # `tf.cond`.
            tf.cond(applied, change_all, lambda: tf.constant(False))
            return applied, total.terms

        step = TrainingStep(self, training, trainable, moving, apply)
        applied, terms = step.take(images, labels, seed, update, place=place)
        kl_weight = tf.cast(compute_kl_weight(training, update), tf.float64)
        metrics.count_step(applied, tf.cast(tf.stack(terms), tf.float64), tf.cast(place[1], tf.float64), kl_weight)
        return {**metrics.collect_results(), "skipped_steps": metrics.not_applied + 0}

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Adds a batch's terms of the bound to the metrics of `evaluate`, and returns {name: value} of the metrics."""
        training, metrics = self._require_compiled("evaluate")
        images, labels = self._read_batch(data)
        start, count = locate_images(images)
        first = metrics.image_count + tf.cast(start, tf.int64)
        which = training.seed, 0, first + tf.range(tf.shape(images, tf.int64)[0])
        config = self.config
        z = randomness.draw_z_noise(config.latent_dim, *which)
        u = randomness.draw_u_noise(config.image_shape, *which, config.has_dequantizer)
        bound = self.bound(images, labels, noise=(z, u))
        terms = tf.cast(tf.stack([bound.reconstruction, bound.kl, bound.dequantization]), tf.float64)
        count = tf.cast(count, tf.float64)
        metrics.add_images(sum_over_devices(tf.reduce_sum(terms, -1)) / count, count, training.kl_weight)
        return metrics.collect_results()

    def predict_step(self, data: Any) -> tf.Tensor | tuple:
        """Returns the codes (z, v) of a batch of images for `predict`, or only the tensor v for a model without z."""
        codes = self.encode(*self._read_batch(data))
        return codes.v if codes.z is None else tuple(codes)

    def _read_batch(self, data: Any) -> tuple[tf.Tensor, tf.Tensor | None]:
        images, labels = unpack_images(data)
        return as_images(images, self.config.image_shape), labels if self.config.has_labels else None
