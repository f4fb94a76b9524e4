"""Tests of what a program sets for TensorFlow: by the devices there are, and as the environment changes it."""

from __future__ import annotations

import pytest
import tensorflow as tf
from helpers.refusals import message_of

from tfdecouple.errors import ConfigError
from tfdecouple.runtime import devices
from tfdecouple.runtime.devices import Settings
from tfdecouple.training.strategy import device_input_options


class Machine:
    """TensorFlow's device list with GPUs that are not there, and the settings made for them."""

    def __init__(self, monkeypatch, gpus, has_started=False):
        self.gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{number}", "GPU") for number in range(gpus)]
        self.growth, self.optimizer, self.has_started = {}, {}, has_started
        for name in (devices.ALLOW_GROWTH, devices.GRAPPLER, devices.SHARDS):
            monkeypatch.delenv(name, raising=False)
        for name in ("list_physical_devices", "get_visible_devices"):
            monkeypatch.setattr(tf.config, name, lambda kind=None: self.gpus if kind == "GPU" else [])
        monkeypatch.setattr(tf.config.experimental, "set_memory_growth", self.set_growth)
        monkeypatch.setattr(tf.config.optimizer, "set_experimental_options", self.optimizer.update)

    def set_growth(self, gpu, on):
        if self.has_started:
            raise RuntimeError("Physical devices cannot be modified after being initialized")
        self.growth[gpu.name] = on


def choose(gpus, cores=32, **environment):
    return Settings.choose(gpus, cores, environment)


def test_graphs_are_rewritten_on_gpus_alone():
    assert choose(0) == Settings(grappler=False, memory_growth=False, device_batches=1, shards=1)
    assert choose(1) == Settings(grappler=True, memory_growth=True, device_batches=2, shards=1)
    assert choose(0, **{devices.GRAPPLER: "1"}).grappler and not choose(1, **{devices.GRAPPLER: "0"}).grappler
    assert not choose(1, **{devices.ALLOW_GROWTH: "false"}).memory_growth


@pytest.mark.parametrize(
    ("cores", "variable", "shards"),
    [(1, "", 1), (2, "", 2), (4, "", 1), (4, "4", 4), (16, "4", 4), (2, "8", 2), (4, "0", 1)],
)
def test_shards_are_two_at_most_unless_the_variable_asks_for_more(cores, variable, shards):
    assert choose(0, cores, **{devices.SHARDS: variable}).shards == shards


@pytest.mark.parametrize(
    ("variable", "value"),
    [(devices.GRAPPLER, "maybe"), (devices.SHARDS, "-1"), (devices.SHARDS, "two"), (devices.SHARDS, "99999")],
)
def test_another_value_is_refused(variable, value):
    message = message_of(ConfigError, lambda: choose(1, **{variable: value}))
    assert variable in message and repr(value) in message and "must be" in message


def test_settings_reach_tensorflow(monkeypatch):
    machine = Machine(monkeypatch, gpus=2)
    devices.current().apply()
    assert machine.optimizer == {"disable_meta_optimizer": False}
    assert list(machine.growth.values()) == [True, True]
    assert device_input_options().experimental_per_replica_buffer_size == 2
    machine.gpus = []
    devices.current().apply()
    assert machine.optimizer["disable_meta_optimizer"]
    assert device_input_options().experimental_per_replica_buffer_size == 1


def test_variables_of_tensorflow_and_started_devices_keep_their_memory(monkeypatch):
    started = Machine(monkeypatch, gpus=1, has_started=True)
    devices.current().apply()
    machine = Machine(monkeypatch, gpus=1)
    monkeypatch.setenv(devices.ALLOW_GROWTH, "false")
    devices.current().apply()
    assert started.optimizer and not started.growth and not machine.growth
