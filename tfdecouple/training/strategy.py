"""The devices that train, and the division of a batch among them."""

from __future__ import annotations

import functools

import tensorflow as tf
from tensorflow.python.eager import context

from tfdecouple.config import TrainingConfig
from tfdecouple.errors import ConfigError
from tfdecouple.training.workers import Cluster

# Seconds without a heartbeat after which a worker counts as dead. A worker killed during a step is noticed at once.
_SILENCE = 40

_Communication = tf.distribute.experimental.CommunicationImplementation


def make_strategy(devices: int | None = None, cluster: Cluster | None = None) -> tf.distribute.MirroredStrategy:
    """Returns a MirroredStrategy over all visible GPUs, or over the CPU where there is no GPU.

    In a cluster it is a MultiWorkerMirroredStrategy over the devices of all workers, which must have equally many. The
    call waits until all workers have started, and must come before TensorFlow runs its first operation.

    Args:
        devices: number of devices of each worker. Without GPUs and outside of a cluster, more than one means logical
            CPU devices, which show how a run behaves on several devices but make nothing faster; they must be made
            before TensorFlow runs its first operation.
        cluster: the cluster of all workers; None for this process alone.
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
    return tf.distribute.MirroredStrategy(list(devices))


def _cluster_strategy(cluster: Cluster, devices: int | None) -> tf.distribute.MultiWorkerMirroredStrategy:
    gpus = tf.config.get_visible_devices("GPU")
    present = len(gpus) or 1
    if devices is not None and devices > present:
        kind = f"{present} GPUs" if gpus else "only one CPU device"
        raise ConfigError(f"--devices is {devices}; a worker of this cluster has {kind}")
    if gpus:
        gpus = gpus[: devices or present]
        tf.config.set_visible_devices(gpus, "GPU")
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster.cluster),
        task_type=cluster.task.type,
        task_id=cluster.task.index,
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
    """Returns the input options that copy some batches to the devices before their step."""
    batches = 2 if tf.config.get_visible_devices("GPU") else 1
    return tf.distribute.InputOptions(experimental_per_replica_buffer_size=batches)


def require_divisible_batch(config: TrainingConfig, replicas: int) -> None:
    """Raises ConfigError if the batch size is no multiple of devices times micro-batches."""
    slices = replicas * config.micro_batches
    if config.batch_size % slices:
        micro = f" times {config.micro_batches} micro-batches" if config.micro_batches > 1 else ""
        least = "smaller than" if config.batch_size < slices else "no multiple of"
        raise ConfigError(
            f"training.batch_size is {config.batch_size}, {least} the {replicas} devices{micro}; "
            f"take a multiple of {slices}"
        )
