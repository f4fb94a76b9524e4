"""The devices that train, and the division of a batch among them and into micro-batches."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable

import tensorflow as tf
from tensorflow.python.eager import context

from tfdecouple.config import Config, TrainingConfig
from tfdecouple.errors import ConfigError
from tfdecouple.networks.costs import fewest_micro_batches, not_counted, step_bytes
from tfdecouple.runs.run_folder import CONFIG, load_config
from tfdecouple.runtime import devices
from tfdecouple.runtime.devices import free_memory, shown_bytes
from tfdecouple.training.workers import Cluster, Workers

# Seconds without a heartbeat after which a worker counts as dead. A worker killed during a step is noticed at once.
_SILENCE = 40
# Fraction of the memory that tensors may take; the rest is for gaps between buffers, and for workspaces.
_USABLE = 0.9
# Bytes of the step's graph, which on a CPU lies in the same memory as the tensors.
_GRAPH = 2**29

_Communication = tf.distribute.experimental.CommunicationImplementation


def make_strategy(devices: int | None = None, cluster: Cluster | None = None) -> tf.distribute.MirroredStrategy:
    """Returns a MirroredStrategy over all visible GPUs, or over the CPU where there is no GPU.

    In a cluster it is a MultiWorkerMirroredStrategy over the devices of all workers, which must have equally many. The
    call waits until all workers have started, and must come before TensorFlow runs its first operation.

    Args:
        devices: number of devices of each worker. Without GPUs, more than one means logical CPU devices, which show how
            a run behaves on several devices but make nothing faster; they must be made before TensorFlow runs its first
            operation, and a cluster has none.
        cluster: the cluster of all workers; None for this process alone.

    Raises:
        ConfigError: where fewer devices are present.
    """
    if devices is not None and devices < 1:
        raise ConfigError(f"--devices is {devices}; it must be at least 1")
    if cluster is not None:
        return _cluster_strategy(cluster, devices)
    kind = "GPU" if tf.config.get_visible_devices("GPU") else "CPU"
    cpu = tf.config.list_physical_devices("CPU")[0]
    if kind == "CPU" and (devices or 1) > max(1, len(tf.config.get_logical_device_configuration(cpu) or [])):
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * (devices or 1))
        except RuntimeError as error:
            raise ConfigError(f"--devices is {devices}; TensorFlow has started with fewer logical CPUs") from error
    present = [device.name.partition("device:")[2] for device in tf.config.list_logical_devices(kind)]
    if devices is None:
        devices = len(present) if kind == "GPU" else 1
    if devices > len(present):
        raise ConfigError(f"--devices is {devices}; there are {len(present)} ({', '.join(present)})")
    return get_mirrored_strategy(tuple(present[:devices]))


@functools.cache
def get_mirrored_strategy(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    """Returns the MirroredStrategy over some devices, always the same object for the same devices.

    Two strategies in one process would give their collective operations the same numbers.
    """
    # The strategy ignores TF_CONFIG, but fails where TF_CONFIG is no JSON, so the variable is unset for a moment.
    value = os.environ.pop("TF_CONFIG", None)
    try:
        return tf.distribute.MirroredStrategy(list(devices))
    finally:
        if value is not None:
            os.environ["TF_CONFIG"] = value


def _cluster_strategy(cluster: Cluster, devices: int | None) -> tf.distribute.MultiWorkerMirroredStrategy:
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
    # TensorFlow's coordination service takes a worker on a busy host for dead after 10 seconds without a heartbeat. It
    # has no public option for this time, so the call that configures the service is wrapped.
    current = context.context()
    configure = current.configure_coordination_service
    current.configure_coordination_service = functools.partial(configure, heartbeat_timeout_in_ms=1000 * _SILENCE)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
    finally:
        del current.configure_coordination_service


def device_input_options() -> tf.distribute.InputOptions:
    """Returns the input options that copy some batches to the devices before their step (`runtime/devices.py`)."""
    return tf.distribute.InputOptions(experimental_per_replica_buffer_size=devices.current().device_batches)


def require_divisible_batch(config: TrainingConfig, replicas: int) -> None:
    """Raises ConfigError if the batch size is no multiple of devices times micro-batches."""
    slices = replicas * config.passes
    if config.batch_size % slices:
        micro = f" times {config.passes} micro-batches" if config.passes > 1 else ""
        least = "smaller than" if config.batch_size < slices else "no multiple of"
        raise ConfigError(
            f"training.batch_size is {config.batch_size}, {least} the {replicas} devices{micro}; "
            f"take a multiple of {slices}"
        )


def choose_micro_batches(
    config: Config,
    folder: pathlib.Path,
    strategy: tf.distribute.Strategy,
    workers: Workers,
    report: Callable[[str], None],
) -> Config:
    """Returns the config with a number instead of `training.micro_batches=auto`, and prints the number.

    A run that is resumed keeps its number, because with another number it could not be resumed bit for bit. A new run
    gets the smallest number with which the state of the training and the activations of a micro-batch fit into the free
    memory of a device of the chief, by the calculation of `costs.py`.

    Args:
        config: the config of the run; a config with a number is returned unchanged.
        folder: the run folder; it need not exist.
        strategy: the strategy over the devices.
        workers: all processes of the run.
        report: function that prints a line.

    Raises:
        ConfigError: where not even one image at a time fits.
    """
    if config.training.micro_batches != "auto":
        return config
    count = workers.call_on_chief(lambda: _count_micro_batches(config, folder, strategy, report))
    return dataclasses.replace(config, training=dataclasses.replace(config.training, micro_batches=count))


def _count_micro_batches(
    config: Config, folder: pathlib.Path, strategy: tf.distribute.Strategy, report: Callable[[str], None]
) -> int:
    if (folder / CONFIG).is_file():
        count = load_config(folder).training.passes
        report(f"training.micro_batches=auto: {count}, as this run began")
        return count
    devices, free = strategy.num_replicas_in_sync, measure_usable_memory(strategy)
    if config.training.batch_size % devices:
        return 1  # Any number will do, because `require_divisible_batch` then raises an error for this batch.
    fewest = fewest_micro_batches(config, devices, free)
    if fewest is None:
        least = step_bytes(config, 1, max(1, config.training.batch_size // devices))
        advice = "" if config.training.memory == "invert" else "training.memory=invert, "
        raise ConfigError(
            f"training.micro_batches=auto: one image at a time needs {shown_bytes(least)} on each device, and "
            f"{shown_bytes(free)} are free; take {advice}a smaller model or a device with more memory"
        )
    images = config.training.batch_size // devices // fewest
    report(
        f"training.micro_batches=auto: {fewest}, {images} images at a time on each device, "
        f"{shown_bytes(step_bytes(config, images, fewest))} of {shown_bytes(free)} by calculation{not_counted(config)}"
    )
    return fewest


def measure_usable_memory(strategy: tf.distribute.Strategy) -> int:
    """Returns how many bytes of memory a step may take on each device."""
    local = strategy.extended.worker_devices
    gpus = [device for device in local if "GPU" in device]
    if not gpus:
        # The memory is divided by their number, because logical CPU devices share the memory of the machine.
        return max(0, int((_USABLE * free_memory() - _GRAPH) / len(local)))
    from tensorflow.python.client import device_lib

    # The config of this process is passed because the default would also list, and reserve, its hidden GPUs.
    described = device_lib.list_local_devices(context.context().config)
    limits = {each.name.rpartition("device:")[2]: each.memory_limit for each in described}
    names = [device.rpartition("device:")[2] for device in gpus]
    used = {name: tf.config.experimental.get_memory_info(name)["current"] for name in names}
    return min(int(_USABLE * (limits[name] - used[name])) for name in names)
