"""What a program sets for TensorFlow on GPUs and on CPUs, and the environment variables that change it.

Options that change a run's numbers are in its config (`training.precision`, `jit_compile`, `bytes_per_pack`); these
settings concern the machine alone.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Self

from tfdecouple.errors import ConfigError

# The first variable is TensorFlow's own.
ALLOW_GROWTH = "TF_FORCE_GPU_ALLOW_GROWTH"
GRAPPLER, SHARDS = "TFDECOUPLE_GRAPPLER", "TFDECOUPLE_SHARDS"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How TensorFlow is set up in a process of ours.

    Attributes:
        grappler: whether Grappler rewrites graphs before their first run. It does on GPUs, as is TensorFlow's default.
            On CPUs it does not: on two cores the rewriting took 10 of the 29 seconds to the first training step of the
            quickstart, and each step was slower for it (58 images/s instead of 98).
        memory_growth: whether TensorFlow takes a GPU's memory as it needs it, instead of all at its start.
        device_batches: how many batches are copied to each device before their step.
        shards: in how many shards CPUs compute a batch side by side (`runtime/execution.py`); an operation has its
            share of the threads. Two threads compute two shards, which was measured. More threads compute one, so that
            an operation may take all of them, as is TensorFlow's own choice.
    """

    grappler: bool
    memory_growth: bool
    device_batches: int
    shards: int

    @classmethod
    def choose(cls, gpus: int, cores: int, environment: Mapping[str, str] | None = None) -> Self:
        """Returns the settings for a machine, as the environment changes them.

        Args:
            gpus: how many GPUs TensorFlow sees.
            cores: how many cores the process may use, or how many threads it asks for.
            environment: variables; None for those of the process.

        Raises:
            ConfigError: naming a variable and its value.
        """
        environment = os.environ if environment is None else environment
        shards = environment.get(SHARDS, "").strip() or str(cores if cores <= 2 else 1)
        if not (shards.isascii() and shards.isdigit() and int(shards) <= 1024):
            raise ConfigError(f"{SHARDS} is {environment[SHARDS]!r}; it must be a whole number from 0 to 1024")
        return cls(
            grappler=_read_switch(environment, GRAPPLER, gpus > 0),
            memory_growth=_read_switch(environment, ALLOW_GROWTH, gpus > 0),
            device_batches=2 if gpus else 1,
            shards=min(max(1, int(shards)), cores),
        )

    def apply(self) -> None:
        """Sets up TensorFlow, which must not have started a device yet; afterwards only Grappler can still be set."""
        import tensorflow as tf

        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not self.grappler})
        if ALLOW_GROWTH not in os.environ:
            for gpu in tf.config.list_physical_devices("GPU"):
                # Where a user's code has started TensorFlow, its memory stays as it is.
                try:
                    tf.config.experimental.set_memory_growth(gpu, self.memory_growth)
                except RuntimeError:
                    return


def current() -> Settings:
    """Returns the settings for this process, whether or not they have been applied."""
    import tensorflow as tf

    return Settings.choose(len(tf.config.get_visible_devices("GPU")), cores())


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_switch(environment: Mapping[str, str], name: str, default: bool) -> bool:
    # TensorFlow takes these words for its own variables.
    words = {"1": True, "true": True, "0": False, "false": False}
    text = environment.get(name, "").strip().lower()
    if not text:
        return default
    if text not in words:
        raise ConfigError(f"{name} is {environment[name]!r}; it must be 1 or 0 (or true or false)")
    return words[text]
