import contextlib
import inspect
import os

import pytest
import tensorflow as tf
from helpers.places import ROOT
from tensorflow.python.eager import context

from tfdecouple import tensorflow_internals


class TestInternals:
    def test_paused_gradient_tape_records_nothing(self):
        x = tf.constant(3.0)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = x**2
            with tensorflow_internals.pause_gradient_tapes():
                constant = x**2
            y += constant
        assert tape.gradient(y, x) == 6

    def test_onednn_is_on_as_the_environment_says(self):
        """`make test-machines` runs this test with another value of the variable."""
        assert tensorflow_internals.is_onednn_on() == (os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "1")

    @pytest.mark.parametrize("jit_compile", [None, True])
    def test_tracing_for_xla_is_recognised_in_nested_functions(self, jit_compile):
        results = []
        inner = tf.function(lambda x: results.append(tensorflow_internals.is_traced_for_xla()) or x, autograph=False)
        outer = tf.function(lambda x: inner(x), autograph=False, jit_compile=jit_compile)
        outer.get_concrete_function(tf.TensorSpec([]))
        assert results == [bool(jit_compile)] and not tensorflow_internals.is_traced_for_xla()

    def test_worker_timeout_reaches_the_coordination_service_of_tensorflow(self, monkeypatch):
        name, option = "configure_coordination_service", "heartbeat_timeout_in_ms"
        assert option in inspect.signature(getattr(context.Context, name)).parameters
        received = []
        monkeypatch.setattr(context.Context, name, lambda *_, **options: received.append(options))
        with tensorflow_internals.worker_timeout(7):
            context.context().configure_coordination_service("standalone")
        context.context().configure_coordination_service("standalone")
        assert received == [{option: 7000}, {}]

    def test_guarded_dataset_converts_errors_of_loops(self):
        @contextlib.contextmanager
        def convert():
            try:
                yield
            except tf.errors.OpError as error:
                raise LookupError from error

        dataset = tf.data.Dataset.range(2).map(lambda n: tf.debugging.check_numerics(n / 0, ""))
        for loop in (list, lambda guarded: list(guarded.as_numpy_iterator()), lambda guarded: iter(guarded).get_next()):
            assert len(loop(tensorflow_internals.GuardedDataset(tf.data.Dataset.range(2).batch(1), convert))) > 0
            with pytest.raises(LookupError):
                loop(tensorflow_internals.GuardedDataset(dataset, convert))

    def test_private_parts_of_tensorflow_are_used_by_one_module_only(self):
        files = [*(ROOT / "tfdecouple").rglob("*.py"), *(ROOT / "export").rglob("*.py")]
        results = [file.name for file in files if "tensorflow.python" in file.read_text(encoding="utf-8")]
        assert results == ["tensorflow_internals.py"]
