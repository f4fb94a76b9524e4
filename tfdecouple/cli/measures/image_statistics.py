"""Which statistics of an image (colour, contrast, orientation and more) z knows, and which follow it in a switch."""

from __future__ import annotations

import io
import math
from typing import Any

from tfdecouple.cli.measures.base import Evaluation, Measure, Result, say
from tfdecouple.errors import UserError
from tfdecouple.image_shapes import described, square
from tfdecouple.runtime.extras import require

# Training images that the regressions are fitted on, and colour values of them, at most.
_FITTED, _VALUES = 2_000, 2**25


class ImageStatistics(Measure):
    """What z and v know of statistics of images."""

    name = "image_statistics"
    order = 33
    needs_z = True

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds --image-statistics."""
        group.add_argument(
            "--image-statistics",
            action="store_true",
            help="also which of colour, brightness, contrast, spectrum, orientation and light z and v know, and which "
            "follow z in a switch",
        )

    def check(self) -> None:
        """Refuses to judge the regressions by the images that they are fitted on.

        Raises:
            UserError: for the training images.
        """
        if self.is_wanted() and self.options.split == "train":
            raise UserError("--split is 'train', which --image-statistics is fitted on; take validation or test")

    def prepare(self) -> None:
        """Refuses images whose colours and spectrum are not those of squares of RGB.

        Raises:
            UserError: for other images, or without what draws the plot.
        """
        from tfdecouple.runs import load_config

        require("matplotlib", what="--image-statistics")

        shape = load_config(self.options.run).model.image_shape
        if square(shape) is None:
            raise UserError(
                f"--image-statistics takes squares of RGB, and those of this model are {described(shape)}; leave it out"
            )

    def measure(self, evaluation: Evaluation) -> Result:
        """Regresses on training images, and judges by those of --split."""
        from PIL import Image

        from tfdecouple.metrics.drawn_images import drawn_indices
        from tfdecouple.metrics.image_statistics import LEAST, measure_image_statistics, read_images, table
        from tfdecouple.visualization.plots import png, statistics_figure

        options, source, opened = self.options, evaluation.source, evaluation.opened
        most = max(_VALUES // math.prod(opened.config.model.image_shape), LEAST)
        read, left_out = [], []
        for split, count in (("train", min(_FITTED, source.sizes["train"])), (options.split, evaluation.count)):
            indices = drawn_indices(source, split, min(count, most), options.seed)
            read.append(read_images(opened.model, source, split, indices, evaluation.batch_size, say))
            if count > most:
                left_out.append(f"{most:,} of {count:,} images of {split}")
        report = measure_image_statistics(
            opened.model, *read, batch_size=evaluation.batch_size, seed=options.seed, say=say
        )
        title = f"Statistics of {source.title}, {options.split}\n{opened.note()}"
        picture = Image.open(io.BytesIO(png(statistics_figure(report["statistics"], title))))
        lines = table(report)
        if left_out:
            lines.append(f"    over {' and '.join(left_out)}: of images of this size no more are taken")
        return Result(report, lines, picture)
