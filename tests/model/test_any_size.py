import fractions
import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import assert_all_close, jacobian_log_det, random_images
from helpers.refusals import message_of
from helpers.variants import VARIANTS, equal, images_of, quantize, variant

from tfdecouple.errors import DataError, UserError
from tfdecouple.model import Codes, any_size
from tfdecouple.model.any_size import shrink_images
from tfdecouple.networks.architecture import Architecture

pytestmark = pytest.mark.usefixtures("eager")

SIZES = [(11, 9), (1, 1), (2, 40)]


def pictures(model, height, width, count=2, seed=1):
    return quantize(random_images(count, (height, width, model.config.image_shape[-1]), seed), model.config.n_bits)


def average_areas(values, count):
    """Averages of equal parts of a list, in exact fractions, each rounded, halves upwards."""
    length = len(values)
    averages = []
    for part in range(count):
        total = fractions.Fraction(0)
        for number, value in enumerate(values):
            shared = min((part + 1) * length, (number + 1) * count) - max(part * length, number * count)
            total += fractions.Fraction(max(shared, 0) * int(value), length)
        averages.append(math.floor(total + fractions.Fraction(1, 2)))
    return averages


@pytest.mark.parametrize(("old", "new"), [((13, 7), (4, 4)), ((5, 12), (5, 3)), ((2, 1), (5, 4)), ((9, 9), (9, 9))])
def test_shrunk_pixels_are_exact_averages_of_areas(old, new):
    image = random_images(1, (*old, 3))[0]
    rows = np.stack([[average_areas(image[:, x, c], new[0]) for c in range(3)] for x in range(old[1])], 1)
    right = np.stack([[average_areas(rows[c, :, y], new[1]) for c in range(3)] for y in range(new[0])])
    equal(shrink_images(tf.constant(image[None]), *new)[0], right.transpose(0, 2, 1))


class TestCodes:
    @pytest.mark.parametrize("name", VARIANTS)
    def test_every_kind_of_model_recovers_images_of_its_own_size_and_of_others(self, name):
        model = variant(name)
        images = images_of(model, 8)
        equal(model.decode(*model.encode(images)), images)
        for size in SIZES if name == "coupling" else [] if name.startswith(("base", "colour")) else SIZES[:1]:
            images = pictures(model, *size)
            codes = model.encode(images, verify=name == "coupling")
            multiple = model.any_size.multiple
            assert isinstance(codes, Codes) and codes.size == size
            assert codes.v.shape[1:3] == [-(-side // multiple) * multiple for side in size]
            equal(model.decode(*codes, codes.size), images)

    def test_z_of_a_label_is_equal_at_every_size(self):
        model = variant("classes")
        images = pictures(model, 7, 10)
        codes = model.encode(images, [0, 2])
        equal(codes.z, model.code_net(tf.constant([0, 2])))
        equal(model.decode(*codes, codes.size), images)

    def test_z_is_of_the_shrunk_image_and_v_of_the_padded_one(self):
        model = variant("coupling")
        images = pictures(model, 11, 9)
        z, v = model.encode(images)
        equal(z, model.encode(shrink_images(tf.constant(images), 4, 4)).z)
        equal(z, model.posterior(images).mean())
        padded = np.pad(images, [(0, 0), (0, 1), (0, 1), (0, 0)], "edge").astype("f4")
        expected = model.flow.forward_and_log_det(model.quantizer.place_at_centres(padded), z)[0]
        np.testing.assert_allclose(v, expected, rtol=1e-5, atol=1e-5)

    def test_batch_divided_for_memory_gives_equal_codes_and_bounds(self, monkeypatch):
        model = variant("coupling")
        images = pictures(model, 12, 10, 5)
        together = model.encode(images), model.bound(images, seed=1)
        monkeypatch.setattr(any_size, "_PIXELS_AT_ONCE", 2 * 12 * 10)
        assert model.any_size.count_images_at_once(12, 10) == 2
        apart = model.encode(images, verify=True), model.bound(images, seed=1)
        assert_all_close(together, apart, rtol=1e-4, atol=1e-4)
        equal(model.decode(*apart[0], apart[0].size), images)


def test_traced_function_encodes_images_of_unknown_size_and_empty_batches(traced):
    model = variant("coupling")
    images = pictures(model, 7, 10)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)], autograph=False)
    def run(images):
        codes = model.encode(images)
        bits, z = model.bound(images, seed=1).bits_per_dim, model.posterior(images).mean()
        return model.decode(*codes, codes.size), bits, z

    reconstructed, bits, z = run(images)
    assert [output.shape for output in run(images[:0])] == [(0, 7, 10, 3), (0,), (0, 4)]
    equal(reconstructed, images)
    equal(z, model.encode(images).z)
    np.testing.assert_allclose(bits, model.bound(images, seed=1).bits_per_dim, rtol=1e-5)
    equal(run(images_of(model))[0], images_of(model))


