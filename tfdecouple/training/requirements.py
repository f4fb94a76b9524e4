"""What is checked before a run begins: memory for the model, batches for the devices."""

from __future__ import annotations

import tensorflow as tf

from tfdecouple.config import Config, TrainingConfig
from tfdecouple.errors import ConfigError, RunError
from tfdecouple.parameters import require_memory
from tfdecouple.runtime.memory import address_space, shown_bytes

# Addresses that TensorFlow's libraries and threads take, of which most are never touched: with 3 GB it ends the process
# from within, with 4.5 GB the quickstart trains.
_ADDRESSES = 4 * 2**30


def check_memory(config: Config) -> None:
    """Refuses a model that cannot be trained here, whatever the batch.

    Raises:
        ConfigError: where weights, gradients, Adam's moments and averages need more memory than the machine has; of
            machines with a GPU, whose memory holds them, the weights alone.
        RunError: where the process may use too few addresses for TensorFlow itself.
    """
    if (limit := address_space()) < _ADDRESSES:
        raise RunError(
            f"programs may use {shown_bytes(limit)} of addresses here (ulimit -v), and training needs "
            f"{shown_bytes(_ADDRESSES)} or more, whatever the model; lift the limit with ulimit -v unlimited"
        )
    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    require_memory(config.model, copies=1 if has_gpu else 4 + bool(config.training.ema_decay))


def check_batch(config: TrainingConfig, replicas: int) -> None:
    """Refuses batches that cannot be divided evenly.

    Raises:
        ConfigError: naming the sizes.
    """
    slices = replicas * config.micro_batches
    if config.batch_size % slices:
        micro = f" times {config.micro_batches} micro-batches" if config.micro_batches > 1 else ""
        least = "smaller than" if config.batch_size < slices else "no multiple of"
        raise ConfigError(
            f"training.batch_size is {config.batch_size}, {least} the {replicas} devices{micro}; "
            f"take a multiple of {slices}"
        )
    if config.evaluation_batch_size % replicas:
        raise ConfigError(
            f"training.evaluation_batch_size is {config.evaluation_batch_size}; it must be a multiple of the "
            f"{replicas} devices"
        )
