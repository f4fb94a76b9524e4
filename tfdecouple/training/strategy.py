"""Which devices train, how a batch is divided among them, and into how many micro-batches."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator

import tensorflow as tf
from tensorflow.python.eager import context

from tfdecouple.config import Config, TrainingConfig
from tfdecouple.errors import ConfigError
from tfdecouple.networks.costs import fewest_micro_batches, not_counted, step_bytes
from tfdecouple.runs import CONFIG, load_config
from tfdecouple.runtime import settings
from tfdecouple.runtime.memory import free_memory, shown_bytes
from tfdecouple.training.workers import Cluster, Workers

# After so many seconds without a sign of life a worker counts as dead. A worker killed amid a step is noticed at once.
_SILENCE = 40

_Communication = tf.distribute.experimental.CommunicationImplementation


def make_strategy(devices: int | None = None, cluster: Cluster | None = None) -> tf.distribute.MirroredStrategy:
    """Returns a MirroredStrategy over all visible GPUs, or over the CPU where there is none.

    In a cluster it is a MultiWorkerMirroredStrategy over those of all workers, each of which must have as many. It
    waits until all of them have started, and must be made before TensorFlow runs its first operation.

    Args:
        devices: take this many of each worker. Without GPUs, more than one means logical CPU devices, which show how a
            run behaves on several devices but make nothing faster; they must be asked for before TensorFlow runs its
            first operation, and there are none in a cluster.
        cluster: the workers; None for this process alone.

    Raises:
        ConfigError: where there are fewer devices.
    """
    if devices is not None and devices < 1:
        raise ConfigError(f"--devices is {devices}; it must be at least 1")
    if cluster is not None:
        return _strategy_of(cluster, devices)
    kind = "GPU" if tf.config.get_visible_devices("GPU") else "CPU"
    if kind == "CPU" and devices is not None and devices > 1:
        _split_cpu(devices)
    present = [device.name.partition("device:")[2] for device in tf.config.list_logical_devices(kind)]
    if devices is None:
        devices = len(present) if kind == "GPU" else 1
    if devices > len(present):
        raise ConfigError(f"--devices is {devices}; there are {len(present)} ({', '.join(present)})")
    return strategy_over(tuple(present[:devices]))


@functools.cache
def strategy_over(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    """Makes one strategy a process for the same devices: two would number their collective operations alike."""
    # It reads TF_CONFIG only to say that it passes it over, and fails where that is no JSON.
    given = os.environ.pop("TF_CONFIG", None)
    try:
        return tf.distribute.MirroredStrategy(list(devices))
    finally:
        if given is not None:
            os.environ["TF_CONFIG"] = given


def _strategy_of(cluster: Cluster, devices: int | None) -> tf.distribute.MultiWorkerMirroredStrategy:
    gpus = tf.config.get_visible_devices("GPU")
    if cluster.sharing_host > 1 and len(gpus) >= cluster.sharing_host:
        share = len(gpus) // cluster.sharing_host
        gpus = gpus[cluster.rank_on_host * share :][:share]
    present = len(gpus) or 1
    if devices is not None and devices > present:
        kind = f"{present} GPUs" if gpus else "only one CPU device"
        raise ConfigError(f"--devices is {devices}; a worker of this cluster has {kind}")
    if gpus:
        gpus = gpus[: devices or present]
        tf.config.set_visible_devices(gpus, "GPU")
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster.jobs),
        task_type=cluster.job,
        task_id=cluster.index,
        num_accelerators={"GPU": len(gpus)},
        rpc_layer="grpc",
    )
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=_Communication.AUTO if gpus else _Communication.RING
    )
    with _patient():
        return tf.distribute.MultiWorkerMirroredStrategy(resolver, options)


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    """Lets workers be silent for longer than TensorFlow's 10 seconds, which a busy host takes for a dead one.

    The strategy configures TensorFlow's coordination service itself, and there is no public way to tell it how.
    """
    current = context.context()
    configure = current.configure_coordination_service
    current.configure_coordination_service = functools.partial(configure, heartbeat_timeout_in_ms=1000 * _SILENCE)
    try:
        yield
    finally:
        del current.configure_coordination_service


def _split_cpu(devices: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    present = tf.config.get_logical_device_configuration(cpu)
    if present is None or len(present) < devices:
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
        except RuntimeError as error:
            raise ConfigError(f"--devices is {devices}; TensorFlow has started with fewer logical CPUs") from error


def ready_on_devices() -> tf.distribute.InputOptions:
    """Returns how batches reach the devices: some of them lie there before their step (`runtime/settings.py`)."""
    return tf.distribute.InputOptions(experimental_per_replica_buffer_size=settings.current().device_batches)


def check_batch(config: TrainingConfig, replicas: int) -> None:
    """Refuses a batch size that the devices cannot divide evenly; those of evaluations are rounded up.

    Raises:
        ConfigError: naming the sizes.
    """
    slices = replicas * config.passes
    if config.batch_size % slices:
        micro = f" times {config.passes} micro-batches" if config.passes > 1 else ""
        least = "smaller than" if config.batch_size < slices else "no multiple of"
        raise ConfigError(
            f"training.batch_size is {config.batch_size}, {least} the {replicas} devices{micro}; "
            f"take a multiple of {slices}"
        )


# What the calculation leaves out: gaps between buffers and workspaces, as a part; and on a CPU, where programs and
# tensors share the memory, the graph of the step.
_USABLE = 0.9
_GRAPH = 2**29


def choose_micro_batches(
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
