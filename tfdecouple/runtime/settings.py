"""What a program sets for TensorFlow where there is a GPU, and where there is none; variables change each of it.

What a run computes with is in its config (`training.precision`, `jit_compile`, `bytes_per_pack`); what is of the
machine alone is here. Each has a variable of the environment (TensorFlow's own where it has one) to be tried with.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Self

from tfdecouple.errors import ConfigError

# TensorFlow's own variables: who sets one has decided.
ALLOW_GROWTH, THREAD_MODE, THREAD_COUNT = "TF_FORCE_GPU_ALLOW_GROWTH", "TF_GPU_THREAD_MODE", "TF_GPU_THREAD_COUNT"
GRAPPLER, LAYOUT = "TFDECOUPLE_GRAPPLER", "TFDECOUPLE_LAYOUT"
DATA_THREADS, DEVICE_BATCHES = "TFDECOUPLE_DATA_THREADS", "TFDECOUPLE_DEVICE_BATCHES"
SHARDS = "TFDECOUPLE_SHARDS"

# Threads of each GPU that launch its kernels and nothing else: TensorFlow's own number for this mode.
_THREADS_A_GPU = 2
# More threads than so many for each GPU have nothing to do for images of these sizes: TensorFlow's Model Garden's rule.
_DATA_THREADS_A_GPU = 8


@dataclasses.dataclass(frozen=True)
class Settings:
    """How TensorFlow is set up in a process of ours.

    Attributes:
        grappler: whether Grappler rewrites graphs before their first run. On GPUs it does, which is TensorFlow's
            default. On CPUs not: on two cores the rewriting of the training step took 10 of the 29 seconds to the
            first step of the quickstart, and each step was slower for it (58 images/s instead of 98).
        layout: "auto" lets Grappler's layout optimizer choose for each convolution on a GPU between NHWC, in which all
            of this project is written, and NCHW; "nhwc" leaves them as written. XLA chooses by itself. On CPUs nothing
            but NHWC exists.
        memory_growth: whether TensorFlow takes a GPU's memory as it needs it, instead of all at its start.
        gpu_threads: each GPU's own, which launch its kernels whatever the data pipeline does; 0 for shared ones.
        data_threads: of each data pipeline's own; 0 for those that operations share.
        device_batches: batches that lie ready on each device before their step; 0 for none.
        shards: in how many shards CPUs compute a batch side by side (`runtime/execution.py`); the threads of an
            operation are what is left to each. As many as there are threads up to two, which was measured; beyond,
            where nobody has measured, 1, so that an operation may take all threads, which is TensorFlow's own choice.
    """

    grappler: bool
    layout: str
    memory_growth: bool
    gpu_threads: int
    data_threads: int
    device_batches: int
    shards: int

    @classmethod
    def chosen(cls, gpus: int, cores: int, environment: Mapping[str, str] | None = None) -> Self:
        """Returns the settings for a machine, as the environment changes them.

        Args:
            gpus: how many GPUs TensorFlow sees.
            cores: that the process may use, or threads that it asks for.
            environment: variables; None for those of the process.

        Raises:
            ConfigError: naming a variable and its value.
        """
        given = os.environ if environment is None else environment
        own = _number(given, THREAD_COUNT, _THREADS_A_GPU) if gpus else 0
        if given.get(THREAD_MODE, "gpu_private") != "gpu_private":
            own = 0
        # What the launching threads and one for each GPU's own operations leave of the cores.
        left = max(1, min(cores - gpus * (own + 1), gpus * _DATA_THREADS_A_GPU))
        layout = given.get(LAYOUT, "auto").lower()
        if layout not in ("auto", "nhwc"):
            raise ConfigError(f"{LAYOUT} is {given[LAYOUT]!r}; it must be auto or nhwc")
        return cls(
            grappler=_yes(given, GRAPPLER, gpus > 0),
            layout=layout,
            memory_growth=_yes(given, ALLOW_GROWTH, gpus > 0),
            gpu_threads=own,
            data_threads=_number(given, DATA_THREADS, left if gpus else 0),
            device_batches=_number(given, DEVICE_BATCHES, 2 if gpus else 1),
            shards=min(max(1, _number(given, SHARDS, cores if cores <= 2 else 1)), cores),
        )

    def apply(self) -> None:
        """Sets up TensorFlow, which must not have started a device yet; afterwards only Grappler can still be set."""
        import tensorflow as tf

        tf.config.optimizer.set_experimental_options(
            {"disable_meta_optimizer": not self.grappler, "layout_optimizer": self.layout == "auto"}
        )
        gpus = tf.config.list_physical_devices("GPU")
        if gpus and self.gpu_threads:
            # Read when the device starts.
            os.environ.setdefault(THREAD_MODE, "gpu_private")
            os.environ.setdefault(THREAD_COUNT, str(self.gpu_threads))
        if ALLOW_GROWTH not in os.environ:
            for gpu in gpus:
                # Where TensorFlow has started, this process is not the program's own.
                try:
                    tf.config.experimental.set_memory_growth(gpu, self.memory_growth)
                except RuntimeError:
                    return


def current() -> Settings:
    """Returns the settings for this process, whether or not it is a program that has applied them."""
    import tensorflow as tf

    return Settings.chosen(len(tf.config.get_visible_devices("GPU")), cores())


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _yes(given: Mapping[str, str], name: str, otherwise: bool) -> bool:
    # TensorFlow takes these words for its own variables.
    words = {"1": True, "true": True, "0": False, "false": False}
    text = given.get(name, "").strip().lower()
    if not text:
        return otherwise
    if text not in words:
        raise ConfigError(f"{name} is {given[name]!r}; it must be 1 or 0 (or true or false)")
    return words[text]


def _number(given: Mapping[str, str], name: str, otherwise: int) -> int:
    text = given.get(name, "").strip()
    if not text:
        return otherwise
    if not (text.isascii() and text.isdigit() and int(text) <= 1024):
        raise ConfigError(f"{name} is {given[name]!r}; it must be a whole number from 0 to 1024")
    return int(text)
