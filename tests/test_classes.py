import dataclasses

import numpy as np
import pytest
import scipy.special
import tensorflow as tf
from helpers.models import assert_gradients_reach_weights, random_images
from helpers.refusals import message_of
from helpers.variants import OF_CLASSES, SMALLEST, equal, fresh, images_of, read_weights, variant

from tfdecouple.errors import DataError
from tfdecouple.model import DecoupledModel
from tfdecouple.model.codes import draw_labels
from tfdecouple.model.objective import evaluate_bound, map_noise_to_z

pytestmark = pytest.mark.usefixtures("eager")

LABELS = np.array([2, 0, 1])
SHARES = np.log(np.array([1, 2, 5]) / 8)
NONE = np.full(3, -1)


def noise(model, count=3, seed=3):
    rng, size = np.random.default_rng(seed), model.config.image_shape[0]
    return rng.standard_normal((count, model.config.latent_dim), "f4"), rng.random((count, size, size, 3), "f4")


class TestCodes:
    """Models with `model.prior=classes`."""

    def test_z_is_the_code_of_the_label_and_any_label_decodes_exactly(self):
        model, images = variant("classes"), images_of(variant("classes"))
        codes = model.code_net.compute_codes()
        assert codes.shape == (3, 4) and np.ptp(codes, 0).max() > 0.1
        equal(model(images, LABELS).z, codes.numpy()[LABELS])
        for label in range(3):
            equal(model.decode(*model.encode(images, label, verify=True)), images)

    def test_classification_by_class_codes_is_bayes_rule(self, traced):
        model, images = variant("classes"), images_of(variant("classes"))
        x = model.quantizer.place_at_centres(model.quantizer.find_bins(images))
        codes = model.code_net.compute_codes().numpy()
        joint = np.stack([model.likelihood(np.tile(code, (3, 1))).log_prob(x) for code in codes], 1)
        joint = joint.astype("f8") + SHARES
        expected = joint - scipy.special.logsumexp(joint, 1, keepdims=True)
        computed = model.classify(images)
        np.testing.assert_allclose(computed, expected, atol=2e-3)
        np.testing.assert_allclose(tf.reduce_logsumexp(computed, 1), 0, atol=1e-5)
        equal(computed, tf.function(model.classify)(images))

    def test_samples_of_mixed_labels_equal_the_samples_of_each_label(self):
        model = variant("classes")
        samples = [model.sample(4, seed=1, labels=label) for label in range(3)]
        assert not np.array_equal(samples[0], samples[1])
        mixed = model.sample(4, seed=1, labels=[2, 1, 0, 2])
        equal(mixed, np.stack([samples[label][number] for number, label in enumerate([2, 1, 0, 2])]))

    def test_labels_of_samples_follow_their_probabilities(self):
        model = variant("classes")
        drawn = draw_labels(model.config, 0, 4000, tf.constant([1, 2])).numpy()
        np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 4000, [1 / 8, 2 / 8, 5 / 8], atol=0.03)
        equal(drawn[1000:1500], draw_labels(model.config, 1000, 1500, tf.constant([1, 2])))

    def test_switch_and_interpolate_use_the_labels_of_both_images(self):
        model = variant("classes")
        a, b = images_of(model), images_of(model, seed=2)
        ab, ba = model.switch(a, b, (LABELS, LABELS[::-1]))
        z, v = model.encode(a, LABELS)
        equal(ab, model.decode(z, model.encode(b, LABELS[::-1]).v))
        equal(ba, model.decode(model.code_net.compute_codes().numpy()[LABELS[::-1]], v))
        between = model.interpolate(a, b, [0, 1], [0, 1], (LABELS, LABELS[::-1]))
        equal(between[:, 0, 0], a)
        equal(between[:, 1, 1], b)

    def test_encode_refuses_missing_and_unknown_labels_in_one_line(self):
        model = variant("classes")
        wrong = [(None, "label of each image"), ([0, 1, 3], "no label 3"), ([0, -1, 2], "no label (-1)")]
        for labels, words in [*wrong, ([0, 1], "(2,)"), ([0.0, 1.0, 2.0], "float32"), (2**40, "1099511627776")]:
            assert words in message_of(DataError, lambda labels=labels: model.encode(images_of(model), labels))


