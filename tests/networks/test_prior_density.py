"""The density of the flow over z integrates to 1."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from helpers.flows import F64
from helpers.models import give_effect
from tensorflow_probability import distributions as tfd

from tfdecouple.networks.prior import PriorFlow

pytestmark = pytest.mark.usefixtures("eager")


class TestDensity:
    """exp(log p) integrates to 1: a wrong sign or a forgotten term of a log-determinant would show."""

    @pytest.mark.parametrize("options", [{}, {"transform": "additive"}, {"linear": "lu"}, {"alpha": 0.5}])
    def test_prior_flow_over_two_dimensions(self, options):
        layer = PriorFlow(2, 5, **options, **F64)
        layer.build((None, 2))
        give_effect(layer, scale=0.15)
        assert abs(integral(lambda z: standard_normal(*layer.forward_and_log_det(z))) - 1) < 1e-6

    def test_inverse_of_the_prior_flow_draws_from_its_density(self):
        layer = give_effect(built(PriorFlow(1, 5, **F64), (None, 2)), scale=0.15)
        noise = tf.random.stateless_normal([100_000, 2], [0, 1], dtype=tf.float64)
        z = layer.inverse_and_log_det(noise)[0].numpy()
        grid, area = lattice()
        density = np.exp(standard_normal(*layer.forward_and_log_det(grid)))
        for moment in (lambda z: z, np.square):
            np.testing.assert_allclose((moment(grid) * density[:, None]).sum(0) * area, moment(z).mean(0), atol=0.05)


def built(layer, shape):
    layer.build(shape)
    return layer


def lattice(half=20.0, count=401):
    side = np.linspace(-half, half, count)
    return np.stack(np.meshgrid(side, side), -1).reshape(-1, 2), (side[1] - side[0]) ** 2


def integral(log_density):
    grid, area = lattice()
    return float(np.exp(log_density(grid)).sum() * area)


def standard_normal(y, log_det):
    return tf.reduce_sum(tfd.Normal(tf.zeros([], tf.float64), 1.0).log_prob(y), -1) + log_det
