import numpy as np
import pytest
import tensorflow as tf
from helpers.models import LEAST, SMALL, random_images
from helpers.trainers import BATCH, augment_images

from tfdecouple import randomness
from tfdecouple.config import Config, TrainingConfig
from tfdecouple.model import step_effects
from tfdecouple.model.step_effects import compute_kl_weight, compute_noise_deviation, draw_pattern_images
from tfdecouple.training.step import TrainingState, compute_learning_rate


@pytest.fixture(scope="module")
def state():
    return TrainingState(Config(model=SMALL))


@pytest.fixture(scope="module")
def many():
    return draw_pattern_images([2000, 8, 8, 3], randomness.make_seed(0)).numpy()


def _field(image):
    """The side of the fields of a board; 8 for a single colour, 0 for what is no board."""
    if (image == image[0, 0]).all():
        return 8
    for side in (1, 2, 4):
        rows, columns = np.indices(image.shape[:2]) // side
        if np.array_equal(image, np.where(((rows + columns) % 2)[..., None], image[0, side], image[0, 0])):
            return side
    return 0


class TestPatterns:
    def test_a_quarter_of_the_patterns_is_noise_and_half_of_the_others_are_boards_of_single_pixels(self, many):
        assert many.dtype == np.uint8
        sides = np.bincount([_field(image) for image in many], minlength=9)
        # Of a ninth of the boards the two colours are the same by chance. Within four standard deviations.
        for side, expected in {0: 500, 1: 667, 2: 276, 4: 212, 8: 345}.items():
            assert abs(sides[side] - expected) < 4 * np.sqrt(expected), sides

    def test_patterns_depend_on_the_seed_alone_and_have_any_shape(self, many):
        np.testing.assert_array_equal(draw_pattern_images(many.shape, randomness.make_seed(0)), many)
        other = draw_pattern_images(many.shape, randomness.make_seed(1)).numpy()
        assert (other != many).any(axis=(1, 2, 3)).mean() > 0.9
        for shape in ((1, 1, 1), (1, 5, 2), (6, 10, 4)):
            patterns = draw_pattern_images([64, *shape], randomness.make_seed(3)).numpy()
            assert patterns.shape == (64, *shape) and patterns.min() == 0 and patterns.max() == 255


class TestContrast:
    def test_crops_are_boxes_of_their_image_with_changed_colours(self):
        # Red rises by columns, green by rows, and blue is the number of the image.
        ramp, count = np.linspace(-1, 1, 8, dtype="float32"), 300
        number = np.linspace(0.5, 1, count, dtype="float32")[:, None, None]
        images = np.stack(np.broadcast_arrays(ramp[None, None], ramp[None, :, None], number), -1)
        crops = step_effects.draw_crops(tf.constant(images), randomness.make_seed(0), slice(None), count).numpy()
        assert crops.shape == (2 * count, 8, 8, 3)
        red, green, blue = np.moveaxis(crops, -1, 0)
        slopes = np.stack([np.diff(red, axis=2), np.diff(green, axis=1).swapaxes(1, 2)]) * 3.5
        # Both are linear: a slope is the side of the box times the gain of the colour.
        assert np.ptp(slopes, axis=(2, 3)).max() < 1e-4 and np.ptp(red, axis=1).max() < 1e-5
        sides = slopes[..., 0, 0]
        assert 0.7 * 0.4**0.5 - 1e-4 < np.abs(sides).min() < 0.5 and 1.2 < np.abs(sides).max() < 1.3 + 1e-4
        assert 0.4 < (sides[0] < 0).mean() < 0.6 and (sides[1] > 0).all()
        assert np.ptp(blue, axis=(1, 2)).max() < 1e-5
        (gain, shift), blues = np.polyfit(np.tile(number.ravel(), 2), blue[:, 0, 0], 1), blue[:, 0, 0].reshape(2, -1)
        assert 0.8 < gain < 1.2 and abs(shift) < 0.2 and np.abs(blues[0] - blues[1]).max() > 0.3

    def test_crops_depend_on_index_in_the_batch_alone(self):
        images, seed = tf.random.stateless_uniform([BATCH, 8, 6, 1], [1, 2]), randomness.make_seed(3)
        whole = np.split(step_effects.draw_crops(images, seed, slice(None), BATCH), 2)
        part = np.split(step_effects.draw_crops(images[4:], seed, slice(4, BATCH), BATCH), 2)
        np.testing.assert_allclose(part, [crops[4:] for crops in whole], atol=1e-6)

    def test_contrast_is_the_log_probability_of_the_other_crop(self):
        z = np.random.default_rng(0).normal(size=(6, 8)).astype("float32")
        codes = z[:, 4:] / np.linalg.norm(z[:, 4:], axis=1, keepdims=True)
        weights = np.exp(codes @ codes.T / 0.2)
        np.fill_diagonal(weights, 0)
        expected = [-np.log(weights[i, (i + 3) % 6] / weights[i].sum()) for i in range(6)]
        np.testing.assert_allclose(step_effects.compute_contrast(z), np.reshape(expected, [2, 3]).mean(0), rtol=1e-4)


