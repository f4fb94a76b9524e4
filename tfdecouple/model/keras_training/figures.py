"""What Keras shows of a training: the terms of the bound as metrics, and the steps that were not applied."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdecouple.errors import DivergedError, warn_user

TERMS = ("reconstruction", "kl", "dequantization")


class Figures:
    """Sums over the images since the metrics were reset, and counts of steps, on the devices.

    Create it inside the scope of the strategy that trains. What is added is the sum of all devices, from outside of
    them.

    Args:
        bits_per_dim: from nats per image to bits per colour value.
        kl_weight: of the KL term in the loss.
        most_skipped: after so many steps in a row that were not applied training has diverged.

    Attributes:
        metrics: `loss`, what training minimises, in nats per image; `bits_per_dim`; the terms in nats per image.
        skipped: steps in a row that were not applied.
        not_applied: how many were not since the epoch began.
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

        self.metrics = [_OfTerms("loss", self._sums, loss), _OfTerms("bits_per_dim", self._sums, bound)]
        self.metrics += [_OfTerms(name, self._sums, operator.itemgetter(number)) for number, name in enumerate(TERMS)]

    @property
    def images(self) -> tf.Tensor:
        """How many images were counted, int64."""
        return tf.cast(self._sums[-1], tf.int64)

    @property
    def goes_on(self) -> tf.Tensor:
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
        # Where training has diverged nothing is counted any more, however many steps are taken before it is known.
        self.skipped.assign(
            tf.where(applied, tf.zeros_like(self.skipped), self.skipped + tf.cast(self.goes_on, tf.int64))
        )
        self.not_applied.assign_add(tf.cast(~applied, tf.int64))

    def begin_epoch(self) -> None:
        """Counts steps that are not applied from 0 on."""
        self.not_applied.assign(0)

    def require_convergence(self) -> None:
        """Ends a training that has diverged.

        Raises:
            DivergedError: in one line.
        """
        if not bool(self.goes_on):
            count = int(self.skipped.numpy())
            raise DivergedError(
                f"training diverged: {count} steps in a row were not applied, for values that are not "
                "finite or inversions that came back too far off; the model has the weights before them. A smaller "
                "learning rate, a warm-up or clipping may help (docs/divergence.md); compile before you fit again"
            )


class _OfTerms(keras.metrics.Metric):
    """A figure made of the mean terms of the bound; NaN where no image was counted, so that no callback takes it."""

    def __init__(self, name: str, sums: tf.Variable, figure: Callable[[tf.Tensor], tf.Tensor]):
        super().__init__(dtype="float64", name=name)
        self._of, self._figure = sums, figure

    def update_state(self, *arguments: Any, **options: Any) -> None:
        """Does nothing: `Figures.add` does."""

    def result(self) -> tf.Tensor:
        """Returns the figure, a float64 scalar."""
        sums = tf.convert_to_tensor(self._of)
        return self._figure(sums[:-1] / sums[-1])

    def reset_state(self) -> None:
        """Forgets the images: those of all figures, which are the same."""
        self._of.assign(tf.zeros_like(self._of))


class Watch(keras.callbacks.Callback):
    """Tells of steps that were not applied, and ends a training that has diverged.

    It reads from the devices now and then: a GPU would stand still if it were asked after each step.

    Args:
        figures: what the steps count in.
        every: so many steps lie between two looks.
    """

    def __init__(self, figures: Figures, every: int):
        super().__init__()
        self._figures, self._every, self._steps = figures, every, 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Counts anew."""
        self._figures.begin_epoch()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Looks, where it is time."""
        self._steps += 1
        if self._steps % self._every == 0:
            self._figures.require_convergence()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Looks, and tells."""
        self._figures.require_convergence()
        if count := int(self._figures.not_applied.numpy()):
            warn_user(
                f"epoch {epoch + 1}: {count} step{'s were' if count > 1 else ' was'} not applied, for values that are "
                "not finite or inversions that came back too far off (docs/divergence.md)"
            )
