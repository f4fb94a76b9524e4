"""Bits/dim by the ELBO, which is always measured, and by the importance-weighted bound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tfdecouple.metrics.base import Metric, Result, draws, estimated, with_error
from tfdecouple.runtime.process import at_least

if TYPE_CHECKING:
    from tfdecouple.metrics.bounds import Bound


class BitsPerDim(Metric):
    """The ELBO and its terms."""

    name = "bits_per_dim"
    order = 10

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds --samples."""
        group.add_argument(
            "--samples",
            type=int,
            default=1,
            metavar="K",
            help="draws per image for ELBO, use of z and outliers (default 1)",
        )

    def check(self) -> None:
        """Refuses fewer than one draw."""
        at_least(self.options, "samples", 1)

    def is_wanted(self) -> bool:
        """Always."""
        return True

    def measure(self, evaluation: Any) -> Result:
        """Measures the ELBO."""
        elbo = _measured(evaluation, "ELBO", self.options.samples)
        terms = [
            f"    {term:15} {estimated(getattr(elbo, term), 2):>22} nats an image"
            for term in ("reconstruction", "kl", "dequantization")
        ]
        return Result(elbo.to_dict(), [_first_line(elbo, "ELBO"), *terms])


class ImportanceWeighted(Metric):
    """The importance-weighted bound, which is tighter."""

    name = "importance"
    order = 20

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds --importance."""
        group.add_argument(
            "--importance",
            type=int,
            default=0,
            metavar="K",
            help="also the importance-weighted bound over K draws per image, a tighter one (default 0: none)",
        )

    def check(self) -> None:
        """Refuses fewer than no draws."""
        at_least(self.options, "importance", 0)

    def measure(self, evaluation: Any) -> Result:
        """Measures the bound."""
        bound = _measured(evaluation, "importance-weighted", self.options.importance)
        lines = [
            _first_line(bound, "importance-weighted bound"),
            f"    {estimated(bound.gain, 4)} below the ELBO over the same draws",
            f"    {bound.effective_draws:.2f} effective draws of {bound.k}",
        ]
        return Result(bound.to_dict(), lines)


def _measured(evaluation: Any, bound: str, k: int) -> Bound:
    from tfdecouple.metrics.bounds import BoundEvaluator
    from tfdecouple.runtime.progress import Counter

    # Few images and many draws fill a batch together.
    at_once = max(1, min(k, evaluation.batch_size // evaluation.count))
    evaluator = BoundEvaluator(evaluation.opened.model, evaluation.strategy, at_once)
    with Counter(f"{bound}, {draws(k)} an image", evaluation.count) as counter:
        return evaluator(
            evaluation.batches(),
            bound=bound,
            k=k,
            split=evaluation.options.split,
            averaged_weights=evaluation.opened.averaged,
            seed=evaluation.options.seed,
            on_batch=counter,
        )


def _first_line(bound: Bound, name: str) -> str:
    figure = with_error(bound.bits_per_dim, bound.standard_error, 4)
    return f"{figure} bits/dim: {name}, {draws(bound.k)} an image, {bound.images:,} images"
