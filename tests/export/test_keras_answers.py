import random

import numpy as np
import pytest
from helpers.models import SMALL, random_images
from helpers.variants import fresh

from export.endpoints import find_endpoint
from export.verification import vectors
from export.verification.comparison import FACTOR, PERTURBATION, Answer
from export.verification.vectors import KerasAnswers, draw_values, make_test_vectors
from tfdecouple.model.outlier_scores import compute_chi_moments

IMAGES = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), np.uint8)

pytestmark = pytest.mark.usefixtures("eager")


@pytest.fixture(scope="module")
def model():
    random.seed(0)
    return fresh(SMALL)


def test_kept_images_come_back_also_from_perturbed_codes(model, monkeypatch):
    decode = KerasAnswers.decode

    def shifted(self, z, v):
        bins = decode(self, z, v)
        # The first image is lost, and the second where its codes are perturbed.
        bins[1 if self._unperturbed else 0] += 1
        return bins

    monkeypatch.setattr(vectors, "list_endpoints", lambda config, any_size: ())
    monkeypatch.setattr(KerasAnswers, "decode", shifted)
    assert make_test_vectors(model, IMAGES)["kept/real"].tolist() == [False, False, True, True]


def answers_of(model, name, images):
    """Returns the model's answers of an endpoint to inputs and to perturbed inputs."""
    rng, offered = np.random.default_rng(0), find_endpoint(model.config, name)
    given = {a.name: images if a.dtype == "uint8" else draw_values(a, rng, len(images)) for a in offered.inputs}
    plain = KerasAnswers(model)
    return offered, *(offered.answer(each, given) for each in (plain, KerasAnswers(model, plain)))


@pytest.mark.parametrize("name", ["encode", "switch"])
def test_images_are_perturbed_before_they_are_encoded(name, model):
    effects = []
    for times in (1, 100):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vectors, "PERTURBATION", times * PERTURBATION)
            _, right, other = answers_of(model, name, IMAGES)
        effects.append(max(np.abs(right[name] - other[name]).max() for name in right))
    assert effects[1] > 20 * effects[0] > 0


def scores_of(model, images):
    offered, right, other = answers_of(model, "score", images)
    return {a.name: Answer.from_floats(right[a.name], other[a.name], a.scale) for a in offered.outputs}


def test_the_length_of_v_may_be_off_by_the_rounding_of_one_weight(tiny_model):
    images = random_images(3, tiny_model.config.image_shape)
    answers = scores_of(tiny_model, images)
    assert list(answers) == ["bits_per_dim", "prior_nats", "shell", "typicality"]
    mean, deviation = compute_chi_moments(images[0].size)
    lengths = mean + deviation * answers["shell"].values
    # Every weight that v is multiplied by may be rounded up: then all of v is longer by about as much.
    off = 0.99 * FACTOR * PERTURBATION * lengths / deviation
    assert answers["shell"].compare_file(answers["shell"].values + off.astype("float32"))[1] is None
    assert "image 0 differ" in answers["shell"].compare_file(answers["shell"].values + np.float32([1e-2, 0, 0]))[1]
