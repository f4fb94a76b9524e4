"""The model whole, and what one does with it: encode, decode, sample, switch, interpolate, edit, classify."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import keras
import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.arguments import (
    as_codes,
    as_image_batches,
    as_images,
    as_labels,
    as_number,
    as_numbers,
    as_whole_number,
    as_z_change,
    require_images,
)
from tfdecouple.config import TrainingConfig, load_preset, preset_names
from tfdecouple.errors import ConfigError, DataError, InversionError, UserError, nearest
from tfdecouple.model import keras_training
from tfdecouple.model.interpolation import between, require_path
from tfdecouple.model.networks import Codes, Networks
from tfdecouple.model.precision_check import check_precision_of
from tfdecouple.model.round_trip import listed, require_finite, require_same, warn_of_far_images
from tfdecouple.runs.pretrained import list_pretrained
from tfdecouple.runs.run_folder import CONFIG, find_run, load_config, require_fitting
from tfdecouple.runs.run_folder import load_weights as read_weights
from tfdecouple.runtime.devices import free_memory
from tfdecouple.runtime.execution import without_autograph
from tfdecouple.runtime.numerics import sizes
from tfdecouple.runtime.precision import full_float32, tensor_float_32

# How many images `sample`, `interpolate` and the like decode at once: memory, not a result, depends on it.
CHUNK = 64
# And of how many `sample` draws z at once.
_Z_CHUNK = 4096


@keras.saving.register_keras_serializable(package="tfdecouple")
@without_autograph
class DecoupledModel(Networks):
    """Encoder, prior and flow of the paper, built and ready for weights.

    Images go in and come out as uint8 `[batch, height, width, channels]` with values 0..255, at any `n_bits`.

    >>> from tfdecouple.config import ModelConfig
    >>> config = ModelConfig(
    ...     image_shape=(8, 8, 3), latent_dim=4, steps=(1, 1), hidden_channels=(4, 4), encoder_channels=(4,),
    ...     prior_hidden=4,
    ... )
    >>> model = DecoupledModel(config)
    >>> images = tf.cast(tf.random.stateless_uniform([2, 8, 8, 3], [0, 1], 0, 256, tf.int32), tf.uint8)
    >>> model.initialize(images)
    >>> bool(tf.reduce_all(model.decode(*model.encode(images)) == images))
    True

    Args:
        config: the architecture, or its plain dict.
        **kwargs: of `Networks`, such as `jit_compile`.
    """

    @classmethod
    def from_preset(cls, preset: str, load_weights: bool = True, **kwargs: Any) -> Self:
        """Returns the model of a preset, with its weights where there are some.

        Args:
            preset: the name of weights that come along ("photographs") or their address `hf://OWNER/NAME[@REVISION]`;
                or the path of a run folder; or, without weights, the name of a preset such as "cifar10".
            load_weights: False for weights as they are before training.
            **kwargs: of the model.

        Raises:
            ConfigError: where there is no such preset, or its weights are asked for and it has none.
            UserError: where the weights cannot be had; see `tfdecouple.load_pretrained`.
        """
        if preset in preset_names() and not (find_run(preset) / CONFIG).is_file():
            if load_weights:
                raise ConfigError(
                    f"the preset {preset} has no weights; give load_weights=False, or one that has: "
                    f"{', '.join(list_pretrained())}"
                )
            return cls(load_preset(preset).model, **kwargs)
        if not (find_run(preset) / CONFIG).is_file():
            known = (*list_pretrained(), *preset_names())
            raise ConfigError(f"there is no preset {preset!r}{nearest(preset, known)}; there are {', '.join(known)}")
        config = load_config(preset)
        require_fitting(preset, config)
        model = cls(config.model, **kwargs)
        if load_weights:
            read_weights(preset, model, averaged=config.training.ema_decay > 0)
        return model

    def call(self, images: tf.Tensor, labels: Any = None, training: bool = False) -> Codes:
        """Keras' entry: the same as `encode`."""
        return self.encode(images, labels)

    def encode(self, images: Any, labels: Any = None, verify: bool = False) -> Codes:
        """Encodes images, deterministically: z is the posterior mean, v the flow of the pixels' bin centres.

        Args:
            images: uint8 `[batch, height, width, channels]`.
            labels: of the images, whole numbers `[batch]`, where z is a function of the label; elsewhere z needs none.
            verify: decode again and compare, outside of any `tf.function`. Images far from those of the training, such
                as a checkerboard of two saturated colours, can be lost; without `verify` an `ExactnessWarning` names
                images that are so far off (see `far_from_training`). Within a `tf.function` nothing is looked at: codes
                that are not finite are neither refused nor warned of.

        Returns:
            `Codes(z, v)`.

        Raises:
            InversionError: with `verify`, where an image does not come back, naming it; in any case where a code is
                not finite.
            UserError: for `verify` within a `tf.function`.
            DataError: for images of another shape or type, or for missing or unknown labels.
            NotInitializedError: for a model without weights.
        """
        if verify and not tf.executing_eagerly():
            raise UserError(
                "encode(images, verify=True) was called within a tf.function, which cannot look at its values; call it "
                "outside, or leave verify out"
            )
        self.require_initialized()
        levels = self._checked_levels(images)
        labels = self._labels_of(labels, levels)
        codes = self.encode_levels(levels, labels)
        if tf.executing_eagerly():
            require_finite("encode gave codes that are not finite", codes.v, *([] if codes.z is None else [codes.z]))
            if verify:
                # Not through decode(), whose own complaint about NaN would not say which images are lost altogether.
                x = self.flow.inverse_and_log_det(codes.v, codes.z)[0]
                require_same(self.pixels(x), x, self.quantize_images(images), self.config.bound_of_scales)
            else:
                warn_of_far_images(codes.v)
        return codes

    def decode(self, z: Any, v: Any) -> tf.Tensor:
        """Turns codes into images: `decode(*encode(images))` returns the very same pixels.

        Within a `tf.function` it is not looked at whether images are finite.

        Args:
            z: float32 `[batch, d_z]`; None for a model without z.
            v: float32 `[batch, height, width, channels]`.

        Returns:
            uint8 `[batch, height, width, channels]`.

        Raises:
            UserError: where z is missing or superfluous, or a shape does not fit.
            InversionError: where an image is not finite, naming it.
            NotInitializedError: for a model without weights.
        """
        self.require_initialized()
        z, v = as_codes(z, v, self._d_z, self.config.image_shape)
        try:
            x = self.flow.inverse_and_log_det(v, z)[0]
        except tf.errors.InvalidArgumentError as error:
            if "not invertible" not in error.message:
                raise
            every = listed(range(v.shape[0]))
            raise InversionError(
                f"a 1x1 convolution is singular or not finite, for image {every} of the batch"
            ) from error
        if tf.executing_eagerly():
            require_finite("decode gave pixels that are not finite", x)
        return self.pixels(x)

    def sample(self, n: int, temperature: float = 1.0, seed: Any = None, labels: Any = None) -> tf.Tensor:
        """Draws new images: z ~ p(z), v ~ temperature * N(0, I).

        A model that knows labels draws y ~ p(y) first, where it is not told them.

        However many are drawn, memory holds the noise of a few; of the images it holds two copies at the end.

        Args:
            n: how many.
            temperature: acts on v alone.
            seed: whole number or `[2]` integer tensor; None draws a fresh one, in a `tf.function` at each of its calls.
            labels: that the images are to have: whole numbers `[n]`, or one for all; None to draw them.

        Returns:
            uint8 `[n, height, width, channels]`.

        Raises:
            DataError: for an unknown label, or labels of another number.
            UserError: where n is no whole number from 0 on, the temperature no number from 0 on, for another seed, or
                where memory cannot hold so many images.
            NotInitializedError: for a model without weights.
            InversionError: where an image is not finite.
        """
        self.require_initialized()
        n, temperature = as_whole_number(n, "n"), as_number(temperature, "temperature")
        seed = randomness.base_seed(seed)
        labels = as_labels(labels, n, self.config.classes, required=True) if labels is not None else None
        z_seed, v_seed = randomness.fold(seed, "z"), randomness.fold(seed, "v")
        d_z, values = self.config.latent_dim, math.prod(self.config.image_shape)
        images = []
        try:
            if 2 * n * values > free_memory():
                raise MemoryError
            for first in range(0, n, _Z_CHUNK):
                last = min(first + _Z_CHUNK, n)
                z = None
                if self.config.has_latent:
                    noise = randomness.normal_part((last - first) * d_z, first * d_z, z_seed)
                    own = None if labels is None else labels[first:last]
                    if own is None and self.config.has_classes:
                        own = self.drawn_labels(first, last, randomness.fold(seed, "labels"))
                    z = self.z_from_noise(tf.reshape(noise, [-1, d_z]), own)
                for start in range(first, last, CHUNK):
                    count = min(CHUNK, last - start)
                    v = randomness.normal_part(count * values, start * values, v_seed)
                    v = temperature * tf.reshape(v, [count, *self.config.image_shape])
                    images.append(self.decode(None if z is None else z[start - first : start - first + count], v))
            return tf.concat(images, 0) if images else tf.zeros([0, *self.config.image_shape], tf.uint8)
        except (MemoryError, tf.errors.ResourceExhaustedError) as error:
            raise UserError(
                f"out of memory with {n:,} images of {values:,} bytes; draw fewer at a time, each part with a seed of "
                "its own"
            ) from error

    def switch(self, a: Any, b: Any, labels: Any = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Switches the global codes of two batches of images (paper section 3.2, Figure 1).

        Args:
            a: uint8 `[batch, height, width, channels]`.
            b: the same shape.
            labels: of a and of b, a pair of what `encode` takes; None for none.

        Returns:
            (ab, ba), uint8 of that shape: ab has z of a and v of b, ba has z of b and v of a.

        Raises:
            UserError: for a model without z.
            DataError: for images of another shape or type.
        """
        self._require_latent("a switch of z")
        a, b = as_image_batches("switch", a, b, self.config.image_shape)
        codes_a, codes_b = self._encoded_pair(a, b, labels)
        return self.decode(codes_a.z, codes_b.v), self.decode(codes_b.z, codes_a.v)

    def interpolate(
        self,
        a: Any,
        b: Any,
        alphas: Sequence[float] | float,
        betas: Sequence[float] | float,
        labels: Any = None,
        path: str = "lerp",
    ) -> tf.Tensor:
        """Interpolates between two batches of images in two dimensions (paper section 3.2, Figure 5).

        Args:
            a: uint8 `[batch, height, width, channels]`.
            b: the same shape.
            alphas: positions between z of a (0) and z of b (1); a number stands for a list of it. Without z they change
                nothing.
            betas: positions between v of a (0) and v of b (1); likewise.
            labels: as for `switch`.
            path: of v: "lerp" for the line between the two, as in the paper, or "slerp" for the arc around the origin,
                on which v in the middle is as long as at the ends and images keep their contrast. z takes the line.

        Returns:
            uint8 `[batch, len(alphas), len(betas), height, width, channels]`; corners (0, 0) and (1, 1) are a and b.

        Raises:
            DataError: for images of another shape or type.
            UserError: for alphas or betas that are no finite numbers, or another path.
        """
        a, b = as_image_batches("interpolate", a, b, self.config.image_shape)
        of_z, of_v = as_numbers(alphas, "alphas"), as_numbers(betas, "betas")
        require_path(path)
        (z_a, v_a), (z_b, v_b) = self._encoded_pair(a, b, labels)
        count, rows, columns = v_a.shape[0], len(of_z), len(of_v)
        if 0 in (count, rows, columns):
            return tf.zeros([sizes(v_a)[0], rows, columns, *self.config.image_shape], tf.uint8)
        v = between(v_a, v_b, of_v, path)
        v = tf.reshape(tf.repeat(v[:, None], rows, 1), [-1, *self.config.image_shape])
        z = None
        if z_a is not None and z_b is not None:
            z = tf.repeat(between(z_a, z_b, of_z)[:, :, None], columns, 2)
            z = tf.reshape(z, [-1, self.config.latent_dim])
        return tf.reshape(self._decode_in_chunks(z, v), [-1, rows, columns, *self.config.image_shape])

    def edit(self, images: Any, direction: Any, amount: Any, labels: Any = None) -> tf.Tensor:
        """Moves z of images along a direction, and leaves their v as it is.

        Args:
            images: uint8 `[batch, height, width, channels]`.
            direction: of `tfdecouple.load_directions`, or any `[d_z]`, or one for each image, `[batch, d_z]`.
            amount: how far, in multiples of the direction: a number, or one for each image, `[batch]`. At 0 an image
                comes back to the very same pixels.
            labels: as for `encode`.

        Returns:
            uint8 of the shape of images.

        Raises:
            UserError: for a model without z, or a direction or an amount of another shape or not finite.
            DataError: for images of another shape or type.
        """
        self._require_latent("a direction in z")
        images = as_images(images, self.config.image_shape)
        step = as_z_change(direction, amount, images.shape[0], self.config.latent_dim)
        z, v = self.encode(images, labels)
        assert z is not None
        return self.decode(z + step, v)

    def classify(self, images: Any) -> tf.Tensor:
        """Returns log p(y|x) of each label y by Bayes' rule: p(x|y) p(y), made to add up to 1.

        Deterministic as `encode`. Where z is a function of the label, p(x|y) is the density at the pixels' bin centres,
        one pass of the flow a label; elsewhere all that depends on the label is p(z|y), taken at the posterior mean.

        Args:
            images: uint8 `[batch, height, width, channels]`.

        Returns:
            float32 `[batch, classes]`; `tf.argmax(model.classify(images), -1)` are the most probable labels.

        Raises:
            UserError: for a model that knows no labels.
            DataError: for images of another shape or type.
            NotInitializedError: for a model without weights.
        """
        self.require_initialized()
        self._require_classes()
        levels = self._checked_levels(images)
        return tf.math.log_softmax(self.log_joint(levels))

    # --- pieces that other modules build graphs from ---

    def encode_levels(self, levels: tf.Tensor, labels: tf.Tensor | None = None) -> Codes:
        """`encode` of pixel levels, float32 `[batch, height, width, channels]` in 0..n_bins - 1, without any check."""
        z = None if self.encoder is None else self.encoder.infer(self.quantizer.edges(levels))[0]
        if self.code_net is not None:
            z = self.code_net(labels)
        return Codes(z, self.flow.forward_and_log_det(self.quantizer.centres(levels), z)[0])

    def pixels(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the uint8 images of x in [-1, 1); what lies outside is clipped."""
        return self.quantizer.pixels(x)

    def levels_of(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the levels 0..n_bins - 1 of uint8 images, float32 of the same shape."""
        return self.quantizer.levels(images)

    def quantize_images(self, images: Any) -> tf.Tensor:
        """Returns images as the model sees them: unchanged at 8 bits, else with their levels k as k * 256 / n_bins.

        Args:
            images: uint8 `[batch, height, width, channels]`.

        Raises:
            DataError: for images of another shape or type.
        """
        return self.quantizer.quantize(as_images(images, self.config.image_shape))

    def _decode_in_chunks(self, z: tf.Tensor | None, v: tf.Tensor) -> tf.Tensor:
        if v.shape[0] is None:  # In a function of a user's, for batches of any size.
            return self.decode(z, v)
        images = [
            self.decode(None if z is None else z[start : start + CHUNK], v[start : start + CHUNK])
            for start in range(0, v.shape[0], CHUNK)
        ]
        return tf.concat(images, 0)

    def _encoded_pair(self, a: tf.Tensor, b: tf.Tensor, labels: Any) -> tuple[Codes, Codes]:
        try:
            of_a, of_b = (None, None) if labels is None else labels
        except (TypeError, ValueError):
            given = " ".join(repr(labels).split())[:60]
            raise DataError(f"labels are {given}; they must be a pair, those of a and those of b") from None
        return self.encode(a, of_a), self.encode(b, of_b)

    # --- Keras' training: docs/keras.md; its functions are in keras_training.py ---

    _options: TrainingConfig | None = None
    _bound_metrics: keras_training.BoundMetrics | None = None
    train_function: Callable[..., Any] | None
    test_function: Callable[..., Any] | None
    predict_function: Callable[..., Any] | None

    def compile(
        self,
        optimizer: Any = "adam",
        loss: None = None,
        *,
        kl_weight: float = 1.0,
        precision: str | None = None,
        memory: str = "keep",
        jit_compile: bool | str = False,
        seed: int = 0,
        init_images: int = 512,
        max_skipped_steps: int = 10,
        **options: Any,
    ) -> None:
        """Prepares `fit` and `evaluate`, which minimise and measure the negative evidence lower bound.

        Args:
            optimizer: of Keras, or its name. Its schedule, clipping and weight decay are its own.
            loss: none; the bound is.
            kl_weight: as `training.kl_weight` of a run, like the rest.
            precision: "float32", "tf32" or "mixed_bfloat16"; None for that of Keras' global policy.
            memory: "keep", "recompute" or "invert".
            jit_compile: whether XLA compiles each kind of layer; "auto" for no.
            seed: of all noise, in steps and in evaluations.
            init_images: of how many training images `fit` starts a model without weights.
            max_skipped_steps: steps in a row that may be skipped, for values that are not finite or, with
                `memory="invert"`, an inversion that came back too far off.
            **options: `run_eagerly`, `steps_per_execution` and `auto_scale_loss` of Keras.

        Raises:
            UserError: for a loss or metrics of one's own, or a policy in float16.
            ConfigError: for an impossible value.
        """
        training = keras_training.compile_options(
            {"loss": loss, **options},
            kl_weight=kl_weight,
            precision=precision,
            memory=memory,
            jit_compile=jit_compile,
            seed=seed,
            init_images=init_images,
            max_skipped_steps=max_skipped_steps,
        )
        with self.distribute_strategy.scope():
            metrics = keras_training.BoundMetrics(self.nats_to_bits_per_dim, training.kl_weight, max_skipped_steps)
            # Keras would hand all of a step to XLA.
            super().compile(optimizer, jit_compile=False, **options)
        # Only now: if Keras refuses something, the model stays compiled as it was.
        self._options, self._bound_metrics = training, metrics

    def get_compile_config(self) -> dict[str, Any]:
        """Returns the arguments of `compile` as plain values."""
        config = super().get_compile_config()
        if not config or self._options is None:
            return config
        for name in keras_training.FIXED:
            config.pop(name, None)
        return {**config, **{name: getattr(self._options, name) for name in keras_training.OPTIONS}}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as a saved model was."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        with self.distribute_strategy.scope():
            self.optimizer.build(self.trainable_variables)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The loss, bits per dimension and the terms of the bound, once the model is compiled."""
        return super().metrics if self._bound_metrics is None else list(self._bound_metrics.metrics)

    def require_compiled(self, method: str) -> tuple[TrainingConfig, keras_training.BoundMetrics]:
        """Returns the options and the metrics of `compile`.

        Raises:
            UserError: naming the method that needs them, for a model that was not compiled.
        """
        if self._options is None or self._bound_metrics is None:
            raise UserError(f"call model.compile(optimizer) before {method}")
        return self._options, self._bound_metrics

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
            UserError: for a model that was not compiled, or options or devices that training by the bound rules out.
            ConfigError: where the processor cannot do the precision.
            DivergedError: where max_skipped_steps steps in a row were not applied.
        """
        training, metrics = self.require_compiled("fit")
        if options.get("sample_weight") is not None or options.get("class_weight") is not None:
            raise UserError("every image counts alike in the bound: leave out sample_weight and class_weight")
        keras_training.check_fit(self, x, y, batch_size, validation_split, validation_data)
        if not self.has_weights():
            split = validation_split if validation_data is None else 0.0
            x = self._start_from(x, split, training, bool(verbose))
        check_precision_of(self, training.precision, training.memory)
        if isinstance(x, tf.data.Dataset):
            # Keras warns that it does not shuffle one, unless it is told not to.
            options.setdefault("shuffle", False)
        watch = keras_training.SkippedSteps(metrics, training.max_skipped_steps)
        return super().fit(
            keras_training.as_keras_takes(x),
            y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=keras_training.with_callbacks(callbacks, watch, {metric.name for metric in self.metrics}),
            validation_split=validation_split,
            validation_data=keras_training.as_keras_takes(validation_data),
            **options,
        )

    def _start_from(self, x: Any, split: float, training: TrainingConfig, tells: bool) -> Any:
        """Initialises the weights from training images; returns x with those images still to be read."""
        if split:
            images = keras_training.unpack_images(x)[0]
            images = images[: keras_training.trained_on(images, split)]
            images, _ = keras_training.first_images(images, training.init_images, training.seed)
        else:
            images, x = keras_training.first_images(x, training.init_images, training.seed)
        require_images(images, self.config.image_shape)
        if tells:
            print(f"starting the weights from {len(images)} training images, then tracing the first step", flush=True)
        self.initialize(images, seed=training.seed)
        return x

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
            UserError: for a model that was not compiled, or options or devices that training by the bound rules out.
        """
        self.require_compiled("evaluate")
        self.require_initialized()
        if not options.get("_use_cached_eval_dataset"):
            keras_training.check_images(x, y, self.config)
        return super().evaluate(keras_training.as_keras_takes(x), y, *rest, **options)

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
        keras_training.check_images(x, None, self.config)
        found = super().predict(keras_training.as_keras_takes(x), *rest, **options)
        codes = Codes(*found) if self.config.has_latent else Codes(None, found)
        require_finite("predict gave codes that are not finite", *[code for code in codes if code is not None])
        warn_of_far_images(codes.v)
        return codes

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Takes a step on this device's images of a batch, for Keras' loops; returns the metrics."""
        return keras_training.train_step(self, data)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Measures this device's images of a batch, for Keras' loops; returns the metrics."""
        return keras_training.test_step(self, data)

    def predict_step(self, data: Any) -> Any:
        """Encodes this device's images of a batch, for Keras' loops."""
        return keras_training.predict_step(self, data)

    def make_train_function(self, force: bool = False) -> None:
        """Makes the function of a step, in full float32 unless training is in TF32; Keras' loops call it."""
        if self.train_function is not None and not force:
            return
        training, _ = self.require_compiled("fit")
        self.require_initialized()
        if not self.optimizer.built:
            with self.distribute_strategy.scope():
                # A step builds nothing: it may be within the condition that it is applied on.
                self.optimizer.build(self.trainable_variables)
        super().make_train_function(force)
        context = tensor_float_32 if training.precision == "tf32" else full_float32
        self.train_function = keras_training.run_within(context, self.train_function)

    def make_test_function(self, force: bool = False) -> None:
        """Makes the function that measures a batch; Keras' loops call it."""
        if self.test_function is None or force:
            super().make_test_function(force)
            self.test_function = keras_training.run_within(full_float32, self.test_function)

    def make_predict_function(self, force: bool = False) -> None:
        """Makes the function that encodes a batch; Keras' loops call it."""
        if self.predict_function is None or force:
            super().make_predict_function(force)
            self.predict_function = keras_training.run_within(full_float32, self.predict_function)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # All is built. Keras would take the mean over the devices of a batch, who may have unequally many images.
        return
