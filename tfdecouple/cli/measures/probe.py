"""Linear classifiers of z, v and pixels (paper Table 4)."""

from __future__ import annotations

import math
from typing import Any

from tfdecouple.cli.measures.base import Evaluation, Measure, Result, say
from tfdecouple.cli.options import at_least

# What is taken unless told otherwise, of training and of test images: so many, and of so many colour values, at most.
# The time of a fit goes with these.
IMAGES, VALUES = 10_000, 2**26


class LinearProbe(Measure):
    """What linear classifiers know of the label."""

    name = "probe"
    order = 40
    on_split = False

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds --probe and --probe-images."""
        group.add_argument(
            "--probe",
            action="store_true",
            help="also linear classifiers of z, v and pixels on test images; needs labels",
        )
        group.add_argument(
            "--probe-images",
            type=int,
            default=0,
            metavar="N",
            help="training images for them, drawn (default 0: as --images, else at most 10000, fewer where they are "
            "large)",
        )

    def check(self) -> None:
        """Refuses a number of images below 0."""
        at_least(self.options, "probe_images", 0)

    def measure(self, evaluation: Evaluation) -> Result:
        """Fits the classifiers and counts the test images that they tell."""
        from tfdecouple.metrics.linear_classifier import LEAST
        from tfdecouple.metrics.probe import linear_probe, table
        from tfdecouple.visualization.confusion import confusion_picture

        options, source = self.options, evaluation.source
        sizes, asked = source.sizes, options.images
        fitting = min(IMAGES, VALUES // math.prod(evaluation.opened.config.model.image_shape))
        of_train = max(asked, LEAST) if asked else fitting
        report = linear_probe(
            evaluation.opened.model,
            source,
            train_images=options.probe_images or min(sizes["train"], of_train),
            test_images=min(asked or fitting, sizes["test"]),
            seed=options.seed,
            batch_size=evaluation.batch_size,
            say=say,
        )
        return Result(report, table(report), confusion_picture(report, source.label_names))
