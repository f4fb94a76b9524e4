"""The options of a training and of its images: `TrainingConfig` and `DataConfig`."""

import dataclasses
from typing import Annotated, Literal

import pydantic

from tfdecouple.config.values import BelowOne, Count, Fraction, NonNegative, Positive, require, validate_options
from tfdecouple.registry import LOGGERS, SCHEDULES

# Names of the sample photographs whose licences let anybody use them; `data/sample_images.py` has their files.
PHOTOGRAPHS = ("astronaut", "chelsea", "china", "coffee", "flower", "rocket")
PRECISIONS = ("float32", "tf32", "mixed_bfloat16")
MEMORY = ("keep", "recompute", "invert")
# `compile` refuses the options in these two tuples, because a Keras optimizer has its own learning rate and schedule,
# and `fit` has arguments and callbacks instead of the rest. All other options affect each step of `train.py` and `fit`.
OPTIMIZER_OPTIONS = (
    "learning_rate", "warmup_steps", "decay_rate", "linear_decay", "schedule", "optimizer", "matrix_rate", "beta_1",
    "beta_2", "epsilon", "weight_decay", "clip_norm", "ema_decay",
)  # fmt: skip
RUN_OPTIONS = (
    "steps", "batch_size", "micro_batches", "bytes_per_pack", "log_every", "evaluate_every", "checkpoint_every",
    "keep_checkpoints", "evaluation_batch_size", "evaluation_images", "pictures", "evaluation_samples", "loggers",
    "init_from",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The options of a run's optimisation, precision, memory and schedule (paper appendix C.2 and Table 5).

    >>> TrainingConfig(batch_size=64, micro_batches=2).precision
    'float32'

    Attributes:
        steps: number of training steps of the whole run, each with one optimiser update.
        batch_size: images per update, over all devices.
        micro_batches: number of parts in which a batch is processed, one after the other, to save memory.
        learning_rate: the peak of the learning rate, reached at the end of the warm-up.
        warmup_steps: number of updates in which the learning rate rises linearly from 1e-7 to the peak.
        decay_rate: factor by which each update after the warm-up multiplies the learning rate.
        linear_decay: whether the learning rate also falls linearly to 0, from the end of the warm-up to the last step.
        schedule: name of a registered schedule (docs/extending.md), a further factor of the learning rate after the
            warm-up; null for none.
        optimizer: "adam", as in the paper, or "muon": the kernels of coupling nets and encoder move along their
            orthogonalised momentum (Jordan, 2024), all other weights by Adam. Small models learn more in each CPU
            second (docs/training.md).
        matrix_rate: the learning rate of these kernels at the peak of `learning_rate`, whose schedule it follows.
        beta_1, beta_2, epsilon: Adam's parameters (Kingma and Ba, 2015).
        weight_decay: decoupled weight decay: each update subtracts this times learning rate times weight.
        clip_norm: largest global norm of the gradient; 0 for no clipping.
        ema_decay: decay of the running averages of the weights, which evaluation and sampling use; 0 for no averages.
        kl_weight: weight of the KL term in the loss; 1 in the paper. With a smaller weight, z keeps more of the image.
            Reported bounds always have weight 1.
        kl_warmup_steps: number of updates in which the KL weight rises linearly from 0; 0 in the paper.
        contrast: weight of a further term of the loss, with which z predicts classes better; 0 for none, as in the
            paper. Two random crops of each image, with changed colours, shall have similar z, and crops of other images
            in the device's batch (or micro-batch) other z (van den Oord et al., 2018; docs/training.md). Reported
            bounds never have this term.
        noise: standard deviation, in pixel values 0..255, of normal noise on the training images at the first update.
            The deviation falls to 0 over `noise_steps`, along a cosine; the images are rounded and clipped to 0..255.
            0 for no noise, as in the paper. Validation and test images never have noise.
        noise_steps: number of updates after which the noise has fallen to 0.
        patterns: share of the training images, chosen at random, that are replaced by noise and checkerboards
            (`model/step_effects.py`), so that unnatural images are reconstructed exactly, too; 0 for none, as in the
            paper. A share of 0.01 is enough after long training. Validation and test images are never replaced.
        patterns_after: number of updates before the first image is replaced; the best weights are then chosen among
            later evaluations.
        precision: arithmetic of the matrix products in a training step. "float32": full precision, as in the paper's
            code, which is older than TF32. "tf32": 10 bits of mantissa in encoder and coupling nets, which GPUs since
            Ampere compute faster; all else in float32. "mixed_bfloat16": bfloat16 in the coupling nets. Evaluations are
            always in full precision.
        memory: how the activations of the flow reach the backward pass. "keep": they are stored. "recompute": the
            hidden maps of the coupling nets, which take nearly all of the memory, are computed again: less memory, more
            time, the same numbers. "invert": each flow step's input is reconstructed from its output, so that the
            memory does not grow with the number of flow steps. Gradients are the same but for rounding; an update is
            skipped if the rounding errors have grown too large.
        jit_compile: whether XLA compiles the flow steps of flow and prior, once for each shape, at the start of a run.
            On GPUs this fuses the operations between matrix products; the numbers are the same but for rounding.
        bytes_per_pack: gradients are summed over devices in packs of about this many bytes, each as soon as the
            backward pass has computed it; 0 for all of them in one pack after the backward pass.
        seed: the seed of all random numbers.
        init_images: number of training images for the data-dependent initialisation.
        max_skipped_steps: number of skipped updates in a row that end a run. An update is skipped if the loss or the
            gradient is not finite or, with `memory="invert"`, if the inversion is inaccurate.
        log_every, evaluate_every, checkpoint_every: number of steps between two rows of the log, two evaluations, or
            two checkpoints.
        keep_checkpoints: number of the newest checkpoints that are kept, beside the best weights.
        evaluation_batch_size: images per batch in evaluations, over all devices; rounded up to a multiple of the number
            of devices.
        evaluation_images: validation images per evaluation; 0 for all.
        pictures: largest number of images in the pictures of an evaluation: fewer for images above 64 x 64 pixels (4
            for 256 x 256), and no more than the run was trained on; 0 for no pictures.
        evaluation_samples: draws of (z, u) per image in the final test evaluation; 0 for no test evaluation, as when
            options are compared.
        loggers: where metrics and pictures go besides `metrics.jsonl`: "tensorboard", "wandb" (Weights & Biases),
            "mlflow" or other registered names. "wandb" and "mlflow" need the extra `loggers`, and write to the run
            folder unless `WANDB_MODE` or `MLFLOW_TRACKING_URI` has another value. A resumed run may have other loggers.
        init_from: run folder, or name of published weights, from whose weights this run starts; null to initialise
            the weights from training images.
    """

    steps: Positive = 1000
    batch_size: Positive = 64
    micro_batches: Positive = 1
    learning_rate: Annotated[float, pydantic.Field(ge=0, le=1)] = 1e-3
    warmup_steps: Count = 50
    decay_rate: Fraction = 0.999997
    linear_decay: bool = False
    schedule: str | None = None
    optimizer: Literal["adam", "muon"] = "adam"
    matrix_rate: NonNegative = 0.02
    beta_1: BelowOne = 0.9
    beta_2: BelowOne = 0.999
    epsilon: Annotated[float, pydantic.Field(gt=0)] = 1e-8
    weight_decay: NonNegative = 1e-6
    clip_norm: NonNegative = 0.0
    ema_decay: BelowOne = 0.0
    kl_weight: NonNegative = 1.0
    kl_warmup_steps: Count = 0
    contrast: NonNegative = 0.0
    noise: Annotated[float, pydantic.Field(ge=0, le=255)] = 0.0
    noise_steps: Count = 0
    patterns: BelowOne = 0.0
    patterns_after: Count = 0
    precision: Literal[PRECISIONS] = "float32"  # type: ignore[valid-type]
    memory: Literal[MEMORY] = "keep"  # type: ignore[valid-type]
    jit_compile: bool = False
    bytes_per_pack: Count = 2**25
    # `keras.utils.set_random_seed` accepts this range.
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
    loggers: tuple[str, ...] = ("tensorboard",)
    init_from: str | None = None

    def __post_init__(self) -> None:
        validate_options(self, "training.")
        for name in self.loggers:
            LOGGERS.require(name, "an entry of training.loggers")
        if self.schedule is not None:
            SCHEDULES.require(self.schedule, "training.schedule")
        require(
            not self.noise or self.noise_steps >= 1,
            f"training.noise is {self.noise:g} and training.noise_steps 0; set the update at which the noise ends",
        )
        require(
            self.batch_size % self.micro_batches == 0,
            f"training.batch_size is {self.batch_size} and training.micro_batches {self.micro_batches}; "
            "the first must be a multiple of the second",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The source of the images and their preparation (paper appendix C.1).

    >>> DataConfig(source="folder:holiday", horizontal_flip=True).validation_examples
    1000

    Attributes:
        source: "photographs" (the sample photographs), the name of a TFDS data set ("cifar10", "tfds:NAME")
            or "folder:PATH".
        data_dir: folder of prepared TFDS data sets; null for TFDS' own default.
        horizontal_flip: whether to mirror each training image with probability 1/2.
        pad_and_crop: number of pixels by which training images are reflect-padded at each side, before a random crop
            to their old size; 0 for none.
        centre_crop: side in pixels of the square that is cut from the centre of an image before resizing; 0 for the
            largest square. If `model.image_shape` is no square, a rectangle of its proportions is cut, whose shorter
            side is `centre_crop`.
        validation_examples: number of training images to hold out if a data set has no validation split.
        on_bad_image: what happens at an image that cannot be read: "stop" the program, or "skip" the image and count
            it.
        cache_gib: size limit, in GiB, for keeping all decoded images in memory; a larger data set is decoded anew in
            each epoch.
        photographs: names of the sample photographs to use (docs/data.md).
        photograph_crops: number of training crops of the sample photographs.
    """

    source: str = "photographs"
    data_dir: str | None = None
    horizontal_flip: bool = False
    pad_and_crop: Count = 0
    centre_crop: Count = 0
    validation_examples: Positive = 1000
    on_bad_image: Literal["stop", "skip"] = "stop"
    cache_gib: NonNegative = 4.0
    photographs: tuple[str, ...] = PHOTOGRAPHS
    photograph_crops: Positive = 32768

    def __post_init__(self) -> None:
        validate_options(self, "data.")
        require(bool(self.source), "data.source is empty; give photographs, a TFDS name or folder:PATH")
        require(bool(self.photographs), "data.photographs is empty; leave it out to use all with a known licence")


# Names of the options that take effect in each training step, of `train.py` and of Keras' `fit`.
STEP_OPTIONS = tuple(
    field.name for field in dataclasses.fields(TrainingConfig) if field.name not in (*OPTIMIZER_OPTIONS, *RUN_OPTIONS)
)
