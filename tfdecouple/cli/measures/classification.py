"""What a model knows of labels: by Bayes' rule of images (`DecoupledModel.classify`), and by its samples."""

from __future__ import annotations

from typing import Any

from tfdecouple.cli.measures.base import Evaluation, Measure, Result, say
from tfdecouple.cli.options import at_least

# Real images that the classifiers of samples are fitted to, and tried on, unless --images says how many.
_FITTED, _TRIED = 5000, 2000


class Classification(Measure):
    """Bayes' rule over the labels."""

    name = "classify"
    order = 35
    needs_classes = True

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds --classify."""
        group.add_argument(
            "--classify",
            action="store_true",
            help="also how often the model tells the label of an image, by Bayes' rule; it must know labels",
        )

    def measure(self, evaluation: Evaluation) -> Result:
        """Classifies the images."""
        from tfdecouple.metrics.classification import classification_report, summary
        from tfdecouple.runtime.progress import Counter
        from tfdecouple.visualization.confusion import confusion_picture

        opened = evaluation.opened
        with Counter("classifying", evaluation.count) as counter:
            report = classification_report(opened.model, evaluation.batches(), counter)
        return Result(report, summary(report), confusion_picture(report, opened.label_names))


class LabelSamples(Measure):
    """Whether samples of a label look like it."""

    name = "label_samples"
    order = 45
    on_split = False
    needs_classes = True

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds --label-samples."""
        group.add_argument(
            "--label-samples",
            type=int,
            default=0,
            metavar="N",
            help="also whether N samples of each label are told by linear classifiers of pixels that know real images "
            "alone (default 0: none); the model must know labels",
        )

    def check(self) -> None:
        """Refuses a number of samples below 0."""
        at_least(self.options, "label_samples", 0)

    def measure(self, evaluation: Evaluation) -> Result:
        """Draws samples, fits the classifiers and counts."""
        from tfdecouple.metrics.classification import sample_report, sample_summary
        from tfdecouple.metrics.linear_classifier import LEAST

        opened, source, asked = evaluation.opened, evaluation.source, self.options.images
        report = sample_report(
            opened.model,
            source,
            per_label=self.options.label_samples,
            train_images=min(max(asked, LEAST) if asked else _FITTED, source.sizes["train"]),
            test_images=min(asked or _TRIED, source.sizes["test"]),
            temperature=self.options.temperature,
            seed=self.options.seed,
            say=say,
        )
        return Result(report, sample_summary(report, opened.label_names))
