"""Patterns: what is drawn, which images give way, and which weights are the best."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import LEAST, SMALL, random_images
from helpers.trainers import BATCH, augmented

from tfdecouple import randomness
from tfdecouple.config import Config, TrainingConfig
from tfdecouple.training.schedule import draw_patterns, insert_patterns, pattern_fraction
from tfdecouple.training.state import TrainingState


@pytest.fixture(scope="module")
def many():
    return draw_patterns([2000, 8, 8, 3], randomness.make_seed(0)).numpy()


def _field(image):
    """The side of the fields of a board; 8 for a single colour, 0 for what is no board."""
    if (image == image[0, 0]).all():
        return 8
    for side in (1, 2, 4):
        rows, columns = np.indices(image.shape[:2]) // side
        if np.array_equal(image, np.where(((rows + columns) % 2)[..., None], image[0, side], image[0, 0])):
            return side
    return 0


class TestDrawn:
    def test_half_are_noise_and_half_boards_of_every_size(self, many):
        assert many.dtype == np.uint8
        sides = np.bincount([_field(image) for image in many], minlength=9)
        # Of a ninth of the boards the two colours are the same by chance. Within four standard deviations.
        for side, expected in {0: 1000, 1: 223, 2: 223, 4: 223, 8: 332}.items():
            assert abs(sides[side] - expected) < 4 * np.sqrt(expected), sides

    def test_half_have_values_of_0_and_255_alone_and_a_quarter_are_grey(self, many):
        noise = many[[_field(image) == 0 for image in many]]
        has_extremes = np.isin(noise, (0, 255)).all(axis=(1, 2, 3))
        is_grey = (noise == noise[..., :1]).all(axis=(1, 2, 3))
        assert abs(has_extremes.mean() - 0.5) < 0.07 and abs(is_grey.mean() - 0.25) < 0.06
        for some in (noise[has_extremes], noise[~has_extremes]):
            assert abs(some.mean() - 127.5) < 2
        assert set(np.unique(noise[~has_extremes])) == set(range(256))

    def test_they_repeat_with_their_seed_alone_and_are_of_any_shape(self, many):
        np.testing.assert_array_equal(draw_patterns(many.shape, randomness.make_seed(0)), many)
        assert (draw_patterns(many.shape, randomness.make_seed(1)).numpy() != many).any(axis=(1, 2, 3)).mean() > 0.9
        for shape in ((1, 1, 1), (1, 5, 2), (6, 10, 4)):
            found = draw_patterns([64, *shape], randomness.make_seed(3)).numpy()
            assert found.shape == (64, *shape) and found.min() == 0 and found.max() == 255

    def test_images_give_way_where_the_chance_is_below_the_share(self):
        images, others = random_images(4), random_images(4, seed=1)
        mixed = insert_patterns(images, tf.constant(0.25), tf.constant([0.0, 0.25, 0.2, 0.9]), others).numpy()
        np.testing.assert_array_equal(mixed, np.stack([others[0], images[1], others[2], images[3]]))


def test_share_is_none_until_they_begin():
    config = TrainingConfig(patterns=0.25, patterns_after=4)
    fractions = [float(pattern_fraction(config, tf.constant(update, tf.int64))) for update in (0, 3, 4, 9)]
    assert fractions == [0, 0, 0.25, 0.25]


@pytest.fixture(scope="module")
def state():
    return TrainingState(Config(model=SMALL))


def test_patterns_are_of_the_update_and_of_the_place_in_the_batch(state):
    images, step, options = tf.constant(random_images(BATCH)), 3, {"patterns": 0.5, "patterns_after": 2}
    state.updates.assign(1)
    np.testing.assert_array_equal(augmented(state, images, step, **options), images)
    state.updates.assign(2)
    mixed = augmented(state, images, step, **options)
    is_image = (mixed == images).numpy().all(axis=(1, 2, 3))
    assert 0 < is_image.sum() < BATCH
    seed = randomness.derive_seed(TrainingConfig().seed, "step", step, "patterns")
    np.testing.assert_array_equal(
        mixed, np.where(is_image[:, None, None, None], images, draw_patterns(images.shape, seed))
    )
    np.testing.assert_array_equal(augmented(state, images[4:], step, 1, micro_batches=2, **options), mixed[4:])


def test_weights_that_saw_no_patterns_are_no_rivals_of_those_that_did():
    state = TrainingState(Config(model=LEAST, training=TrainingConfig(patterns=0.1, patterns_after=20)))
    figures = [(10, 4.0), (20, 3.0), (30, np.nan), (40, 5.0), (50, 5.5), (60, 4.5)]
    assert [state.update_best(*figure) for figure in figures] == [True, True, False, True, False, True]
    assert int(state.best_step.numpy()) == 60
