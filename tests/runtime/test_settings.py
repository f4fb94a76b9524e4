"""Tests of what a program sets for TensorFlow: by the devices there are, and as the environment changes it."""

from __future__ import annotations

import pytest
import tensorflow as tf
from helpers.refusals import message_of

from tfdecouple.data import batches
from tfdecouple.errors import ConfigError
from tfdecouple.runtime import settings
from tfdecouple.runtime.settings import Settings
from tfdecouple.training.strategy import device_input_options

OURS = (
    settings.ALLOW_GROWTH,
    settings.THREAD_MODE,
    settings.THREAD_COUNT,
    settings.GRAPPLER,
    settings.LAYOUT,
    settings.DATA_THREADS,
    settings.DEVICE_BATCHES,
    settings.SHARDS,
)


class Machine:
    """TensorFlow's device list with GPUs that are not there, and what is asked of them."""

    def __init__(self, monkeypatch, gpus, has_started=False):
        self.gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{number}", "GPU") for number in range(gpus)]
        self.growth, self.optimizer, self.has_started = {}, {}, has_started
        for name in OURS:
            # Set first, so that what `apply` sets is undone after the test.
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        for name in ("list_physical_devices", "get_visible_devices"):
            monkeypatch.setattr(tf.config, name, lambda kind=None: self.gpus if kind == "GPU" else [])
        monkeypatch.setattr(tf.config.experimental, "set_memory_growth", self.set_growth)
        monkeypatch.setattr(tf.config.optimizer, "set_experimental_options", self.optimizer.update)
        monkeypatch.setattr(settings, "cores", lambda: 32)

    def set_growth(self, gpu, on):
        if self.has_started:
            raise RuntimeError("Physical devices cannot be modified after being initialized")
        self.growth[gpu.name] = on


def chosen(gpus, cores=32, **environment):
    return Settings.chosen(gpus, cores, environment)


class TestChosen:
    def test_on_cpus_nothing_is_rewritten_and_threads_are_shared(self):
        assert chosen(0) == Settings(
            grappler=False,
            layout="auto",
            memory_growth=False,
            gpu_threads=0,
            data_threads=0,
            device_batches=1,
            shards=1,
        )

    def test_on_gpus_it_is_tensorflows_default_and_threads_of_their_own(self):
        expected = {"grappler": True, "memory_growth": True, "gpu_threads": 2, "data_threads": 8, "device_batches": 2}
        assert chosen(1) == Settings(layout="auto", shards=1, **expected)

    @pytest.mark.parametrize(
        ("gpus", "cores", "threads"), [(1, 2, 1), (1, 8, 5), (2, 16, 10), (8, 64, 40), (8, 256, 64)]
    )
    def test_the_data_have_what_the_gpus_leave_of_the_cores(self, gpus, cores, threads):
        assert chosen(gpus, cores).data_threads == threads

    @pytest.mark.parametrize(
        ("variable", "value", "field", "expected"),
        [
            (settings.GRAPPLER, "0", "grappler", False),
            (settings.LAYOUT, "NHWC", "layout", "nhwc"),
            (settings.ALLOW_GROWTH, "false", "memory_growth", False),
            (settings.THREAD_MODE, "global", "gpu_threads", 0),
            (settings.THREAD_COUNT, "4", "gpu_threads", 4),
            (settings.DATA_THREADS, "3", "data_threads", 3),
            (settings.DATA_THREADS, "0", "data_threads", 0),
            (settings.DEVICE_BATCHES, "0", "device_batches", 0),
        ],
    )
    def test_each_has_a_variable(self, variable, value, field, expected):
        assert getattr(chosen(1, **{variable: value}), field) == expected

    @pytest.mark.parametrize(
        ("cores", "asked", "shards"),
        [(1, "", 1), (2, "", 2), (4, "", 1), (4, "4", 4), (16, "4", 4), (2, "8", 2), (4, "0", 1)],
    )
    def test_shards_are_two_at_most_unless_more_are_asked_for(self, cores, asked, shards):
        assert chosen(0, cores, **{settings.SHARDS: asked}).shards == shards

    def test_grappler_can_be_had_on_cpus(self):
        assert chosen(0, **{settings.GRAPPLER: "1"}).grappler

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            (settings.GRAPPLER, "maybe"),
            (settings.LAYOUT, "nchw"),
            (settings.DATA_THREADS, "-1"),
            (settings.DATA_THREADS, "two"),
            (settings.DEVICE_BATCHES, "99999"),
        ],
    )
    def test_another_value_is_refused_in_a_line(self, variable, value):
        message = message_of(ConfigError, lambda: chosen(1, **{variable: value}))
        assert variable in message and repr(value) in message and "must be" in message


class TestApply:
    def test_on_gpus(self, monkeypatch):
        machine = Machine(monkeypatch, gpus=2)
        settings.current().apply()
        assert machine.optimizer == {"disable_meta_optimizer": False, "layout_optimizer": True}
        assert list(machine.growth.values()) == [True, True]
        assert [settings.os.environ[name] for name in (settings.THREAD_MODE, settings.THREAD_COUNT)] == [
            "gpu_private",
            "2",
        ]

    def test_on_cpus(self, monkeypatch):
        machine = Machine(monkeypatch, gpus=0)
        settings.current().apply()
        assert machine.optimizer["disable_meta_optimizer"] and not machine.growth
        assert settings.THREAD_MODE not in settings.os.environ

    def test_what_the_user_has_set_is_left_to_tensorflow(self, monkeypatch):
        machine = Machine(monkeypatch, gpus=1)
        monkeypatch.setenv(settings.ALLOW_GROWTH, "false")
        monkeypatch.setenv(settings.THREAD_MODE, "gpu_shared")
        settings.current().apply()
        assert not machine.growth and settings.THREAD_COUNT not in settings.os.environ
        assert settings.os.environ[settings.THREAD_MODE] == "gpu_shared"

    def test_a_process_whose_devices_have_started_keeps_its_memory(self, monkeypatch):
        machine = Machine(monkeypatch, gpus=1, has_started=True)
        settings.current().apply()
        assert machine.optimizer and not machine.growth

    def test_pipelines_and_devices_follow(self, monkeypatch):
        machine = Machine(monkeypatch, gpus=1)
        finished = batches._finished(tf.data.Dataset.range(3))
        assert finished.options().threading.private_threadpool_size == 8
        assert device_input_options().experimental_per_replica_buffer_size == 2
        machine.gpus = []
        assert batches._finished(tf.data.Dataset.range(3)).options().threading.private_threadpool_size is None
        assert device_input_options().experimental_per_replica_buffer_size == 1
