"""Whether z is used: what it costs, what it knows of the image, what another image's z costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tfdecouple.cli.measures.base import Evaluation, Measure, Result, draws, estimated

if TYPE_CHECKING:
    from tfdecouple.metrics.latent_use import LatentUse

# Dimensions of z that the table lists; the file has them all.
_LISTED = 12


class UseOfZ(Measure):
    """The use of z."""

    name = "latent_use"
    order = 30
    needs_z = True

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds --latent-use."""
        group.add_argument("--latent-use", action="store_true", help="also whether z is used")

    def measure(self, evaluation: Evaluation) -> Result:
        """Measures over as many draws as the ELBO."""
        from tfdecouple.metrics.latent_use import measure_latent_use
        from tfdecouple.runtime.progress import Counter

        options = self.options
        with Counter("use of z", evaluation.count * (1 + options.samples)) as counter:
            use = measure_latent_use(
                evaluation.opened.model,
                evaluation.batches(),
                split=options.split,
                averaged_weights=evaluation.opened.averaged,
                samples=options.samples,
                seed=options.seed,
                on_batch=counter,
            )
        return Result(use.to_dict(), _lines(use))


def _lines(use: LatentUse) -> list[str]:
    dimensions = len(use.mean_variance)
    method = "exact" if use.kl_method == "exact" else f"Monte Carlo, {draws(use.samples)} an image"
    costs = estimated(use.shuffling_costs, 4)
    lines = [
        f"use of z: {dimensions} numbers, {use.prior} prior, {use.images:,} images",
        f"    KL(q(z|x) || p(z))   {estimated(use.kl, 3)} nats an image ({method})",
        f"    information I(x; z)  {estimated(use.mutual_information, 3)} nats, over {use.information_images:,} "
        f"images (can show at most {use.information_limit:.2f})",
        f"    active units         {use.active_units} of {dimensions} (variance of the posterior mean above 0.01)",
        f"    bits/dim             {estimated(use.bits_per_dim, 4)}, and with the z of another image "
        f"{estimated(use.shuffled_bits_per_dim, 4)}: {costs} worse",
        "    dimension   variance of mean   KL to N(0, 1)   information I(x; z_i), KL to q(z_i)",
    ]
    by_information = sorted(range(dimensions), key=lambda i: -use.information[i])
    for i in by_information[:_LISTED]:
        lines.append(
            f"    {i:9}   {use.mean_variance[i]:16.4f}   {use.kl_to_normal[i]:13.4f}   {use.information[i]:9.4f}"
        )
    if dimensions > _LISTED:
        lines.append(f"    and {dimensions - _LISTED} dimensions of less information")
    return lines
