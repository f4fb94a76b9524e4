"""The base class of the metrics of the command `evaluate`, their inputs and results, and means with standard errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tfdecouple.errors import RunError, UserError
from tfdecouple.storage.files import Facts

if TYPE_CHECKING:
    import tensorflow as tf
    from PIL import Image

    from tfdecouple.config import Config


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over images and its standard error, which is NaN for a single image."""

    mean: float
    standard_error: float

    @classmethod
    def from_values(cls, values: ArrayLike) -> Estimate:
        """Returns the `Estimate` of `values`, `[images]`, with one value per image; computes in float64."""
        values = np.asarray(values, np.float64)
        error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(float(values.mean()), float(error))

    def to_text(self, digits: int) -> str:
        """Returns the mean as a text with `digits` decimals, followed by the standard error if the error is finite.

        >>> Estimate(3.14159, 0.0123).to_text(3), Estimate(-1e-17, math.nan).to_text(1)
        ('3.142 ± 0.012', '0.0')
        """
        error = f" ± {self.standard_error:.{digits}f}" if math.isfinite(self.standard_error) else ""
        return f"{self.mean:z.{digits}f}{error}"

    def to_percent(self, digits: int) -> str:
        """Returns this estimate of a share as a text in per cent.

        >>> Estimate(0.5953, 0.0049).to_percent(1)
        '59.5 ± 0.5 %'
        """
        return Estimate(100 * self.mean, 100 * self.standard_error).to_text(digits) + " %"


class Result(NamedTuple):
    """The result of a metric of `evaluate`: values for a JSON file, lines of text to print, and a picture or None.

    The values are plain Python objects; NaN and infinities become null in the file.
    """

    values: Facts
    lines: Sequence[str]
    picture: Image.Image | None = None


class Option(NamedTuple):
    """An option of the command `evaluate`: its type, default, help text, and the least value of a number."""

    kind: object  # a type, or an annotation such as `str | None`
    default: object
    help: str
    least: float = 0


class Metric:
    """The base class of the metrics of the command `evaluate`.

    The module of a metric imports TensorFlow and scikit-learn inside functions, so that `--help` loads neither.
    """

    name: ClassVar[str]  # of the metric and of its JSON file, such as "latent_use"
    option: ClassVar[str]  # the command-line option that requests the metric, such as "--latent-use"
    help: ClassVar[str] = ""  # the help text of this option
    needs_z: ClassVar[bool] = False
    # Whether the metric rejects a model whose z is a function of the label instead of the image.
    needs_posterior: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    needs_plots: ClassVar[bool] = False  # whether the metric needs matplotlib
    # {name with underscores: `Option`} for `evaluate`; with a `help`, also a flag with the metric's name.
    added_options: ClassVar[Mapping[str, Option]] = {}

    def __init_subclass__(cls) -> None:
        cls.option = f"--{cls.name.replace('_', '-')}"
        if cls.help:
            cls.added_options = {cls.name: Option(bool, False, cls.help), **cls.added_options}

    def __init__(self, options: SimpleNamespace):
        self.options = options

    @property
    def split(self) -> str:
        """The split of the images that this metric measures, part of the name of its JSON file; by default --split."""
        return str(self.options.split)

    def is_requested(self) -> bool:
        """Returns whether the command-line options request this metric."""
        return bool(getattr(self.options, self.name))

    def prepare_inputs(self, config: Config) -> None:
        """Checks options and files before any metric is computed; UserError if one does not fit the run's `config`."""

    def compute(self, evaluation: Evaluation) -> Result:
        """Computes this metric of an `Evaluation`; UserError for a reason that the user can change."""
        raise NotImplementedError


