"""What changes from update to update: the learning rate and the weight of the KL term."""

import numpy as np
import pytest
import tensorflow as tf

from tfdecouple.config import TrainingConfig
from tfdecouple.training.schedule import kl_weight, learning_rate


@pytest.mark.parametrize("warmup", [1, 50])
def test_rises_linearly_and_then_decays_exponentially(warmup):
    config = TrainingConfig(learning_rate=1e-3, warmup_steps=warmup, decay_rate=0.999997)
    for update in (0, 1, warmup - 1, warmup, warmup + 1, 10**6):
        if update < warmup:
            expected = np.float64(1e-7) + (np.float64(1e-3) - 1e-7) * update / warmup
        else:
            expected = np.float64(1e-3) * np.float64(0.999997) ** (update - warmup)
        rate = learning_rate(config, tf.constant(update, tf.int64))
        assert rate.dtype == tf.float32
        np.testing.assert_allclose(rate, expected, rtol=1e-6)


def test_begins_at_the_peak_without_warmup():
    rate = learning_rate(TrainingConfig(learning_rate=1e-3, warmup_steps=0), tf.constant(0))
    np.testing.assert_allclose(rate, 1e-3, rtol=1e-6)


@pytest.mark.parametrize(("warmup", "expected"), [(0, [0.4, 0.4, 0.4]), (4, [0.0, 0.1, 0.4])])
def test_weight_of_the_kl_rises_linearly_and_stays(warmup, expected):
    config = TrainingConfig(kl_weight=0.4, kl_warmup_steps=warmup)
    weights = [kl_weight(config, tf.constant(update, tf.int64)) for update in (0, 1, 100)]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
