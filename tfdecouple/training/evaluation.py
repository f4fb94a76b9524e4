"""Writing of evaluation results to the run folder: metrics, pictures, the best weights, and summary.json at the end."""

import pathlib
import statistics
from collections.abc import Sequence

import numpy as np
from PIL import Image

from tfdecouple.data.batches import load_images
from tfdecouple.data.sources import Source
from tfdecouple.errors import UserError
from tfdecouple.loggers import read_metrics
from tfdecouple.metrics.bits_per_dim import Bound
from tfdecouple.model.outlier_scores import compute_codec_bits
from tfdecouple.registry import DIAGNOSTICS
from tfdecouple.runs.run_folder import METRICS
from tfdecouple.storage.files import Facts
from tfdecouple.training.step import TrainingState
from tfdecouple.training.training_folder import TrainingFolder
from tfdecouple.training.workers import on_chief
from tfdecouple.visualization.pictures import PictureInputs, count_shown_images, draw_pictures

# At the end of a run, up to this many test images are also compressed with WebP and PNG, to compare bits/dim.
_MOST_COMPRESSED = 1000
# Each evaluation encodes and decodes at least this many images, even if the option `training.pictures` is smaller.
_LEAST_RECONSTRUCTED = 4

# The page that says what to do if a metric is out of the range of a healthy training.
_HELP_PAGE = "docs/troubleshooting.md#is-my-training-healthy"


class EvaluationReports:
    """Writes the results of evaluations to the run folder; all workers call its methods, and the chief writes."""

    def __init__(self, state: TrainingState, source: Source, directory: TrainingFolder):
        self._state, self._source, self._directory = state, source, directory
        self._training, self.workers = state.training, directory.workers

    @on_chief
    def report_validation(self, step: int, measured: Bound, is_best: bool) -> str:
        """Writes `measured`, diagnostics and pictures, and if `is_best` the best weights; returns a text for users."""
        count = min(self._count_shown_images(step), self._source.sizes["validation"])
        # `at_most=True` accepts fewer images than `count`, because some files may be unreadable.
        images, labels = load_images(self._source, "validation", count, at_most=True)
        images = np.asarray(self._state.model.quantizer.quantize_pixels(images))
        results = [diagnose(self._state.model, images) for diagnose in DIAGNOSTICS.values()]
        diagnostics = {name: value for result in results for name, value in result.items()}
        if is_best:
            weights = {"model": self._state.group_checkpoint_variables()["model"]}
            self._directory.checkpoints.write_checkpoint("best", step, weights)
        exactness, pictures = self._reconstruct(images, labels, step, draws=bool(self._training.pictures))
        row = {**measured.to_log_row(), **diagnostics}
        signs = list_warning_signs(row, list(read_metrics(self._directory.path / METRICS)))
        if not exactness.startswith(f"{len(images)} of"):
            signs.append(f"reconstruction: {exactness}")
        self._directory.log.write("validation", step, row, pictures)
        return (
            f"step {step}: validation {measured.bits_per_dim:.4f} bits/dim on {measured.images} images"
            f"{' (best so far)' if is_best else ''}; reconstruction: {exactness}"
            + (f"\n  out of range: {'; '.join(signs)}: see {_HELP_PAGE}" if signs else "; healthy")
        )

    @on_chief
    def write_summary(self, step: int, test: Bound | None, count: int) -> tuple[Facts, list[str]]:
        """Writes summary.json; returns its content, a dict, and a list of lines that tell the user the results.

        `step` is the count of training steps. `test` is the bound on the bits/dim of the first `count` test images, or
        None if no test images were evaluated.
        """
        best, loaded = int(self._state.best_step.numpy()), self._directory.loaded_step
        averages = bool(self._training.ema_decay)
        summary: Facts = {
            "steps": step,
            # If the best weights cannot be read, this is the step of the weights that `Run.open` loads instead.
            "best_step": loaded,
            "validation_bits_per_dim": float(self._state.best_bits_per_dim.numpy()) if loaded == best else None,
            "test": test.to_log_row() if test else None,
            "averaged_weights": averages,
            "data": self._source.title,
            "parameters": self._state.model.parameter_count(),
        }
        lines = []
        if loaded != best:
            why = f"the best weights, of step {best}, cannot be read" if best else "no validation gave a finite result"
            lines.append(f"{why}: those of step {loaded} are measured instead")
        if test is None:
            lines.append("test: not evaluated (training.evaluation_samples=0)")
        else:
            images, labels = load_images(self._source, "test", min(_MOST_COMPRESSED, count), at_most=True)
            # WebP and PNG store 8 bits per colour value; a comparison with a model of fewer bits would be unfair.
            codecs = ("webp", "png") if self._state.model.config.n_bits == 8 else ()
            coded = {codec: float(compute_codec_bits(images, codec).mean()) for codec in codecs}
            shown = slice(self._count_shown_images(step))
            summary["lossless_codecs_bits_per_dim"] = coded
            summary["lossless_codecs_images"] = len(images)
            quantized = np.asarray(self._state.model.quantizer.quantize_pixels(images[shown]))
            summary["reconstruction"], _ = self._reconstruct(quantized, labels[shown], step)
            samples = f"{test.k} sample{'s' if test.k > 1 else ''}"
            about = f"ELBO, {samples}, {test.images} images, {'averaged ' if averages else ''}weights of step {loaded}"
            lines.append(f"test: {test.bits_per_dim:.4f} bits/dim ({about})")
            lines += [f"      {self._source.note}"] * bool(self._source.note)
            where = f"on {len(images)} of these images, one file each"
            lines += [f"      {bits:.4f} bits/dim for lossless {codec} {where}" for codec, bits in coded.items()]
        self._directory.write_summary(summary)
        return summary, lines

    def _count_shown_images(self, step: int) -> int:
        """Returns how many images are drawn: at most `training.pictures` and the images trained on, at least 4."""
        most = count_shown_images(self._state.model.config.image_shape)
        return max(_LEAST_RECONSTRUCTED, min(self._training.pictures, most, step * self._training.batch_size))

    def _reconstruct(
        self, images: np.ndarray, labels: np.ndarray, step: int, draws: bool = False
    ) -> tuple[str, dict[str, pathlib.Path]]:
        """Returns a text on how many images are reconstructed exactly; with `draws`, also the paths of new pictures.

        The images are quantised to the model's number of bits.
        """
        model, most, label_names = self._state.model, self._count_shown_images(step), self._source.label_names
        known = labels if model.config.has_labels else None
        inputs = PictureInputs(model, images, self._training.seed, most, known, label_names)
        pictures: dict[str, Image.Image] = {}
        try:
            if draws:
                pictures, exact = draw_pictures(inputs)
            else:
                exact = inputs.reconstructed[1]
        except UserError as error:
            # With `model.alpha` = 1, a coupling's scale can be near 0, and inverting then fails; the run continues.
            return f"not measured ({error})", {}
        paths = self._directory.write_pictures(step, pictures) if pictures else {}
        return f"{exact} of {len(images)} images identical to the last pixel", paths


