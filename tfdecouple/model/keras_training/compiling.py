"""What `compile` is told: how the bound is to be minimised and measured."""

from __future__ import annotations

from typing import Any

import keras

from tfdecouple.config import TrainingConfig, from_plain
from tfdecouple.errors import UserError
from tfdecouple.model.distributions import Distributions
from tfdecouple.model.keras_training.figures import Figures

# The options of training that `compile` takes beside Keras' own.
_OPTIONS = ("kl_weight", "precision", "memory", "jit_compile", "seed", "init_images", "max_skipped_steps")
# What of Keras' `compile` has no place beside the bound.
_FIXED = ("loss", "loss_weights", "metrics", "weighted_metrics")
# What Keras' global policy asks for, in our words.
_POLICIES = {"mixed_bfloat16": "mixed_bfloat16", "bfloat16": "mixed_bfloat16"}


class CompiledModel(Distributions):
    """A model with a bound that Keras' `compile` prepares for training."""

    _figures: Figures | None = None
    _options: TrainingConfig | None = None

    def compile(
        self,
        optimizer: Any = "adam",
        loss: None = None,
        *,
        kl_weight: float = 1.0,
        precision: str | None = None,
        memory: str = "keep",
        jit_compile: bool | str = False,
        seed: int = 0,
        init_images: int = 512,
        max_skipped_steps: int = 10,
        **options: Any,
    ) -> None:
        """Prepares `fit` and `evaluate`: what they minimise and measure is the negative evidence lower bound.

        Args:
            optimizer: of Keras, or its name. Its schedule, clipping and weight decay are its own.
            loss: none; the bound is.
            kl_weight: as `training.kl_weight` of a run, like the rest.
            precision: "float32", "tf32" or "mixed_bfloat16"; None for what Keras' global policy says.
            memory: "keep", "recompute" or "invert".
            jit_compile: whether XLA compiles each kind of layer; "auto" for no.
            seed: of all noise, in steps and in evaluations.
            init_images: of how many training images `fit` starts a model without weights.
            max_skipped_steps: steps in a row that may be skipped, for values that are not finite or, with
                `memory="invert"`, an inversion that came back too far off.
            **options: `run_eagerly`, `steps_per_execution` and `auto_scale_loss` of Keras.

        Raises:
            UserError: for a loss or metrics of one's own, or a policy in float16.
            ConfigError: for an impossible value.
        """
        for name, value in {"loss": loss, **options}.items():
            if name in _FIXED and value is not None:
                raise UserError(
                    f"compile got {name}; the loss is the negative evidence lower bound and its terms are the metrics: "
                    "leave it out"
                )
        given = dict(
            zip(
                _OPTIONS,
                (
                    kl_weight,
                    precision or _policys_precision(),
                    memory,
                    jit_compile is True,
                    seed,
                    init_images,
                    max_skipped_steps,
                ),
                strict=True,
            )
        )
        training = from_plain(TrainingConfig, given, "training.")
        with self.distribute_strategy.scope():
            figures = Figures(self.nats_to_bits_per_dim, training.kl_weight, max_skipped_steps)
            # Keras would hand all of a step to XLA.
            super().compile(optimizer, jit_compile=False, **options)
        # Where Keras has refused something, the model is compiled as it was.
        self._options, self._figures = training, figures

    def get_compile_config(self) -> dict[str, Any]:
        """Returns what `compile` was given, as plain values."""
        config = super().get_compile_config()
        if not config or self._options is None:
            return config
        for name in _FIXED:
            config.pop(name, None)
        return {**config, **{name: getattr(self._options, name) for name in _OPTIONS}}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as a saved model was."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        with self.distribute_strategy.scope():
            self.optimizer.build(self.trainable_variables)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The loss, bits per dimension and the terms of the bound, once the model is compiled."""
        return super().metrics if self._figures is None else list(self._figures.metrics)

    def _compiled(self, method: str) -> tuple[TrainingConfig, Figures]:
        if self._options is None or self._figures is None:
            raise UserError(f"call model.compile(optimizer) before {method}")
        return self._options, self._figures


def _policys_precision() -> str:
    policy = keras.config.dtype_policy().name
    if "float16" in policy and policy not in _POLICIES:
        raise UserError(
            f"Keras' policy is {policy}, in which these models do not train; take mixed_bfloat16, or "
            "compile(precision='float32')"
        )
    return _POLICIES.get(policy, "float32")
