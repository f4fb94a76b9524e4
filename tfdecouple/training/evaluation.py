"""What a run shows of itself: pictures and signs of trouble at each evaluation, a summary at the end."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tfdecouple.config import Config
from tfdecouple.data import Source, load_images
from tfdecouple.data.codecs import lossless_bits_per_dim
from tfdecouple.errors import UserError
from tfdecouple.metrics import BitsPerDim, note_on_grey, save_pictures
from tfdecouple.model import DecoupledModel
from tfdecouple.training.run_directory import RunDirectory
from tfdecouple.training.state import TrainingState
from tfdecouple.visualization.grids import reconstruct
from tfdecouple.visualization.pictures import shown_of_size

# How many held-out images at most go into the comparison with lossless codecs.
_CODED = 1000
# So many are encoded and decoded whatever the options of pictures, to see whether they come back.
_LEAST = 4

# Figures of an evaluation beside the bound: functions of the model and some validation images, uint8, that return
# numbers by name.
SIGNS = [
    DecoupledModel.diagnose,
]

# How the lines call lossless codecs.
_CODECS = {"webp": "lossless WebP", "png": "PNG"}


class Reports:
    """Writes down what was measured. Of several workers the chief alone does.

    Args:
        config: the run.
        state: with the weights that were measured in place.
        source: the images.
        directory: of the run.
        tell: is told what is being done, as often as it likes.
    """

    def __init__(
        self,
        config: Config,
        state: TrainingState,
        source: Source,
        directory: RunDirectory,
        tell: Callable[[str], None] = lambda text: None,
    ):
        self._tell = tell
        self._config = config
        self._state = state
        self._source = source
        self._directory = directory

    def validation(self, step: int, measured: BitsPerDim, is_best: bool) -> str:
        """Keeps the best weights, draws pictures, logs what was measured, and returns a line to say about it."""
        model = self._state.model
        count = min(self._shown(step), self._source.sizes["validation"])
        # A large folder does not know of its unreadable images, which are left out.
        images, labels = load_images(self._source, "validation", count, at_most=True)
        images = np.asarray(model.quantize_images(images))
        signs = {name: value for measure in SIGNS for name, value in measure(model, images).items()}
        if is_best:
            self._directory.keep_best(self._state, step)
        grey = f" ({grey})" if (grey := note_on_grey(images)) else ""
        exact, pictures = self._draw(step, images, model.wanted_labels(labels))
        self._directory.log("validation", step, {**measured.to_dict(), **signs}, pictures)
        return (
            f"step {step}: validation {measured.bits_per_dim:.4f} bits/dim on {measured.images} images"
            f"{' (best so far)' if is_best else ''}{grey}; {exact}; "
            f"smallest coupling scale {signs['smallest_scale']:.3g}, "
            f"worst 1x1 condition number {signs['worst_condition']:.3g}"
        )

    def summary(self, step: int, test: BitsPerDim | None, count: int) -> tuple[dict[str, Any], list[str]]:
        """Writes down how the run ended, beside lossless codecs on the first of the `count` images of the test.

        Args:
            step: the last.
            test: what was measured on the test images; None where they were left alone.
            count: how many these were.

        Returns:
            What `summary.json` holds, and lines to say about it.
        """
        averages = bool(self._config.training.ema_decay)
        if test is None:
            summary = self._without_codecs(step, averages)
            self._directory.write_summary(summary)
            return summary, [*self._other_weights(), "test: left alone (training.evaluation_samples=0)"]
        images, labels = load_images(self._source, "test", min(_CODED, count), at_most=True)
        self._tell("lossless codecs")
        # A codec keeps all 8 bits: beside a model of fewer there is nothing to compare.
        codecs = _CODECS if self._config.model.n_bits == 8 else ()
        coded = {codec: lossless_bits_per_dim(images, codec) for codec in codecs}
        summary = {
            **self._without_codecs(step, averages),
            "test": test.to_dict(),
            "lossless_codecs_bits_per_dim": coded,
            "lossless_codecs_images": len(images),
            "reconstruction": self._reconstruction(*(each[: self._shown(step)] for each in (images, labels))),
        }
        self._directory.write_summary(summary)
        lines = [
            *self._other_weights(),
            f"test: {test.bits_per_dim:.4f} bits/dim (ELBO, {test.samples} sample{'s' if test.samples > 1 else ''}, "
            f"{test.images} images, {'averaged weights' if averages else 'weights'} of step {summary['best_step']})",
        ]
        if grey := note_on_grey(images):
            lines.append(f"      {grey}")
        for codec, bits in coded.items():
            lines.append(
                f"      {bits:.4f} bits/dim for {_CODECS[codec]} on {len(images)} of these images, one file each"
            )
        return summary, lines

    def _without_codecs(self, step: int, averages: bool) -> dict[str, Any]:
        """Returns the part of the summary for which no image of the test is needed."""
        best = float(self._state.best_bits_per_dim.numpy())
        return {
            "steps": step,
            # Those that were loaded, which are the ones that whoever opens the run gets.
            "best_step": self._directory.loaded,
            "validation_bits_per_dim": None if self._other_weights() else best,
            "test": None,
            "averaged_weights": averages,
            "data": self._source.title,
            "parameters": self._state.model.parameter_count(),
        }

    def _other_weights(self) -> list[str]:
        """Returns a line where other weights were loaded than those that were the best of the validation."""
        best, loaded = int(self._state.best_step.numpy()), self._directory.loaded
        if loaded == best:
            return []
        why = f"the best weights, of step {best}, cannot be read" if best else "no validation gave a finite figure"
        return [f"{why}: those of step {loaded} are measured instead"]

    def _shown(self, step: int) -> int:
        """Returns how many held-out images are encoded, decoded and shown after a step."""
        seen = step * self._config.training.batch_size
        return max(min(self._config.training.pictures, shown_of_size(self._config.model.image_shape), seen), _LEAST)

    def _draw(self, step: int, images: np.ndarray, labels: np.ndarray | None) -> tuple[str, dict[str, pathlib.Path]]:
        """Draws the pictures of a step; returns how exact the reconstructions are, and the pictures by name."""
        if not self._config.training.pictures:
            return f"reconstruction: {self._reconstruction(images, labels)}", {}
        prefix, folder = f"step-{step:09d}-", self._directory.path / "images"

        def tell(name: str) -> None:
            self._tell(f"drawing {name}")

        try:
            exact = save_pictures(
                self._state.model,
                images,
                folder,
                prefix,
                seed=self._config.training.seed,
                most=self._shown(step),
                tell=tell,
                labels=labels,
                label_names=self._source.label_names,
            )
        except UserError as error:
            # Pictures are no reason to stop a run: a model with alpha = 1 may lose an image now and then.
            return f"no pictures ({error})", {}
        pictures = {path.stem[len(prefix) :]: path for path in sorted(folder.glob(f"{prefix}*.png"))}
        return f"reconstruction: {_identical(exact, images)}", pictures

    def _reconstruction(self, images: np.ndarray, labels: np.ndarray | None) -> str:
        model = self._state.model
        try:
            seen = np.asarray(model.quantize_images(images))
            _, exact = reconstruct(model, seen, labels=model.wanted_labels(labels))
        except UserError as error:
            return f"not measured ({error})"
        return _identical(exact, images)


def _identical(exact: int, images: np.ndarray) -> str:
    return f"{exact} of {len(images)} images identical to the last pixel"
