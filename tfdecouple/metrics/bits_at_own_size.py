"""A metric of the command `evaluate`: bits/dim of images at their own size."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfdecouple.metrics.base import Estimate, Metric, Result, describe_draws, require_finite


class OwnSize(Metric):
    """The metric of bits/dim (the ELBO) of images at their own size, neither cropped nor resized."""

    name = "own_size"

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds the option --own-size to `group`, an argument group of the parser of `evaluate`."""
        group.add_argument(
            "--own-size",
            action="store_true",
            help="also bits/dim of the images at their own size, neither cropped nor resized (folders and photographs)",
        )

    def compute(self, evaluation: Any) -> Result:
        """Returns bits/dim of each image and the mean over images, each averaged over --samples draws of the noise."""
        from tfdecouple import randomness
        from tfdecouple.data.whole_images import draw_whole_images
        from tfdecouple.runtime.progress import Counter

        options, model = self.options, evaluation.opened.model
        images = draw_whole_images(evaluation.source, options.split, options.images, options.seed)
        rows: list[dict[str, Any]] = []
        with Counter("ELBO at own size", len(images)) as counter:
            for index, (name, read) in enumerate(images.items()):
                image = read()
                seeds = [
                    randomness.derive_seed(options.seed, "own size", index, draw) for draw in range(options.samples)
                ]
                bits = np.mean([float(model.elbo(image[None], seed).bits_per_dim[0]) for seed in seeds])
                rows.append({"image": name, "height": image.shape[0], "width": image.shape[1], "bits_per_dim": bits})
                counter(index + 1)
        bits_per_dim = np.array([row["bits_per_dim"] for row in rows])
        require_finite("the bound", bits_per_dim, np.arange(len(rows)))
        mean, draws = Estimate.from_values(bits_per_dim), describe_draws(options.samples)
        lines = [f"{mean.to_text(4)} bits/dim: ELBO at own size, {draws} an image, {len(rows):,} images"]
        for name, height, width, bits in map(dict.values, rows[:20]):
            lines.append(f"    {bits:.4f}  {width} x {height}  {name}")
        values = {"bits_per_dim": mean.mean, "standard_error": mean.standard_error, "samples": options.samples}
        return Result({**values, "images": rows}, lines)
