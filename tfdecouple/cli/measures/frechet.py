"""The Frechet distance of samples to test images; FID, where the network is that of FID."""

from __future__ import annotations

import math
import pathlib
from typing import Any

from tfdecouple.cli.measures.base import Evaluation, Measure, Result, say
from tfdecouple.cli.options import at_least
from tfdecouple.errors import ConfigError

# Instead of a file: the Inception network of FID in the cache folder.
_INCEPTION = "inception"


class FrechetDistance(Measure):
    """The distance of samples, and that of training images, the floor."""

    name = "frechet"
    order = 50
    on_split = False
    _extractor: pathlib.Path

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds --frechet, --trust, --frechet-images and --temperature."""
        group.add_argument(
            "--frechet",
            metavar="EXTRACTOR",
            help="also the Frechet distance by an ONNX or Keras file; inception: FID, whose network --download fetches",
        )
        group.add_argument(
            "--trust",
            action="store_true",
            help="the extractor may be a Keras file (.keras), which can run code: only where you know where it comes "
            "from",
        )
        group.add_argument(
            "--frechet-images",
            type=int,
            default=10_000,
            metavar="N",
            help="samples, and test images to compare them with, for the Frechet distance (default 10000)",
        )
        group.add_argument(
            "--temperature", type=float, default=1.0, metavar="T", help="of samples' local code v (default 1)"
        )

    def check(self) -> None:
        """Refuses numbers out of range, a missing file, and a Keras file without --trust.

        Raises:
            ConfigError: naming the option.
        """
        options = self.options
        at_least(options, "frechet_images", 2)
        if not (math.isfinite(options.temperature) and options.temperature >= 0):
            raise ConfigError(f"--temperature is {options.temperature}; it must be a number, at least 0")
        if options.frechet not in (None, _INCEPTION) and not pathlib.Path(options.frechet).exists():
            raise ConfigError(
                f"--frechet: there is no file {options.frechet}; give the file of a feature extractor, or {_INCEPTION}"
            )
        if str(options.frechet).endswith(".keras") and not options.trust:
            raise ConfigError(
                f"--frechet {options.frechet}: a Keras file can run code; give --trust where you know where it comes "
                "from, or take an ONNX file"
            )

    def prepare(self) -> None:
        """Finds the network of FID, and fetches it where it is missing and --download is given."""
        if self.options.frechet == _INCEPTION:
            from tfdecouple.metrics.inception import find_inception

            self._extractor = find_inception(self.options.download, say)
        else:
            self._extractor = pathlib.Path(self.options.frechet)

    def measure(self, evaluation: Evaluation) -> Result:
        """Measures the distances."""
        from tfdecouple.metrics.frechet import frechet_report, summary

        options, source = self.options, evaluation.source
        report = frechet_report(
            evaluation.opened.model,
            source,
            self._extractor,
            count=options.frechet_images,
            trust=options.trust,
            reference=min(options.frechet_images, source.sizes["test"]),
            temperature=options.temperature,
            seed=options.seed,
            batch_size=evaluation.batch_size,
            say=say,
        )
        return Result(report, summary(report, source.title))
