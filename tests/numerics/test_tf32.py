import warnings

import pytest
import tensorflow as tf
from helpers.models import random_images

from tfdecouple.numerics import tf32
from tfdecouple.numerics.tf32 import full_float32, tensor_float_32

enabled = tf.config.experimental.tensor_float_32_execution_enabled
enable = tf.config.experimental.enable_tensor_float_32_execution


@pytest.fixture(autouse=True)
def default_setting():
    enable(True)
    yield
    assert tf32._switch.full == tf32._switch.tf32 == 0
    enable(True)


class TestWarning:
    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch):
        monkeypatch.setattr(tf32, "has_visible_gpu", lambda: True)

    @staticmethod
    def traced(run):
        """What is caught while a function is traced."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tf.function(run, autograph=False).get_concrete_function()
        return [warning for warning in caught if "TF32" in str(warning.message)]

    def test_traced_model_warns_once_of_tf32_in_the_line_of_the_caller(self, small_model):
        def run():
            z, v = small_model.encode(random_images(2, 4))
            return small_model.decode(z, v), small_model.prior().log_prob(z)

        for _ in range(2):
            caught = self.traced(run)
            assert len(caught) == 1 and caught[0].filename == __file__
            assert "\n" not in str(caught[0].message) and "may decode images inexactly" in str(caught[0].message)

    def test_model_called_outside_a_trace_does_not_warn_of_tf32(self, small_model):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            small_model.decode(*small_model.encode(random_images(7, 4)))


class TestSwitch:
    @pytest.mark.parametrize("users", [True, False])
    def test_contexts_turn_tf32_off_or_on_inside_and_restore_the_setting_of_the_user(self, users):
        enable(users)
        with full_float32():
            assert not enabled()
            with full_float32(), tensor_float_32():
                assert not enabled()
            assert not enabled()
        assert enabled() is users
        with tensor_float_32():
            assert enabled()
            with full_float32(), tensor_float_32():
                assert not enabled()
            assert enabled()
        assert enabled() is users