def test_bits_per_dim_at_another_size_follow_from_the_jacobian():
    size, model = (7, 5), variant("coupling")
    images = pictures(model, *size, 1)
    rng = np.random.default_rng(0)
    z_noise, u = rng.standard_normal((1, 4)).astype("f4"), rng.random((1, 8, 6, 3), "f4")
    bound = model.bound(images, noise=(z_noise, u))
    posterior = model.posterior(shrink_images(tf.constant(images), 4, 4))
    z = posterior.mean() + posterior.stddev() * z_noise
    padded = np.pad(images, [(0, 0), (0, 1), (0, 1), (0, 0)], "edge")
    x = tf.constant(2 * (padded + u) / 256 - 1)
    v = model.flow.forward_and_log_det(x, z)[0].numpy().astype("f8")
    nats = 0.5 * np.sum(v**2 + math.log(2 * math.pi))
    nats -= jacobian_log_det(model.flow.forward_and_log_det, x, z)[0]
    nats += float((posterior.log_prob(z) - model.prior().log_prob(z))[0])
    # All bits of the padded image, shared out among the colour values of the image itself.
    bits = (nats - 144 * math.log(2 / 256)) / math.log(2) / math.prod((*size, 3))
    assert float(bound.bits_per_dim[0]) == pytest.approx(bits, rel=1e-5)


class TestRefusals:
    def test_model_of_fixed_size_refuses_other_sizes_and_names_a_weight(self):
        model = variant("base")
        images = pictures(model, 12, 10)
        for method in (model.encode, model.bound, model.posterior):
            assert "flow/whitening/last_direction" in message_of(DataError, lambda method=method: method(images))
        z = np.zeros((2, 4), np.float32)
        assert "whitening" in message_of(DataError, lambda: model.decode(z, np.zeros((2, 12, 10, 3))))

    def test_wrong_channels_or_axes_and_a_size_that_does_not_fit_v_are_refused(self):
        model = variant("coupling")
        for shape in ((2, 0, 5, 3), (2, 5, 5, 1), (5, 5, 3)):
            message = message_of(DataError, lambda shape=shape: model.encode(np.zeros(shape, np.uint8)))
            assert str(shape) in message and "another height and width" in message
        z, v = model.encode(pictures(model, 11, 9))
        assert "multiples of 2" in message_of(UserError, lambda: model.decode(z, v[:, :11]))
        for size, words in (((11, 11), "size is"), ((1, 9), "size is"), ((11.5, 9), "whole number")):
            assert words in message_of(UserError, lambda size=size: model.decode(z, v, size))

    def test_images_too_large_for_memory_are_refused_before_computing(self, monkeypatch):
        model = variant("coupling")
        needed = Architecture(model.config).count_inference_bytes(120, 90)
        monkeypatch.setattr(any_size, "read_free_memory", lambda: needed // 4)
        message = message_of(UserError, lambda: model.encode(pictures(model, 120, 90)))
        assert "90 x 120" in message and "45 x 60" in message
        # The memory of the model's own size is not limited by it.
        model.encode(images_of(model))