def list_warning_signs(measured: Facts, rows: Sequence[Facts]) -> list[str]:
    """Returns texts on the metrics that are out of the range of a healthy training, each with its value.

    `measured` has the metrics of an evaluation on validation images, and `rows` are the rows of the log before it.
    """
    signs = []
    # `not` makes NaN a warning sign, too.
    if not (scale := measured["smallest_scale"]) >= 0.01:
        signs.append(f"the smallest coupling scale is {scale:.2g} (usual: above 0.05)")
    if not (condition := measured["worst_condition"]) <= 10_000:
        signs.append(f"the worst condition number of a 1x1 convolution is {condition:.2g} (usual: below 100)")
    train = [row for row in rows if row["kind"] == "train"]
    if not train:
        return signs
    # The log has NaN and infinity as text.
    norms = [row["gradient_norm"] for row in train if isinstance(row["gradient_norm"], float)]
    if norms and norms[-1] > 10 * (usual := statistics.median(norms)):
        signs.append(f"the gradient norm is {norms[-1]:.2g} (usual: {usual:.2g})")
    evaluated = max((row["step"] for row in rows if row["kind"] == "validation"), default=0)
    before = max((row["skipped_steps"] for row in train if row["step"] <= evaluated), default=0)
    if skipped := train[-1]["skipped_steps"] - before:
        signs.append(f"steps that were not applied since step {evaluated}: {skipped}")
    trained = train[-1]["bits_per_dim"]
    if isinstance(trained, float) and not (gap := measured["bits_per_dim"] - trained) <= 0.2:
        signs.append(f"validation images need {gap:.2g} bits/dim more than training images (usual: below 0.1)")
    return signs
