"""Bits per dimension of a real model, which no way of batching changes; tests of bounds hold the rest."""

import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.densities import counted_batches
from helpers.models import SMALL, give_effect, random_images

from tfdecouple.errors import NotInitializedError
from tfdecouple.layers import ActNorm, InvertibleLinear
from tfdecouple.metrics import Evaluator
from tfdecouple.model import DecoupledModel
from tfdecouple.training.strategy import make_strategy

pytestmark = pytest.mark.usefixtures("eager_file")

COUNT = 10


def batches(size, images=None):
    return counted_batches(random_images(COUNT, seed=5) if images is None else images, size)


def small_model():
    keras.utils.set_random_seed(3)
    model = DecoupledModel(SMALL)
    model.initialize(random_images(16))
    return give_effect(model)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def evaluator(model, eager_file):
    return Evaluator(model)


@pytest.fixture(scope="module")
def measured(evaluator):
    return evaluator(batches(7), seed=1)


def numbers(measured):
    values = measured.to_dict()
    return {name: values[name] for name in ("bits_per_dim", "standard_error", "reconstruction", "kl")}


class TestEvaluator:
    @pytest.mark.parametrize("size", [1, 64])
    def test_batch_size_changes_nothing(self, evaluator, measured, size):
        again = evaluator(batches(size), seed=1)
        assert again.images == measured.images == COUNT
        assert numbers(again) == pytest.approx(numbers(measured), rel=1e-6)

    def test_devices_change_nothing(self, measured):
        strategy = make_strategy(2)
        with strategy.scope():
            copy = small_model()
        again = Evaluator(copy, strategy)(batches(4), seed=1)
        assert again.images == COUNT
        assert numbers(again) == pytest.approx(numbers(measured), rel=1e-6)

    def test_terms_add_up_to_bits_per_dim(self, measured):
        nats = measured.reconstruction + measured.kl + measured.dequantization
        assert measured.bits_per_dim == pytest.approx(nats / (192 * math.log(2)) + math.log2(128), rel=1e-6)

    def test_samples_are_averaged(self, evaluator, model):
        # Draw number k of an image is the same whatever the number of draws: three draws are the mean of each.
        images = random_images(4, seed=6)
        one, two, three = (evaluator(batches(4, images), samples=k, seed=2) for k in (1, 2, 3))
        assert (one.samples, two.samples, three.samples) == (1, 2, 3)
        second, third = 2 * two.kl - one.kl, 3 * three.kl - 2 * two.kl
        assert len({round(one.kl, 3), round(second, 3), round(third, 3)}) == 3
        draws = [one.bits_per_dim, 2 * two.bits_per_dim - one.bits_per_dim]
        draws.append(3 * three.bits_per_dim - 2 * two.bits_per_dim)
        assert three.bits_per_dim == pytest.approx(np.mean(draws))
        assert max(draws) - min(draws) < 1

    def test_identity_flow_gives_the_bits_of_a_standard_normal(self):
        model = DecoupledModel(dataclasses.replace(SMALL, conditioning="none"))

        def become_identity(layer, x, condition):
            if isinstance(layer, ActNorm):
                layer.log_scale.assign(tf.zeros_like(layer.log_scale))
            elif isinstance(layer, InvertibleLinear):
                layer.kernel.assign(tf.eye(layer.kernel.shape[0]))
            return layer.forward_and_log_det(x, condition)[0]

        images = random_images(64, seed=7)
        x = (images.astype(np.float64) + 0.5) / 128 - 1
        model.flow.walk(tf.constant(x, tf.float32), None, become_identity)
        model.initialized.assign(True)
        measured = Evaluator(model)(batches(64, images))
        # E over u in [0, 1) of -log2 of the normal density times the width 2/256 of a pixel's bin.
        squares = np.mean(x**2) + (1 / 128) ** 2 / 12
        expected = (squares / 2 + math.log(2 * math.pi) / 2) / math.log(2) + math.log2(256 / 2)
        assert measured.bits_per_dim == pytest.approx(expected, abs=2e-4)
        assert measured.kl == 0

    def test_model_without_weights_is_refused(self):
        with pytest.raises(NotInitializedError):
            Evaluator(DecoupledModel(dataclasses.replace(SMALL, conditioning="none")))(batches(4))
