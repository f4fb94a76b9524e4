"""The options of a training: `TrainingConfig`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import pydantic

from tfdecouple.config.values import BelowOne, Count, Fraction, NonNegative, Positive, require, validate_options
from tfdecouple.loggers import LOGGERS

PRECISIONS = ("float32", "tf32", "mixed_bfloat16")
MEMORY = ("keep", "recompute", "invert")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimisation, precision, memory and the schedule of a run (paper appendix C.2 and Table 5).

    >>> TrainingConfig(batch_size=64, micro_batches=2).precision
    'float32'

    Attributes:
        steps: number of optimiser updates of the whole run.
        batch_size: images per update, over all devices.
        micro_batches: number of parts in which a batch is processed, one after the other, to save memory.
        learning_rate: the peak, reached after the warm-up.
        warmup_steps: updates of linear warm-up from 1e-7.
        decay_rate: factor of the learning rate per update after the warm-up.
        beta_1, beta_2, epsilon: Adam's parameters (Kingma and Ba, 2015).
        weight_decay: decoupled decay of every trainable parameter, times the learning rate.
        clip_norm: largest global norm of the gradient; 0 for no clipping.
        ema_decay: decay of the running averages of the weights, which evaluation and sampling use; 0 for no averages.
        kl_weight: weight of the KL term in the loss; 1 in the paper. With a smaller weight, z keeps more of the image.
            Reported bounds always have weight 1.
        kl_warmup_steps: updates over which the weight rises linearly from 0; 0 in the paper.
        noise: standard deviation, in pixel values 0..255, of normal noise that is added to the training images at the
            first update and falls to 0 over `noise_steps`, along a cosine; the images are rounded and clipped to
            0..255. 0 for none, as in the paper. Validation and test images never have any.
        noise_steps: updates after which the noise has fallen to 0.
        patterns: share of the training images, drawn at random, that are replaced by noise and boards of two colours
            (`training/step.py`), so that unnatural images, too, come back from their codes; 0 for none, as in the
            paper. A share of 0.01 is enough after long training. Validation and test images are never replaced.
        patterns_after: updates before the first image is replaced; the best weights are then chosen among later ones.
        precision: arithmetic of the matrix products in a training step. "float32": full precision, as in the paper's
            code, which is older than TF32. "tf32": 10 bits of mantissa in encoder and coupling nets, which GPUs since
            Ampere compute faster; all else in full. "mixed_bfloat16": bfloat16 in the coupling nets. Evaluations are
            always in full precision.
        memory: how the activations of the flow reach the backward pass. "keep": they are stored. "recompute": the
            hidden maps of the coupling nets, nearly all of the memory, are computed again: less memory, more time, the
            same numbers. "invert": each step's input is reconstructed from its output, and the memory does not grow
            with the number of steps; gradients are the same but for rounding, and an update where the rounding has
            grown too large is not applied.
        jit_compile: whether XLA compiles each kind of step of flow and prior, at the start of a run: for GPUs, where it
            fuses the operations between the products; the same numbers but for rounding.
        bytes_per_pack: gradients are summed over devices in packs of about this many bytes, each as soon as the
            backward pass has computed it; 0 for all of them in one pack after the backward pass.
        seed: the seed of all random numbers.
        init_images: training images for the data-dependent initialisation.
        max_skipped_steps: consecutive updates that may be skipped, for values that are not finite or, with
            `memory="invert"`, an inaccurate inversion.
        log_every, evaluate_every, checkpoint_every: in updates.
        keep_checkpoints: how many of the latest checkpoints are kept, beside the best.
        evaluation_batch_size: images per batch in evaluations, over all devices; rounded up to a multiple of their
            number.
        evaluation_images: validation images per evaluation; 0 for all.
        pictures: largest number of images in the pictures of an evaluation: fewer for images above 64 pixels (4 of
            256), and no more than the run has seen; 0 for no pictures.
        evaluation_samples: draws of (z, u) per image in the final test evaluation; 0 for no test evaluation, as for
            trials of options.
        loggers: where figures and pictures go beside `metrics.jsonl`: "tensorboard", "wandb" or both. "wandb" (Weights
            & Biases) needs the extra `loggers` and writes to the run folder unless `WANDB_MODE` says otherwise. A
            resumed run may change them.
        init_from: run folder whose weights this run starts from; null to start from data.
    """

    steps: Positive = 1000
    batch_size: Positive = 64
    micro_batches: Positive = 1
    learning_rate: Annotated[float, pydantic.Field(ge=0, le=1)] = 1e-3
    warmup_steps: Count = 50
    decay_rate: Fraction = 0.999997
    beta_1: BelowOne = 0.9
    beta_2: BelowOne = 0.999
    epsilon: Annotated[float, pydantic.Field(gt=0)] = 1e-8
    weight_decay: NonNegative = 1e-6
    clip_norm: NonNegative = 0.0
    ema_decay: BelowOne = 0.0
    kl_weight: NonNegative = 1.0
    kl_warmup_steps: Count = 0
    noise: NonNegative = 0.0
    noise_steps: Count = 0
    patterns: BelowOne = 0.0
    patterns_after: Count = 0
    precision: Literal[PRECISIONS] = "float32"  # type: ignore[valid-type]
    memory: Literal[MEMORY] = "keep"  # type: ignore[valid-type]
    jit_compile: bool = False
    bytes_per_pack: Count = 2**25
    # The range is that of keras.utils.set_random_seed.
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32)] = 0
    init_images: Positive = 512
    max_skipped_steps: Positive = 10
    log_every: Positive = 10
    evaluate_every: Positive = 500
    checkpoint_every: Positive = 500
    keep_checkpoints: Positive = 3
    evaluation_batch_size: Positive = 64
    evaluation_images: Count = 0
    pictures: Count = 40
    evaluation_samples: Count = 1
    loggers: tuple[Literal[tuple(LOGGERS)], ...] = ("tensorboard",)  # type: ignore[valid-type]
    init_from: str | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError if an option has an impossible value; the message names the option."""
        validate_options(self, "training.")
        require(
            not self.noise or self.noise_steps >= 1,
            f"training.noise is {self.noise:g} and training.noise_steps 0; say when the noise is gone",
        )
        require(
            self.batch_size % self.micro_batches == 0,
            f"training.batch_size is {self.batch_size} and training.micro_batches {self.micro_batches}; "
            "the first must be a multiple of the second",
        )
