"""What a file's scores may differ by: as much as float32 can move them, and no more."""

import numpy as np
import pytest
from helpers.models import random_images

from export.verification.reference import KerasReference
from export.verification.tolerance import FACTOR, PERTURBATION
from tfdecouple.model.outlier_scores import chi_moments

pytestmark = pytest.mark.usefixtures("eager")


def test_the_length_of_v_may_be_off_by_what_rounds_all_of_it_the_same_way(tiny_model):
    images = random_images(3, tiny_model.config.image_shape)
    rng = np.random.default_rng(0)
    reference = KerasReference(tiny_model, images, rng)
    z_noise = rng.standard_normal((3, tiny_model.config.latent_dim)).astype("float32")
    answers = reference.score(images, z_noise, rng.random(images.shape, "float32"))
    assert list(answers) == ["bits_per_dim", "prior_nats", "shell", "typicality"]
    mean, deviation = chi_moments(images[0].size)
    lengths = mean + deviation * answers["shell"].right
    # Every weight that v is multiplied by may be rounded up: then all of v is longer by about as much.
    off = 0.99 * FACTOR * PERTURBATION * lengths / deviation
    assert answers["shell"].judge(answers["shell"].right + off.astype("float32"))[1] is None
    assert "image 0 differs" in answers["shell"].judge(answers["shell"].right + np.float32([1e-2, 0, 0]))[1]


def test_z_is_moved_as_far_as_that_of_moved_images(tiny_model, monkeypatch):
    """Moved noise alone leaves a z of small variance where it is, though the rounding of its mean moves it."""
    images = random_images(3, tiny_model.config.image_shape)
    rng = np.random.default_rng(0)
    reference = KerasReference(tiny_model, images, rng)
    u_noise = rng.random(images.shape, "float32")
    z_noise = rng.standard_normal((3, tiny_model.config.latent_dim)).astype("float32")
    mean, _, v = reference._codes(images)
    certain = [mean, np.full_like(mean, -20), v]
    monkeypatch.setattr(reference, "_codes", lambda *_: certain)
    bounds = []
    for further in (0, 0.01):
        moved = [mean + np.float32(further), *certain[1:]]
        monkeypatch.setattr(reference, "_moved_codes", lambda *_, moved=moved: moved)
        bounds.append(reference.score(images, z_noise, u_noise)["prior_nats"].bound)
    assert (bounds[1] > 100 * bounds[0]).all()
