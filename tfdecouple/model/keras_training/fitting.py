"""Keras' `fit`, `evaluate` and `predict`: what is checked and begun before their steps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.arguments import require_images
from tfdecouple.errors import DataError, UserError
from tfdecouple.model.keras_training.figures import Watch
from tfdecouple.model.keras_training.images import as_keras_takes, check, first_images, is_lazy, unpacked
from tfdecouple.model.keras_training.steps import Steps
from tfdecouple.model.networks import Codes
from tfdecouple.model.precision_check import check_precision_of
from tfdecouple.model.round_trip import require_finite, warn_of_far_images


class KerasTraining(Steps):
    """The methods of `keras.Model` that train and measure, for a model that has a bound."""

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        **options: Any,
    ) -> keras.callbacks.History:
        """Trains as `keras.Model.fit`, on images.

        A model without weights is started from training images first. A step that is not finite, or whose inversion
        comes back too far off, changes nothing.

        Args:
            x: uint8 images `[n, height, width, channels]`, or a data set (or another iterable) of batches of them; with
                labels beside them, or as dicts with `image` and `label`.
            y: labels, for a model that knows labels; others ignore them.
            batch_size: of arrays; Keras' 32 by default.
            epochs: see Keras, as for all else.
            verbose: as there.
            callbacks: as there.
            validation_split: as there, of arrays.
            validation_data: as x, or a tuple of images and labels.
            **options: as there.

        Returns:
            The history, by the names of `metrics`, with "val_" before those of the validation.

        Raises:
            DataError: for images of another shape or type.
            UserError: for a model that was not compiled, or what devices or the bound do not allow.
            ConfigError: where the processor cannot do the precision.
            DivergedError: where max_skipped_steps steps in a row were not applied.
        """
        training, figures = self._compiled("fit")
        if options.get("sample_weight") is not None or options.get("class_weight") is not None:
            raise UserError("every image counts alike in the bound: leave out sample_weight and class_weight")
        if validation_split and validation_data is None and is_lazy(x):
            raise DataError(
                f"validation_split is {validation_split}, which takes the last images of arrays; of a data set or "
                "another iterable give those of the validation as validation_data"
            )
        check(x, y, self.config)
        if validation_data is not None:
            with warnings.catch_warnings():
                # Said of the training images already.
                warnings.filterwarnings("ignore", "this model knows no labels")
                check(*_parts(validation_data), self.config)
        split = validation_split if validation_data is None else 0.0
        self._check_devices(x, batch_size, split)
        if not self._has_weights():
            x = self._start(x, split, bool(verbose))
        check_precision_of(self, training.precision, training.memory)
        if isinstance(x, tf.data.Dataset):
            # Keras warns that it does not shuffle one, unless it is told not to.
            options.setdefault("shuffle", False)
        watch = Watch(figures, training.max_skipped_steps)
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.append(watch)
        else:
            given = callbacks if isinstance(callbacks, list | tuple) else [] if callbacks is None else [callbacks]
            callbacks = [watch, *given]
        _tell_that_less_is_better(getattr(callbacks, "callbacks", callbacks), {metric.name for metric in self.metrics})
        return super().fit(
            as_keras_takes(x),
            y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            validation_split=validation_split,
            validation_data=as_keras_takes(validation_data),
            **options,
        )

    def evaluate(self, x: Any = None, y: Any = None, *rest: Any, **options: Any) -> Any:
        """Measures the bound as `keras.Model.evaluate` does, by the names of `metrics`.

        The noise of an image depends on the seed and on its place among the images alone: repeated, or with batches of
        another size, the figures are the same, and those of `python -m tfdecouple evaluate` for the same images.

        Args:
            x: as for `fit`.
            y: labels, for a model that knows labels; others ignore them.
            *rest: see Keras.
            **options: as there.

        Raises:
            DataError: for images of another shape or type.
            NotInitializedError: for a model without weights.
            UserError: for a model that was not compiled, or what devices or the bound do not allow.
        """
        self._compiled("evaluate")
        self.require_initialized()
        if not options.get("_use_cached_eval_dataset"):
            check(x, y, self.config)
        return super().evaluate(as_keras_takes(x), y, *rest, **options)

    def predict(self, x: Any, *rest: Any, **options: Any) -> Codes:
        """Encodes images batch by batch, as `encode` does.

        Args:
            x: as for `fit`.
            *rest: see `keras.Model.predict`.
            **options: as there.

        Returns:
            `Codes(z, v)` of NumPy arrays.

        Raises:
            DataError: for images of another shape or type.
            InversionError: where a code is not finite.
            NotInitializedError: for a model without weights.
        """
        self.require_initialized()
        check(x, None, self.config)
        found = super().predict(as_keras_takes(x), *rest, **options)
        codes = Codes(*found) if self.config.has_latent else Codes(None, found)
        require_finite("predict gave codes that are not finite", *[code for code in codes if code is not None])
        warn_of_far_images(codes.v)
        return codes

    # --- before the first step ---

    def _start(self, x: Any, validation_split: float, tells: bool) -> Any:
        """Starts the weights from training images; returns x, for the training to read."""
        assert self._options is not None
        if validation_split:
            images = unpacked(x)[0]
            first = images[: _trained_on(images, validation_split)]
            images, _ = first_images(first, self._options.init_images, self._options.seed)
        else:
            images, x = first_images(x, self._options.init_images, self._options.seed)
        require_images(images, self.config.image_shape)
        if tells:
            print(f"starting the weights from {len(images)} training images, then tracing the first step", flush=True)
        self.initialize(images, seed=self._options.seed)
        return x

    def _check_devices(self, x: Any, batch_size: int | None, validation_split: float) -> None:
        """Refuses what several devices do not allow."""
        strategy = self.distribute_strategy
        count = strategy.num_replicas_in_sync
        if count == 1:
            return
        if not isinstance(strategy, tf.distribute.MirroredStrategy) or isinstance(
            strategy, tf.distribute.MultiWorkerMirroredStrategy
        ):
            raise UserError(
                f"fit runs on one device or under a MirroredStrategy, not under a {type(strategy).__name__}: train by "
                "python train.py, on several machines, too (docs/cluster.md)"
            )
        if self.optimizer.gradient_accumulation_steps:
            raise UserError("gradient_accumulation_steps works on one device alone; train by python train.py")
        for what, variable in (("model", self.initialized), ("optimizer", self.optimizer.iterations)):
            if not isinstance(variable.value, tf.distribute.DistributedValues):
                raise UserError(f"the {what} was made outside of the scope of the strategy; make it within")
        if isinstance(x, tf.data.Dataset):
            size = unpacked(x.element_spec)[0].shape[0]
            if size is None:
                raise DataError(
                    f"on {count} devices all batches must be of one size: dataset.batch(size, drop_remainder=True)"
                )
        elif is_lazy(x):
            # Its batches alone show how large they are, and Keras passes batch_size over.
            return
        else:
            size, images = batch_size or 32, _trained_on(unpacked(x)[0], validation_split)
            if images % size:
                raise DataError(
                    f"on {count} devices all batches must be of one size: {images} images are no multiple of "
                    f"batch_size={size}"
                )
        if size % count:
            raise DataError(f"batches of {size} images cannot be divided evenly among {count} devices")


def _trained_on(images: Any, validation_split: float) -> int:
    """Returns on how many images of an array Keras trains: it takes the last ones for the validation."""
    return math.floor(len(images) * (1 - validation_split))


def _tell_that_less_is_better(callbacks: Iterable[Any], names: set[str]) -> None:
    """Tells callbacks that monitor one of our figures, which Keras itself knows of its own metrics alone."""
    for callback in callbacks:
        monitored = getattr(callback, "monitor", None)
        if getattr(callback, "mode", None) == "auto" and str(monitored).removeprefix("val_") in names:
            callback.mode = "min"


def _parts(data: Any) -> tuple[Any, Any]:
    """Returns validation data as the x and y that Keras makes of them."""
    return (data[0], data[1]) if isinstance(data, tuple) and len(data) == 2 else (data, None)