class Evaluation:
    """The run, the images and the devices that all metrics of the command `evaluate` share.

    Attributes:
        options: the options of the command.
        strategy: a `tf.distribute` strategy: over all GPUs if the machine has several, else TensorFlow's default.
        opened, source: the opened run, with its model and config, and the opened data set.
        size, count: the number of images in the split `--split`, and of these that are evaluated.
        batch_size: the number of images in a batch, before it is rounded to a multiple of the number of devices.
        test_evaluations: the count of evaluations on test images, with this one; None if it uses no test images.
    """

    test_evaluations: int | None = None

    def __init__(self, options: SimpleNamespace, metrics: Sequence[Metric], strategy: tf.distribute.Strategy):
        from tfdecouple.runs.opened_run import Run

        self.options, self.strategy = options, strategy
        with strategy.scope():
            self.opened = Run.open(options.run, next((metric.option for metric in metrics if metric.needs_z), ""))
        model = self.opened.config.model
        for metric in metrics:
            if metric.needs_labels and not model.has_labels:
                raise UserError(f"{metric.option} needs a model with labels; that of {options.run} has none")
            if metric.needs_posterior and model.has_label_codes:
                raise UserError(
                    f"{metric.option} needs z of an image, and z of this model is a function of the label "
                    "(model.prior is 'classes'); --classify measures what z knows of the label"
                )
        self.source = self.opened.open_source(options.data, options.data_dir, options.download)
        self.source.open_split(options.split)
        self.opened.require_labels(self.source)
        self.size = self.source.sizes[options.split]
        self.count = min(options.images or self.size, self.size)
        self.batch_size: int = options.batch_size or self.opened.config.training.evaluation_batch_size

    def make_image_batches(self) -> tf.data.Dataset:
        """Returns a dataset of batches of the images to evaluate: dicts with "image", "label", "index" and "weight"."""
        from tfdecouple.data.batches import make_evaluation_batches, round_batch_size
        from tfdecouple.data.drawn_images import draw_image_indices
        from tfdecouple.data.labels import check_batch_labels

        options = self.options
        size = round_batch_size(self.batch_size, self.count, self.strategy.num_replicas_in_sync)
        # A part of a split is drawn at random, because the first images of a folder often share a label.
        drawn = self.count < self.size
        indices = draw_image_indices(self.source, options.split, self.count, options.seed) if drawn else None
        batches = make_evaluation_batches(self.source, options.split, batch_size=size, indices=indices)
        return check_batch_labels(batches, self.source, self.opened.config.model)

    def describe_inputs(self) -> str:
        """Returns lines of text on the run, the images and, if there are any, the evaluations on test images."""
        split, averaged = self.options.split, "averaged " if self.opened.averaged else ""
        images = f"{self.count:,} of {self.size:,} images{', drawn' if self.count < self.size else ''}"
        lines = [
            f"{self.options.run}: {averaged}weights of step {self.opened.step}, seed {self.options.seed}",
            f"{self.source.title}, {split} ({self.source.descriptions[split]}): {images}",
        ]
        if self.test_evaluations is not None:
            lines.append(f"evaluations of these test images, with this one: {self.test_evaluations}")
        return "\n".join(lines)

    def describe_metric(self, metric: Metric) -> Facts:
        """Returns facts on the run and the images of a metric for its JSON file."""
        opened, source, splits = self.opened, self.source, metric.split.split("+")
        facts = {"command": "evaluate", "run": opened.folder.run, "step": opened.step}
        facts |= {"averaged_weights": opened.averaged, "seed": self.options.seed}
        facts |= {"data": source.title, "source": source.name, "split": metric.split}
        facts["split_description"] = "+".join(source.descriptions[split] for split in splits)
        facts["split_images"] = sum(source.sizes[split] for split in splits)
        return facts if self.test_evaluations is None else {**facts, "test_evaluations": self.test_evaluations}


def format_table(rows: Sequence[Sequence[str]], indent: int = 4) -> list[str]:
    """Returns the lines of a table of texts: the first column is left-aligned, all others are right-aligned.

    >>> format_table([["score", "AUROC"], ["shell", "0.5"]], indent=0)
    ['score  AUROC', 'shell    0.5']
    """
    first, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    template = "  ".join([f"{' ' * indent}{{:{first}}}", *(f"{{:>{width}}}" for width in widths)])
    return [template.format(*row) for row in rows]


def require_finite_values(what: str, values: np.ndarray, index: np.ndarray) -> None:
    """Raises RunError, which lists the images with a NaN or an infinity, unless all `values` are finite.

    `values` are `[images, ...]`, and `index`, `[images]`, has the indices of the images in their split. `what` names
    the values.
    """
    bad = np.flatnonzero(~np.isfinite(values).all(tuple(range(1, values.ndim))))
    if len(bad):
        from tfdecouple.model.codes import format_image_numbers

        raise RunError(
            f"{what} is not finite for {len(bad)} of {len(values)} images "
            f"(number {format_image_numbers(index[bad].tolist())}); "
            "the weights are damaged or training diverged: see docs/troubleshooting.md"
        )
