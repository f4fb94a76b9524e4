"""The steps that Keras' loops take on each device, and what of them is done for all devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.arguments import require_images
from tfdecouple.model.gradient import INVERSION_BOUND, Share, differentiate, global_norm, in_slot
from tfdecouple.model.keras_training.compiling import CompiledModel
from tfdecouple.model.keras_training.images import unpacked
from tfdecouple.model.networks import Codes
from tfdecouple.model.noise import u_noise, z_noise
from tfdecouple.runtime.shapes import sizes
from tfdecouple.runtime.tf32 import full_float32, tensor_float_32


class Steps(CompiledModel):
    """A compiled model with the steps of `fit`, `evaluate` and `predict`."""

    encode: Callable[..., Codes]
    train_function: Callable[..., Any] | None
    test_function: Callable[..., Any] | None
    predict_function: Callable[..., Any] | None

    def make_train_function(self, force: bool = False) -> None:
        """Makes what takes a step; Keras' loops call it."""
        if self.train_function is not None and not force:
            return
        training, _ = self._compiled("fit")
        self.require_initialized()
        if not self.optimizer.built:
            with self.distribute_strategy.scope():
                # Not within the condition that a step is applied on.
                self.optimizer.build(self.trainable_variables)
        super().make_train_function(force)
        self.train_function = _within(
            tensor_float_32 if training.precision == "tf32" else full_float32, self.train_function
        )

    def make_test_function(self, force: bool = False) -> None:
        """Makes what measures a batch; Keras' loops call it."""
        if self.test_function is None or force:
            super().make_test_function(force)
            self.test_function = _within(full_float32, self.test_function)

    def make_predict_function(self, force: bool = False) -> None:
        """Makes what encodes a batch; Keras' loops call it."""
        if self.predict_function is None or force:
            super().make_predict_function(force)
            self.predict_function = _within(full_float32, self.predict_function)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # All is built. Keras would take the mean over the devices of a batch, who may have unequally many images.
        return

    # --- on each device ---

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Takes a step on this device's images of a batch: bound, gradient, and an update where it can be trusted."""
        training, figures = self._compiled("fit")
        (images, labels), replica = self._examples(data), tf.distribute.get_replica_context()
        local = sizes(images)[0]
        batch = local * replica.num_replicas_in_sync
        drawn = self._draw(images, local, batch, replica.replica_id_in_sync_group)
        share = differentiate(
            lambda: self.elbo_from_noise(*drawn, training=True, labels=labels),
            self.trainable_variables,
            self._moving(),
            batch_size=batch,
            kl_weight=training.kl_weight,
            precision=training.precision,
            memory=training.memory,
            jit_compile=training.jit_compile,
        )
        share = _reduced(share, replica)
        finite = tf.math.is_finite(tf.add_n(share.terms)) & tf.math.is_finite(global_norm(share.gradients))
        # Written so that NaN is too large.
        applied = finite & (share.inversion_error <= INVERSION_BOUND[training.precision]) & figures.goes_on
        images_counted = tf.cast(batch, tf.float64)
        sums = tf.concat([tf.cast(tf.stack(share.terms), tf.float64) * images_counted, [images_counted]], 0)
        replica.merge_call(self._update, args=(applied, share.gradients, share.moving, sums))
        return {**figures.results(), "skipped_steps": figures.not_applied + 0}

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Measures this device's images of a batch."""
        training, figures = self._compiled("evaluate")
        replica = tf.distribute.get_replica_context()
        images, labels, local = _at_least_one(*self._examples(data), replica)
        index = figures.images + _before(local, replica) + tf.range(tf.shape(images, tf.int64)[0])
        which = training.seed, tf.zeros_like(index), index
        config = self.config
        noise = z_noise(config.latent_dim, *which), u_noise(config.image_shape, *which, config.has_dequantizer)
        elbo = self.elbo_from_noise(images, *noise, labels=labels)
        terms = tf.cast(tf.stack([elbo.reconstruction, elbo.kl, elbo.dequantization], -1), tf.float64)
        sums = tf.concat([tf.reduce_sum(terms[:local], 0), [tf.cast(local, tf.float64)]], 0)
        sums = replica.all_reduce(tf.distribute.ReduceOp.SUM, sums)
        replica.merge_call(lambda strategy, sums: figures.add(_one(strategy, sums)), args=(sums,))
        return figures.results()

    def predict_step(self, data: Any) -> Any:
        """Encodes this device's images of a batch; v alone where there is no z."""
        images, labels, local = _at_least_one(*self._examples(data), tf.distribute.get_replica_context())
        codes = self.encode(images, labels)
        return codes.v[:local] if codes.z is None else (codes.z[:local], codes.v[:local])

    def _draw(self, images: tf.Tensor, local: Any, batch: Any, number: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the images with their noise for z and for the dequantisation: of the whole batch their slice."""
        (training, figures), config = self._compiled("fit"), self.config
        seed = randomness.fold(training.seed, "step", tf.convert_to_tensor(self.optimizer.iterations))
        if self.optimizer.gradient_accumulation_steps:
            # Which are one iteration together.
            seed = randomness.fold(seed, figures.images)
        start = tf.cast(number, tf.int32) * local
        z = randomness.normal([batch, config.latent_dim], randomness.fold(seed, "z"))
        u = randomness.pixel_noise([batch, *config.image_shape], randomness.fold(seed, "u"), config.has_dequantizer)
        return images, z[start : start + local], u[start : start + local]

    def _examples(self, data: Any) -> tuple[tf.Tensor, Any]:
        """Returns images, and their labels where the model knows labels and there are some."""
        images, labels = unpacked(data)
        images = tf.convert_to_tensor(images)
        require_images(images, self.config.image_shape)
        return images, self.wanted_labels(labels)

    def _moving(self) -> list[keras.Variable]:
        """Returns the moving statistics of batch normalisation."""
        return [variable for variable in self.non_trainable_variables if variable.path.endswith(("_mean", "_variance"))]

    # --- for all devices ---

    def _update(self, strategy: Any, applied: Any, gradients: list[Any], moving: list[Any], sums: Any) -> None:
        """Applies what the devices found, which is the same on all of them by now, or nothing."""
        assert self._figures is not None
        applied = _one(strategy, applied)

        def apply() -> tf.Tensor:
            strategy.extended.call_for_each_replica(self._apply, args=(gradients,))
            for variable, value in zip(self._moving(), moving, strict=True):
                strategy.extended.update(variable.value, lambda old, new: old.assign(new), args=(value,), group=False)
            return tf.constant(True)

        # Keras' optimizers know no update by nothing.
        tf.cond(applied, apply, lambda: tf.constant(False))
        self._figures.count_step(applied, _one(strategy, sums))

    def _apply(self, gradients: list[tf.Tensor]) -> None:
        count = tf.distribute.get_replica_context().num_replicas_in_sync
        if count > 1:
            # Keras clips before it adds up over the devices, each its own share.
            gradients = [gradient / count for gradient in _clipped(self.optimizer, gradients)]
        self.optimizer.apply(gradients, self.trainable_variables)


def _within(context: Callable[[], Any], function: Any) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        with context():
            return function(*arguments)

    return run


def _one(strategy: Any, value: Any) -> tf.Tensor:
    """Returns the value of the first device, where all have the same."""
    return strategy.experimental_local_results(value)[0]


def _reduced(share: Share, replica: Any) -> Share:
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


def _clipped(optimizer: Any, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """Returns gradients as the optimizer's options clip them."""
    if optimizer.clipnorm:
        return [tf.clip_by_norm(gradient, optimizer.clipnorm) for gradient in gradients]
    if optimizer.global_clipnorm:
        return tf.clip_by_global_norm(gradients, optimizer.global_clipnorm)[0]
    if optimizer.clipvalue:
        return [tf.clip_by_value(gradient, -optimizer.clipvalue, optimizer.clipvalue) for gradient in gradients]
    return gradients


def _at_least_one(images: tf.Tensor, labels: Any, replica: Any) -> tuple[tf.Tensor, Any, tf.Tensor]:
    """Returns images and labels, and how many there were, int64; where a device of several has none, one of zeros."""
    local = tf.shape(images, tf.int64)[0]
    if replica.num_replicas_in_sync > 1:
        # A convolution has no answer to an empty batch.
        missing = tf.maximum(1 - local, 0)
        images = tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]])
        labels = None if labels is None else tf.pad(labels, [[0, missing]])
    return images, labels, local


def _before(local: tf.Tensor, replica: Any) -> tf.Tensor:
    """Returns how many images of a batch the devices before this one have."""
    count = replica.num_replicas_in_sync
    if count == 1:
        return tf.zeros_like(local)
    number = tf.cast(replica.replica_id_in_sync_group, tf.int32)
    all_sizes = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.one_hot(number, count, local, 0, dtype=tf.int64))
    return tf.reduce_sum(tf.where(tf.range(count) < number, all_sizes, 0))
