"""In how many micro-batches a run takes a batch, where its config leaves that to the memory that is free."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import tensorflow as tf

from tfdecouple.config import Config
from tfdecouple.costs import fewest_micro_batches, not_counted, step_bytes
from tfdecouple.errors import ConfigError
from tfdecouple.runs import CONFIG, load_config
from tfdecouple.runtime.memory import free_memory, shown_bytes
from tfdecouple.training.workers import Workers

# What the calculation leaves out: gaps between buffers and workspaces, as a part; and on a CPU, where programs and
# tensors share the memory, the graph of the step.
_USABLE = 0.9
_GRAPH = 2**29


def settled(
    config: Config,
    folder: pathlib.Path,
    strategy: tf.distribute.Strategy,
    workers: Workers,
    say: Callable[[str], None],
) -> Config:
    """Returns the config with a number in the place of `training.micro_batches=auto`, and says which.

    It is the number of the run that the folder holds, if any: with another one nothing would go on bit for bit. Else it
    is the smallest with which the state of a training and the maps of a micro-batch fit into what is free on a device
    of the chief, by the calculation of `costs.py`. A config with a number of its own is returned as it is.

    Args:
        config: the run.
        folder: the run folder, there or not.
        strategy: the devices.
        workers: all of them.
        say: prints a line.

    Raises:
        ConfigError: where not even one image at a time fits.
    """
    if config.training.micro_batches != "auto":
        return config
    count = workers.on_chief(lambda: _count(config, folder, strategy, say))
    return dataclasses.replace(config, training=dataclasses.replace(config.training, micro_batches=count))


def _count(config: Config, folder: pathlib.Path, strategy: tf.distribute.Strategy, say: Callable[[str], None]) -> int:
    if (folder / CONFIG).is_file():
        count = load_config(folder).training.passes
        say(f"training.micro_batches=auto: {count}, as this run began")
        return count
    devices, free = strategy.num_replicas_in_sync, usable_memory(strategy)
    if config.training.batch_size % devices:
        return 1  # Which is refused in a line of its own.
    fewest = fewest_micro_batches(config, devices, free)
    if fewest is None:
        least = step_bytes(config, 1, max(1, config.training.batch_size // devices))
        help_ = "" if config.training.memory == "invert" else "training.memory=invert, "
        raise ConfigError(
            f"training.micro_batches=auto: one image at a time needs {shown_bytes(least)} on each device, and "
            f"{shown_bytes(free)} are free; take {help_}a smaller model or a device with more memory"
        )
    images = config.training.batch_size // devices // fewest
    say(
        f"training.micro_batches=auto: {fewest}, {images} images at a time on each device, "
        f"{shown_bytes(step_bytes(config, images, fewest))} of {shown_bytes(free)} by calculation{not_counted(config)}"
    )
    return fewest


def usable_memory(strategy: tf.distribute.Strategy) -> int:
    """Returns how many bytes of a device a step may take."""
    local = strategy.extended.worker_devices
    gpus = [device for device in local if "GPU" in device]
    if not gpus:
        # Logical CPU devices share the memory of the machine.
        return max(0, int((_USABLE * free_memory() - _GRAPH) / len(local)))
    return min(int(_USABLE * _free_on_gpu(device)) for device in gpus)


def _free_on_gpu(device: str) -> int:
    from tensorflow.python.client import device_lib
    from tensorflow.python.eager import context

    name = device.rpartition("device:")[2]
    # By the config of this process, or they would be numbered and reserved as if it had hidden none.
    described = device_lib.list_local_devices(context.context().config)
    limits = {each.name.rpartition("device:")[2]: each.memory_limit for each in described}
    return limits[name] - tf.config.experimental.get_memory_info(name)["current"]
