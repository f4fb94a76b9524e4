"""A measure of `evaluate`: its options, how it is taken, the lines that are printed and the values of its JSON file."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    # TensorFlow is imported when a run is measured, not where `--help` is answered.
    import tensorflow as tf
    from PIL import Image

    from tfdecouple.cli.opening import OpenedRun
    from tfdecouple.data import Source
    from tfdecouple.metrics.estimate import Estimate


class Result(NamedTuple):
    """What a measure found.

    Attributes:
        values: plain values for the JSON file; NaN and infinities become null there.
        lines: that are printed.
        picture: a PNG file beside the JSON file; None for none.
    """

    values: dict[str, Any]
    lines: Sequence[str]
    picture: Image.Image | None = None


class Measure:
    """Something that `evaluate` measures; each class derived from it in this folder is one.

    Attributes:
        name: of the result's file, and of the option that asks for the measure where `is_wanted` is not overridden.
        order: of options, measuring and output; what takes longer comes later.
        on_split: whether it is taken of the images of --split, which its file then names; otherwise it is of test
            images, whatever --split says, and perhaps of others.
        needs_z: whether a model without z is refused.
        needs_classes: whether a model that knows no labels is refused.

    Args:
        options: of the command.
    """

    name: ClassVar[str]
    order: ClassVar[int] = 100
    on_split: ClassVar[bool] = True
    needs_z: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False

    def __init__(self, options: argparse.Namespace):
        self.options = options

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds its options to a group of the parser."""

    def check(self) -> None:
        """Refuses values out of range, before TensorFlow is imported and whether it is wanted or not.

        Raises:
            UserError: naming the option and its value.
        """

    @property
    def option(self) -> str:
        """The option that asks for it, such as "--latent-use"."""
        return f"--{self.name.replace('_', '-')}"

    def is_wanted(self) -> bool:
        """Returns whether the options ask for it."""
        return bool(getattr(self.options, self.name))

    def prepare(self) -> None:
        """Looks for what it needs besides the run, before that is opened: hours may pass before it is measured.

        Raises:
            UserError: for what is missing.
        """

    def measure(self, evaluation: Evaluation) -> Result:
        """Measures.

        Raises:
            UserError: in one line, for whatever the user can mend.
        """
        raise NotImplementedError


class Evaluation:
    """What is measured: a run's model, the images of a split that are wanted, and the devices.

    Attributes:
        opened: the run.
        source: the data set.
        size: how many images --split has.
        count: how many of them are wanted.
        batch_size: images at once.
        strategy: all GPUs where there are several, else TensorFlow's default.

    Args:
        options: of the command.
        needs_z: the option that needs z; empty where none does.

    Raises:
        UserError: for a run or images that cannot be opened, a model without z where it is needed, or images whose
            labels are not those that the model knows.
    """

    def __init__(self, options: argparse.Namespace, needs_z: str = ""):
        import tensorflow as tf

        from tfdecouple.cli.opening import open_data, open_run
        from tfdecouple.training.strategy import strategy_over

        self.options = options
        gpus = tuple(gpu.name.partition("device:")[2] for gpu in tf.config.list_logical_devices("GPU"))
        self.strategy = strategy_over(gpus) if len(gpus) > 1 else tf.distribute.get_strategy()
        with self.strategy.scope():
            self.opened: OpenedRun = open_run(options, needs_z)
        self.source: Source = open_data(self.opened, options)
        self.opened.require_labels(self.source)
        self.size = self.source.sizes[options.split]
        # Where not all are wanted they are drawn, since folders are sorted by class.
        self.count = min(options.images or self.size, self.size)
        self.batch_size: int = options.batch_size or self.opened.config.training.evaluation_batch_size

    def batches(self) -> tf.data.Dataset:
        """Returns batches of all images, or of those drawn, as `tfdecouple.data.evaluation_batches` does."""
        from tfdecouple.cli.opening import drawn_indices
        from tfdecouple.data import evaluation_batches
        from tfdecouple.data.batches import even_batch
        from tfdecouple.data.labels import with_known_labels

        options = self.options
        size = even_batch(self.batch_size, self.count, self.strategy.num_replicas_in_sync)
        indices = None
        if self.count < self.size:
            indices = drawn_indices(self.source, options.split, self.count, options.seed)
        batches = evaluation_batches(self.source, options.split, batch_size=size, indices=indices)
        return with_known_labels(batches, self.source, self.opened.config.model)


def say(text: str) -> None:
    """Says how far it is, on standard error, so that results stand alone."""
    print(text, file=sys.stderr, flush=True)


def draws(k: int) -> str:
    """Returns such as "3 draws"."""
    return f"{k} draw{'s' if k > 1 else ''}"


def with_error(mean: float, error: float, digits: int) -> str:
    """Returns a mean with its standard error, where that is known: "3.142 ± 0.012"."""
    known = f" ± {error:.{digits}f}" if math.isfinite(error) else ""
    return f"{mean:.{digits}f}{known}"


def estimated(estimate: Estimate, digits: int) -> str:
    """Returns an estimate as `with_error` does."""
    return with_error(estimate.mean, estimate.standard_error, digits)