class TestPriorOfLabels:
    """Models with `model.prior=flow` and `model.classes`."""

    def test_new_prior_of_labels_equals_the_model_without_labels(self):
        plain = fresh(SMALLEST)
        model = DecoupledModel(OF_CLASSES["prior-classes"])
        model.initialize(random_images(8, 4))
        for name, value in read_weights(plain).items():
            model.named_variables()[name].assign(value)
        images, (z_noise, u) = images_of(model), noise(model)
        z = plain.posterior(images).mean()
        np.testing.assert_allclose(model.prior().log_prob(z), plain.prior().log_prob(z), rtol=1e-5)
        np.testing.assert_allclose(model.prior(LABELS).log_prob(z), plain.prior().log_prob(z), rtol=1e-5)
        choices = (LABELS, None, [2, -1, 1])
        known, unknown, both = (model.bound(images, noise=(z_noise, u), labels=labels) for labels in choices)
        bound = plain.bound(images, noise=(z_noise, u))
        np.testing.assert_allclose(unknown.bits_per_dim, bound.bits_per_dim, rtol=1e-5)
        np.testing.assert_allclose(known.kl, bound.kl - SHARES[LABELS], rtol=1e-4)
        expected = [known.kl[0], unknown.kl[1], known.kl[2]]
        np.testing.assert_allclose(both.kl, expected, rtol=1e-6)
        equal(model.encode(images).z, plain.encode(images).z)
        np.testing.assert_allclose(model.classify(images), np.tile(SHARES, (3, 1)), atol=1e-4)

    def test_prior_of_labels_is_a_mixture_and_classification_is_bayes_rule_for_z(self):
        model, images = variant("prior-classes"), images_of(variant("prior-classes"))
        z = model.posterior(images).mean()
        parts = np.stack([model.prior(np.full(3, label)).log_prob(z) for label in range(3)], 1)
        parts = parts.astype("f8") + SHARES
        mixture = scipy.special.logsumexp(parts, 1)
        np.testing.assert_allclose(model.prior().log_prob(z), mixture, rtol=1e-5)
        np.testing.assert_allclose(model.classify(images), parts - mixture[:, None], atol=1e-4)
        assert np.ptp(parts - SHARES, 1).max() > 0.05

    def test_bound_has_the_prior_of_a_known_label_and_the_mixture_otherwise(self):
        model, images = variant("prior-classes"), images_of(variant("prior-classes"))
        z_noise, u = noise(model)
        posterior = model.posterior(images)
        z = posterior.mean() + posterior.stddev() * z_noise
        for labels, log_prior in (
            (LABELS, model.prior(LABELS).log_prob(z) + SHARES[LABELS]),
            (None, model.prior().log_prob(z)),
            (NONE, model.prior().log_prob(z)),
        ):
            bound, latents = evaluate_bound(model, model.quantizer.find_bins(images), z_noise, u, labels=labels)
            np.testing.assert_allclose(bound.kl, posterior.log_prob(z) - log_prior, atol=1e-4)
            np.testing.assert_allclose(latents.log_prior, log_prior, atol=1e-4)

    @pytest.mark.parametrize("prior", ["flow", "normal"])
    def test_z_drawn_for_a_label_comes_from_its_prior(self, prior):
        model = fresh(dataclasses.replace(OF_CLASSES["prior-classes"], prior=prior))
        normal = noise(model)[0]
        z = map_noise_to_z(model, normal, tf.constant(LABELS, tf.int32))
        latents = model.prior_affine(z)[0].numpy()[np.arange(3), LABELS]
        back = latents if model.prior_flow is None else model.prior_flow.forward_and_log_det(latents)[0]
        np.testing.assert_allclose(back, normal, atol=1e-5)


@pytest.mark.parametrize(("name", "labels"), [("classes", LABELS), ("prior-classes", LABELS), ("prior-classes", None)])
def test_gradients_reach_every_weight_of_a_model_with_labels(name, labels):
    model, images = variant(name), images_of(variant(name))
    draws = noise(model)
    loss = lambda: tf.reduce_sum(model.bound(images, labels, noise=draws, training=True).bits_per_dim)  # noqa: E731
    assert_gradients_reach_weights(model, loss)
