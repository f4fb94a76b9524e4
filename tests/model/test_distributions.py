"""Tests of tfdecouple.model.distributions: the densities of a model, p(z), q(z|x) and p(x|z)."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.variants import equal, images_of, variant
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

pytestmark = pytest.mark.usefixtures("eager")


def test_prior_log_prob_is_that_of_the_noise_plus_the_log_det(small_model):
    z = tf.random.stateless_normal([5, 4], [0, 1])
    noise, log_det = small_model.prior_flow.forward_and_log_det(z)
    expected = tf.reduce_sum(tfd.Normal(0.0, 1.0).log_prob(noise), -1) + log_det
    np.testing.assert_allclose(small_model.prior.log_prob(z), expected, rtol=1e-5)
    np.testing.assert_allclose(small_model.z_from_noise(noise), z, rtol=1e-4, atol=1e-5)
    assert np.abs(noise - z).max() > 0.1


class TestLikelihood:
    def inputs(self, model):
        rng = np.random.default_rng(0)
        images = images_of(model)
        u = rng.random(images.shape, "float32")
        return images, u, 2 * (images + u) / np.float32(256) - 1, rng.standard_normal((3, 4)).astype("float32")

    @pytest.mark.parametrize("name", ["coupling", "none", "base"])
    def test_likelihood_log_prob_is_minus_the_reconstruction_term(self, name):
        model = variant(name)
        images, u, x, noise = self.inputs(model)
        z = None
        if model.config.has_latent:
            posterior = model.posterior(images)
            z = posterior.mean() + posterior.stddev() * noise
        elbo = model.elbo_from_noise(images, noise, u)
        np.testing.assert_allclose(model.likelihood(z).log_prob(x), -elbo.reconstruction, rtol=1e-5)

    def test_likelihood_has_the_batch_shape_of_z(self, small_model):
        _, _, x, z = self.inputs(small_model)
        for shape in ((4,), (3, 4), (1, 3, 4), (3, 1, 4)):
            likelihood = small_model.likelihood(z[0] if shape == (4,) else z.reshape(shape))
            assert likelihood.batch_shape == shape[:-1] and likelihood.event_shape == (4, 4, 3)
        likelihood = small_model.likelihood(z)
        samples = likelihood.sample([2, 5], seed=1)
        assert samples.shape == (2, 5, 3, 4, 4, 3) and samples.dtype == tf.float32
        log_prob = likelihood.log_prob(samples)
        assert log_prob.shape == (2, 5, 3)
        np.testing.assert_allclose(log_prob[1, 4], likelihood.log_prob(samples[1, 4]), rtol=1e-4)
        # One image under several z.
        together = likelihood.log_prob(x[0])
        np.testing.assert_allclose(together[2], small_model.likelihood(z[2]).log_prob(x[0]), rtol=1e-5)

    def test_likelihood_equals_a_transformed_distribution_of_the_flow(self, small_model):
        _, _, x, z = self.inputs(small_model)
        base = tfd.Sample(tfd.Normal(tf.zeros(3), tf.ones(3)), (4, 4, 3))
        theirs = tfd.TransformedDistribution(base, tfb.Invert(small_model.flow.as_bijector()))
        np.testing.assert_allclose(
            theirs.log_prob(x, bijector_kwargs={"condition": z}), small_model.likelihood(z).log_prob(x), rtol=1e-5
        )
        draw = theirs.sample(seed=[1, 2], bijector_kwargs={"condition": z})
        equal(draw, small_model.likelihood(z).sample(seed=[1, 2]))