class TestSchedule:
    @pytest.mark.parametrize("warmup", [0, 1, 50])
    def test_learning_rate_rises_linearly_then_decays_exponentially(self, warmup):
        config = TrainingConfig(learning_rate=1e-3, warmup_steps=warmup, decay_rate=0.999997)
        for update in (0, 1, 49, 50, 51, 10**6):
            rising = np.float64(1e-7) + (np.float64(1e-3) - 1e-7) * update / max(warmup, 1)
            falling = np.float64(1e-3) * np.float64(0.999997) ** (update - warmup)
            rate = compute_learning_rate(config, tf.constant(update, tf.int64))
            assert rate.dtype == tf.float32
            np.testing.assert_allclose(rate, rising if update < warmup else falling, rtol=1e-6)

    @pytest.mark.parametrize(
        ("compute", "options", "expected"),
        [
            (compute_kl_weight, {"kl_weight": 0.4, "kl_warmup_steps": 0}, [0.4, 0.4, 0.4, 0.4]),
            (compute_kl_weight, {"kl_weight": 0.4, "kl_warmup_steps": 4}, [0, 0.2, 0.4, 0.4]),
            (compute_noise_deviation, {"noise": 32, "noise_steps": 4}, [32, 16, 0, 0]),
            (compute_noise_deviation, {"noise": 32, "noise_steps": 8}, [32, 16 + 16 * np.sqrt(0.5), 16, 0]),
        ],
    )
    def test_kl_weight_rises_linearly_and_image_noise_falls_along_a_cosine(self, compute, options, expected):
        values = [compute(TrainingConfig(**options), tf.constant(update, tf.int64)) for update in (0, 2, 4, 100)]
        np.testing.assert_allclose(values, expected, rtol=1e-6)

    @pytest.mark.usefixtures("eager")
    def test_image_noise_depends_on_update_and_index_in_the_batch(self, state):
        images, step = tf.constant(random_images(BATCH)), 3

        def seen(images, **options):
            return augment_images(state, images, step, noise=32, noise_steps=4, **options).numpy()

        noisy = seen(images)
        seed = randomness.derive_seed(TrainingConfig().seed, "step", step, "images")
        noise = tf.random.stateless_normal(images.shape, seed)
        np.testing.assert_array_equal(noisy, step_effects.add_image_noise(images, 32.0, noise))
        np.testing.assert_array_equal(seen(images[4:], number=1, micro_batches=2), noisy[4:])
        state.updates.assign(2)
        assert 0 < np.abs(seen(images).astype(int) - images).mean() < np.abs(noisy.astype(int) - images).mean()
        state.updates.assign(4)
        np.testing.assert_array_equal(seen(images), images)

    def test_patterns_depend_on_update_and_index_in_the_batch(self, state):
        images, step, options = tf.constant(random_images(BATCH)), 3, {"patterns": 0.5, "patterns_after": 2}
        state.updates.assign(1)
        np.testing.assert_array_equal(augment_images(state, images, step, **options), images)
        state.updates.assign(2)
        mixed = augment_images(state, images, step, **options)
        is_image = (mixed == images).numpy().all(axis=(1, 2, 3))
        assert 0 < is_image.sum() < BATCH
        seed = randomness.derive_seed(TrainingConfig().seed, "step", step, "patterns")
        patterns = draw_pattern_images(images.shape, seed)
        np.testing.assert_array_equal(mixed, np.where(is_image[:, None, None, None], images, patterns))
        np.testing.assert_array_equal(augment_images(state, images[4:], step, 1, micro_batches=2, **options), mixed[4:])

    def test_best_step_is_chosen_among_steps_trained_on_patterns(self):
        state = TrainingState(Config(model=LEAST, training=TrainingConfig(patterns=0.1, patterns_after=20)))
        figures = [(10, 4.0), (20, 3.0), (30, np.nan), (40, 5.0), (50, 5.5), (60, 4.5)]
        assert [state.update_best_evaluation(*figure) for figure in figures] == [True, True, False, True, False, True]
        assert int(state.best_step.numpy()) == 60
