"""The class `DecoupledModel`, which encodes, decodes, samples, switches, interpolates, edits and classifies images."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
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
from tfdecouple.config.training import STEP_OPTIONS
from tfdecouple.errors import ConfigError, DataError, InversionError, UserError, nearest
from tfdecouple.model import keras_training
from tfdecouple.model.any_size import SizedCodes, compute_size_multiple, require_any_size, round_side_up
from tfdecouple.model.interpolation import interpolate_codes
from tfdecouple.model.networks import Codes, Networks, run_in_parts
from tfdecouple.model.round_trip import format_image_numbers, require_exact_images, require_finite, warn_of_far_images
from tfdecouple.model.step_effects import add_first_noise
from tfdecouple.networks.architecture import compute_weight_shapes
from tfdecouple.runs.pretrained import list_pretrained
from tfdecouple.runs.run_folder import CONFIG, RunFolder
from tfdecouple.runtime.devices import read_free_memory
from tfdecouple.runtime.execution import disable_autograph
from tfdecouple.runtime.numerics import get_sizes
from tfdecouple.runtime.precision import full_float32, tensor_float_32

# `sample` and `interpolate` decode at most this many images at once to limit memory; results do not depend on it.
CHUNK = 64


@keras.saving.register_keras_serializable(package="tfdecouple")
@disable_autograph
class DecoupledModel(Networks):
    """The paper's model: encoder, prior and flow, with methods to encode, decode, sample, edit, classify and train.

    The constructor creates all weights; `initialize` or `fit` then sets their values, or `from_preset` loads trained
    ones. All images are uint8 `[batch, height, width, channels]` with values 0..255, for any `config.n_bits`.

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

    The arguments are those of `Networks`, such as `config` (the architecture) and `jit_compile`.
    """

    @classmethod
    def from_preset(cls, preset: str, load_weights: bool = True, **kwargs: Any) -> Self:
        """Returns the model of a preset, of a run folder or of the Hugging Face Hub, by default with trained weights.

        Args:
            preset: the name of bundled weights ("photographs"), the address `hf://OWNER/NAME[@REVISION]` of weights on
                the Hub, or the path of a run folder; with `load_weights=False` also the name of a preset like
                "cifar10".
            load_weights: whether to load the trained weights; False leaves the weights uninitialised.
            **kwargs: arguments of the constructor.

        Raises:
            ConfigError: if no preset or bundled weights have this name, or `load_weights` is true for a preset without
                weights.
        """
        if not (RunFolder(preset).path / CONFIG).is_file():
            known = (*list_pretrained(), *preset_names())
            if preset not in known:
                hint = nearest(preset, known)
                raise ConfigError(f"there is no preset {preset!r}{hint}; there are {', '.join(known)}")
            if load_weights:
                raise ConfigError(
                    f"the preset {preset} has no weights; give load_weights=False, or one that has: "
                    f"{', '.join(list_pretrained())}"
                )
            return cls(load_preset(preset).model, **kwargs)
        config = RunFolder(preset).read_config()
        RunFolder(preset).require_fitting_weights(compute_weight_shapes(config.model))
        model = cls(config.model, **kwargs)
        if load_weights:
            RunFolder(preset).load_weights(model, averaged=config.training.ema_decay > 0)
        return model

    def call(self, images: tf.Tensor, labels: Any = None, training: bool = False) -> Codes | SizedCodes:
        """Returns the codes z and v of images, as `encode` does; Keras calls this method for `model(images)`."""
        return self.encode(images, labels)

    def encode(self, images: Any, labels: Any = None, verify: bool = False) -> Codes | SizedCodes:
        """Returns the codes of images: z is the mean of q(z|x), v the flow's output for x at the centres of the bins.

        Images may have another height and width than `config.image_shape`. Then z is the code of the image resized to
        that shape (`tfdecouple.model.any_size.shrink_images`), and v is the flow's output, given this z, for the image
        at its full size. Sides that the flow cannot halve are padded by repeating the last row and column. A model with
        weights whose shape depends on the image size, as with `conditioning` "base", accepts images of one size only.

        Args:
            images: uint8 images, `[batch, height, width, channels]`.
            labels: labels of the images, whole numbers `[batch]`, for a model whose z is a function of the label.
            verify: whether to decode the codes and check that they reproduce the images. Images far from the training
                data, such as a checkerboard of two saturated colours, are in rare cases not reproduced exactly. Without
                `verify` an `ExactnessWarning` names the images that are `far_from_training`. Within a `tf.function`
                there is neither a warning nor a check.

        Returns:
            `Codes(z, v)`; for images of another size `SizedCodes(z, v, size)`, where v is the code of the padded image.

        Raises:
            InversionError: if codes are not finite, or `verify` finds images that are not reproduced exactly.
            UserError: if `verify` is set within a `tf.function`, or images are too large for the free memory.
        """
        if verify and not tf.executing_eagerly():
            raise UserError(
                "encode(images, verify=True) was called within a tf.function, which cannot look at its values; call it "
                "outside, or leave verify out"
            )
        self.require_initialized()
        images = self._check_images(images)
        labels = self._check_labels(labels, images)
        z, v = self._run_within_memory(self._encode_images, images, labels)
        if tf.executing_eagerly():
            require_finite("encode gave codes that are not finite", v, *([] if z is None else [z]))
            if verify:
                # The flow is inverted here, because `decode` would raise another error for pixels that are not finite.
                x = self._run_within_memory(self._invert_flow, v, z)[:, : images.shape[1], : images.shape[2]]
                decoded, expected = self.quantizer.round_to_pixels(x), self.quantizer.quantize_pixels(images)
                require_exact_images(decoded, x, expected, self.config.bound_of_scales)
            else:
                warn_of_far_images(v)
        size = self._get_other_size(images)
        return Codes(z, v) if size is None else SizedCodes(z, v, size)

    def _encode_images(self, images: tf.Tensor, labels: tf.Tensor | None) -> Codes:
        bins, encoder_bins = self._find_bins_of_any_size(images)
        z = None if self.code_net is None else self.code_net(labels)
        if self.encoder is not None:
            z = self.encoder.run_inference(self.quantizer.place_at_edges(encoder_bins))[0]
        return Codes(z, self.flow.forward_and_log_det(self.quantizer.place_at_centres(bins), z)[0])

    def _invert_flow(self, v: tf.Tensor, z: tf.Tensor | None) -> tf.Tensor:
        return self.flow.inverse_and_log_det(v, z)[0]

    def decode(self, z: Any, v: Any, size: tuple[int, int] | None = None) -> tf.Tensor:
        """Returns the images of codes; `decode(*encode(images))` returns exactly the pixels of `images`.

        With `n_bits` below 8, each pixel becomes the lowest value in its bin (`quantize_images`). In rare cases pixels
        differ, which `encode(images, verify=True)` reports.

        Args:
            z: global codes, float32 `[batch, d_z]`; None for a model without z.
            v: local codes, float32 `[batch, height, width, channels]`.
            size: height and width to which the decoded images are cropped, from `SizedCodes.size`; None crops nothing.

        Returns:
            The images, uint8 `[batch, height, width, channels]`.

        Raises:
            InversionError: if images are not finite (not checked within a `tf.function`), or a 1x1 convolution is
                singular.
        """
        self.require_initialized()
        multiple = compute_size_multiple(self.config)
        z, v = as_codes(z, v, self._d_z, self.config.image_shape, multiple)
        if self._get_other_size(v) is not None:
            require_any_size(self.config, "v", v)
        if size is not None and not any(map(tf.is_tensor, size)):
            padded = [round_side_up(as_whole_number(side, "a side in size"), multiple) for side in size]
            if not v.shape[1:3].is_compatible_with(padded):
                raise UserError(
                    f"size is {tuple(size)}, for which v is [batch, *{padded}, ...]; v is of shape {tuple(v.shape)}"
                )
        try:
            x = self._run_within_memory(self._invert_flow, v, z)
        except tf.errors.InvalidArgumentError as error:
            if "not invertible" not in error.message:
                raise
            numbers = format_image_numbers(range(v.shape[0]))
            message = f"a 1x1 convolution is singular or not finite, for image {numbers} of the batch"
            raise InversionError(message) from error
        if tf.executing_eagerly():
            require_finite("decode gave pixels that are not finite", x)
        return self.quantizer.round_to_pixels(x if size is None else x[:, : size[0], : size[1]])

    def sample(self, n: int, temperature: float = 1.0, seed: Any = None, labels: Any = None) -> tf.Tensor:
        """Returns new images, decoded from z ~ p(z) and v ~ temperature * N(0, I).

        The images are decoded a few at a time. At the end memory must hold two copies of all images.

        Args:
            n: how many images to draw.
            temperature: scale of v; z does not depend on the temperature.
            seed: whole number or `[2]` integer tensor; None for a fresh seed (in a `tf.function`, a fresh one in each
                call).
            labels: labels of the new images, whole numbers `[n]`, or one label for all images. If they are None, a
                model with labels draws labels from p(y).

        Returns:
            The images, uint8 `[n, height, width, channels]`.

        Raises:
            UserError: if an argument has an impossible value, or memory cannot hold so many images.
            InversionError: if an image is not finite.
        """
        self.require_initialized()
        n, temperature = as_whole_number(n, "n"), as_number(temperature, "temperature")
        seed = randomness.make_seed(seed)
        labels = as_labels(labels, n, self.config.classes, required=True) if labels is not None else None
        z_seed, v_seed = randomness.derive_seed(seed, "z"), randomness.derive_seed(seed, "v")
        d_z, values = self.config.latent_dim, math.prod(self.config.image_shape)
        images = []
        try:
            if 2 * n * values > read_free_memory():
                raise MemoryError
            for first in range(0, n, CHUNK):
                last, z = min(first + CHUNK, n), None
                if self.config.has_latent:
                    noise = randomness.draw_normal_part((last - first) * d_z, first * d_z, z_seed)
                    own = None if labels is None else labels[first:last]
                    if own is None and self.config.has_classes:
                        own = self.draw_labels(first, last, randomness.derive_seed(seed, "labels"))
                    z = self.z_from_noise(tf.reshape(noise, [-1, d_z]), own)
                v = randomness.draw_normal_part((last - first) * values, first * values, v_seed)
                images.append(self.decode(z, temperature * tf.reshape(v, [-1, *self.config.image_shape])))
            return tf.concat(images, 0) if images else tf.zeros([0, *self.config.image_shape], tf.uint8)
        except (MemoryError, tf.errors.ResourceExhaustedError) as error:
            raise UserError(
                f"out of memory with {n:,} images of {values:,} bytes; draw fewer at a time, each part with a seed of "
                "its own"
            ) from error

    def switch(self, a: Any, b: Any, labels: Any = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Exchanges z between the images of two batches, and returns the two batches of new images (paper Figure 1).

        Args:
            a: uint8 images `[batch, height, width, channels]`, of any height and width as for `encode`.
            b: as many images as in a, possibly of another height and width.
            labels: a pair, the labels of a and the labels of b, each as for `encode`; None for no labels.

        Returns:
            (ab, ba), uint8: ab has z of a and v of b, and the size of b; ba has z of b and v of a, and the size of a.
        """
        self._require_latent("a switch of z")
        a, b = as_image_batches("switch", a, b, self.config.image_shape)
        codes_a, codes_b = self._encode_pair(a, b, labels)
        return self.decode(codes_a.z, *codes_b[1:]), self.decode(codes_b.z, *codes_a[1:])

    def interpolate(
        self,
        a: Any,
        b: Any,
        alphas: Sequence[float] | float,
        betas: Sequence[float] | float,
        labels: Any = None,
        path: str = "lerp",
    ) -> tf.Tensor:
        """Returns a grid of images between each image of a and its partner in b: rows change z, columns change v.

        The paper's Figure 5 shows such grids.

        Args:
            a: uint8 images `[batch, height, width, channels]`, of any height and width as for `encode`.
            b: images of the same shape, one partner for each image of a.
            alphas: positions between z of a (0) and z of b (1), a list or one number, ignored by a model without z.
            betas: positions between v of a (0) and v of b (1), a list or one number.
            labels: a pair, the labels of a and the labels of b, each as for `encode`; None for no labels.
            path: path of v: "lerp" for the line between the codes, as in the paper, or "slerp" for the arc around the
                origin. On the arc v is as long in the middle as at the ends, so that images keep their contrast. The
                path of z is always the line.

        Returns:
            uint8 `[batch, len(alphas), len(betas), height, width, channels]`; alpha = beta = 0 gives a, and 1 gives b.
        """
        a, b = as_image_batches("interpolate", a, b, self.config.image_shape)
        of_z, of_v = as_numbers(alphas, "alphas"), as_numbers(betas, "betas")
        if not a.shape.is_compatible_with(b.shape):
            raise DataError(f"interpolate got images of shapes {tuple(a.shape)} and {tuple(b.shape)}; give one size")
        codes_a, codes_b = self._encode_pair(a, b, labels)
        (z_a, v_a), (z_b, v_b), size = codes_a[:2], codes_b[:2], codes_a[2:]
        count, rows, columns = v_a.shape[0], len(of_z), len(of_v)
        if 0 in (count, rows, columns):
            return tf.zeros([get_sizes(v_a)[0], rows, columns, *get_sizes(a)[1:]], tf.uint8)
        v = interpolate_codes(v_a, v_b, of_v, path)
        v = tf.reshape(tf.repeat(v[:, None], rows, 1), [-1, *get_sizes(v_a)[1:]])
        z = None
        if z_a is not None and z_b is not None:
            z = tf.repeat(interpolate_codes(z_a, z_b, of_z)[:, :, None], columns, 2)
            z = tf.reshape(z, [-1, self.config.latent_dim])
        # While a user's function is traced, the batch size may be unknown, and the batch cannot be divided into parts.
        decode = functools.partial(self.decode, size=size[0] if size else None)
        images = decode(z, v) if v.shape[0] is None else run_in_parts(decode, CHUNK, z, v)
        return tf.reshape(images, [-1, rows, columns, *get_sizes(a)[1:]])

    def edit(self, images: Any, direction: Any, amount: Any, labels: Any = None) -> tf.Tensor:
        """Encodes images, adds `amount` times `direction` to z, and returns the images decoded from this z and from v.

        Args:
            images: uint8 images `[batch, height, width, channels]`, of any height and width as for `encode`.
            direction: a direction from `tfdecouple.load_directions`, any vector `[d_z]`, or a vector for each image,
                `[batch, d_z]`.
            amount: multiple of the direction that is added to z: one number, or a number for each image, `[batch]`.
                With 0 the returned pixels are exactly those of `images`.
            labels: labels of the images, as for `encode`.

        Returns:
            The edited images, uint8 of the shape of `images`.
        """
        self._require_latent("a direction in z")
        images = self._check_images(images)
        step = as_z_change(direction, amount, images.shape[0], self.config.latent_dim)
        z, *local = self.encode(images, labels)
        assert z is not None
        return self.decode(z + step, *local)

    def classify(self, images: Any) -> tf.Tensor:
        """Returns log p(y|x) of each label y, float32 `[batch, classes]`: log p(x|y) p(y), normalised over the labels.

        If z is a function of the label, p(x|y) is the density at the bin centres of the pixels, computed by one pass of
        the flow for each label. Otherwise only the prior p(z|y) depends on the label, and is evaluated at the mean of
        q(z|x). `tf.argmax(model.classify(images), -1)` returns the most probable label of each image.
        """
        self.require_initialized()
        self._require_classes()
        return tf.math.log_softmax(self.evaluate_log_joint(self._find_bins(images)))

    def quantize_images(self, images: Any) -> tf.Tensor:
        """Returns uint8 images with each pixel replaced by the lowest value in its bin; at 8 bits no pixel changes."""
        return self.quantizer.quantize_pixels(as_images(images, self.config.image_shape))

    def _encode_pair(self, a: tf.Tensor, b: tf.Tensor, labels: Any) -> tuple[Codes | SizedCodes, Codes | SizedCodes]:
        try:
            of_a, of_b = (None, None) if labels is None else labels
        except (TypeError, ValueError):
            shown = " ".join(repr(labels).split())[:60]
            raise DataError(f"labels are {shown}; they must be a pair, those of a and those of b") from None
        return self.encode(a, of_a), self.encode(b, of_b)

    # --- overrides of Keras' methods, most of whose work is done by functions in keras_training.py ---

    _options: TrainingConfig | None = None
    _bound_metrics: keras_training.BoundMetrics | None = None
    train_function: Any
    test_function: Any
    predict_function: Any

    def compile(self, optimizer: Any = "adam", loss: None = None, **options: Any) -> None:
        """Sets the options of `fit` and `evaluate`, which minimise and measure the negative evidence lower bound.

        Args:
            optimizer: a Keras optimizer, with its schedule, clipping and weight decay, or the name of an optimizer.
            loss: must be None, because the loss is always the negative evidence lower bound.
            **options: `run_eagerly`, `steps_per_execution` and `auto_scale_loss` as in Keras, and those options of
                `TrainingConfig` that take effect in each step (`config.training.STEP_OPTIONS`), such as `kl_weight`,
                `noise`, `memory` or `seed`, with its defaults; `precision` is by default that of Keras' global policy.

        Raises:
            UserError: if a loss or metrics are given, or Keras' policy is float16.
            ConfigError: if an option has an impossible value.
        """
        training = keras_training.make_training_config({"loss": loss, **options})
        options = {name: value for name, value in options.items() if name not in STEP_OPTIONS}
        metrics = keras_training.BoundMetrics(self.nats_to_bits_per_dim, training)
        # Keras' `jit_compile` would make XLA compile a whole training step, so it stays off; XLA compiles layers only.
        super().compile(optimizer, jit_compile=False, **options)
        # These attributes are set last, so that they keep their old values if Keras refuses an argument.
        self._options, self._bound_metrics = training, metrics

    def get_compile_config(self) -> dict[str, Any]:
        """Returns {name: value} of the arguments of this model's `compile`, plain values that Keras saves with it."""
        config = super().get_compile_config()
        if not config or self._options is None:
            return config
        for name in keras_training.FIXED:
            config.pop(name, None)
        return {**config, **{name: getattr(self._options, name) for name in STEP_OPTIONS}}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model with the dict that `get_compile_config` returned when the model was saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self._build_optimizer()

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """A compiled model's Keras metrics, a list: the loss, bits per dimension and the terms of the lower bound."""
        return super().metrics if self._bound_metrics is None else list(self._bound_metrics.metrics)

    def require_compiled(self, method: str) -> tuple[TrainingConfig, keras_training.BoundMetrics]:
        """Returns training config and metrics from `compile`; raises UserError if `method`, such as fit, cannot run."""
        if self._options is None or self._bound_metrics is None:
            raise UserError(f"call model.compile(optimizer) before {method}")
        keras_training.require_one_device(self)
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
        training, metrics = self.require_compiled("fit")
        if options.get("sample_weight") is not None or options.get("class_weight") is not None:
            raise UserError("every image counts alike in the bound: leave out sample_weight and class_weight")
        keras_training.check_images(x, y, self.config)
        validation = options.get("validation_data")
        if validation is not None:
            is_pair = isinstance(validation, tuple) and len(validation) == 2
            validation_x, validation_y = validation if is_pair else (validation, None)
            keras_training.check_images(validation_x, validation_y, self.config)
            options["validation_data"] = keras_training.wrap_generator(validation)
        if not self.has_weights():
            split = 0.0 if validation is not None else options.get("validation_split", 0.0)
            images = keras_training.read_first_images(x, split, training.init_images, training.seed)
            require_images(images, self.config.image_shape)
            if options.get("verbose", True):
                print(
                    f"starting the weights from {len(images)} training images, then tracing the first step", flush=True
                )
            self.initialize(add_first_noise(images, training), seed=training.seed)
        if isinstance(x, tf.data.Dataset):
            # Keras does not shuffle a `tf.data.Dataset`, and would warn about the default of its `fit`, shuffle=True.
            options.setdefault("shuffle", False)
        callbacks = tf.nest.flatten(options.pop("callbacks", None) or [])
        callbacks.insert(0, keras_training.SkippedSteps(metrics, training))
        names = {metric.name for metric in metrics.metrics}
        for callback in callbacks:
            # Keras cannot know that smaller values of these metrics are better, so "auto" is replaced by "min".
            if getattr(callback, "mode", "") == "auto" and callback.monitor.removeprefix("val_") in names:
                callback.mode = "min"
        return super().fit(keras_training.wrap_generator(x), y, *rest, callbacks=callbacks, **options)

    def evaluate(self, x: Any = None, y: Any = None, *rest: Any, **options: Any) -> Any:
        """Returns the metrics of the evidence lower bound, means over all images, as `keras.Model.evaluate` does.

        The noise of an image depends only on the seed of `compile` and on the index of the image. So every batch size
        gives the same results, and so does `python -m tfdecouple evaluate` for the same images.

        The arguments are those of `keras.Model.evaluate`, with x and y in the forms that `fit` accepts.
        """
        self.require_compiled("evaluate")
        self.require_initialized()
        if not options.get("_use_cached_eval_dataset"):
            keras_training.check_images(x, y, self.config)
        return super().evaluate(keras_training.wrap_generator(x), y, *rest, **options)

    def predict(self, x: Any, *rest: Any, **options: Any) -> Codes:
        """Encodes images batch by batch, and returns all codes as `Codes(z, v)` of NumPy arrays.

        The arguments are those of `keras.Model.predict`, with images in the forms that `fit` accepts. Codes that are
        not finite raise InversionError.
        """
        self.require_initialized()
        keras_training.require_one_device(self)
        keras_training.check_images(x, None, self.config)
        found = super().predict(keras_training.wrap_generator(x), *rest, **options)
        codes = Codes(*found) if self.config.has_latent else Codes(None, found)
        require_finite("predict gave codes that are not finite", *[code for code in codes if code is not None])
        warn_of_far_images(codes.v)
        return codes

    # Keras' `fit`, `evaluate` and `predict` call these methods for each batch.
    train_step = keras_training.train_step
    test_step = keras_training.test_step
    predict_step = keras_training.predict_step

    def make_train_function(self, force: bool = False) -> None:
        """Sets `train_function`, which Keras' `fit` calls to run steps, with TF32 only if `precision` is "tf32"."""
        if self.train_function is not None and not force:
            return
        training, _ = self.require_compiled("fit")
        self.require_initialized()
        if not self.optimizer.built:
            # A step calls the optimizer inside `tf.cond`, where the optimizer could not create its variables.
            self._build_optimizer()
        super().make_train_function(force)
        context = tensor_float_32 if training.precision == "tf32" else full_float32
        # TensorFlow reads its switch for TF32 when operations run, so the context surrounds each call, not the trace.
        self.train_function = context()(self.train_function)

    def _build_optimizer(self) -> None:
        # Keras puts an optimizer's variables beside the weights, which it can only inside the scope of their strategy.
        with self.distribute_strategy.scope():
            self.optimizer.build(self.trainable_variables)

    def make_test_function(self, force: bool = False) -> None:
        """Sets `test_function`, which Keras' `evaluate` calls to evaluate batches, in full float32 (without TF32)."""
        if self.test_function is None or force:
            super().make_test_function(force)
            self.test_function = full_float32()(self.test_function)

    def make_predict_function(self, force: bool = False) -> None:
        """Sets `predict_function`, which Keras' `predict` calls to encode batches, in full float32 (without TF32)."""
        if self.predict_function is None or force:
            super().make_predict_function(force)
            self.predict_function = full_float32()(self.predict_function)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Does nothing, because the constructor has built the model; Keras would trace a training step to build it."""
