"""Bits per dimension that no way of batching changes, and pictures that show what they say."""

import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.models import SMALL, give_effect, random_images
from PIL import Image

from tfdecouple.errors import NotInitializedError
from tfdecouple.layers import ActNorm, InvertibleLinear
from tfdecouple.metrics import Evaluator
from tfdecouple.model import DecoupledModel
from tfdecouple.training.strategy import make_strategy
from tfdecouple.visualization import grids
from tfdecouple.visualization.grids import grid, interpolation_grid, reconstruction_grid, switch_grid
from tfdecouple.visualization.pictures import save_pictures

COUNT = 10


def batches(size, images=None, fill=0):
    """Batches of one size, the last filled up with images of weight 0."""
    images = random_images(COUNT, seed=5) if images is None else images
    missing = -len(images) % size
    filled = np.concatenate([images, np.full((missing, *images.shape[1:]), fill, np.uint8)])
    index = np.concatenate([np.arange(len(images)), np.zeros(missing)]).astype(np.int64)
    weight = np.concatenate([np.ones(len(images)), np.zeros(missing)]).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices({"image": filled, "index": index, "weight": weight}).batch(size)


def small_model():
    keras.utils.set_random_seed(3)
    model = DecoupledModel(SMALL)
    model.initialize(random_images(16))
    return give_effect(model)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def evaluator(model):
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

    def test_padding_is_not_counted(self, evaluator, measured):
        again = evaluator(batches(7, fill=255), seed=1)
        assert again == measured

    def test_parts_add_up_to_bits_per_dim(self, measured):
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

    def test_seed_decides_the_draws(self, evaluator, measured):
        assert evaluator(batches(7), seed=1) == measured
        assert evaluator(batches(7), seed=2).kl != measured.kl

    def test_reports_the_images_done(self, evaluator):
        done = []
        evaluator(batches(7), on_batch=done.append)
        assert done == [7, 10]

    def test_standard_error_is_that_of_the_mean_over_images(self, evaluator, measured):
        images = random_images(COUNT, seed=5)
        # An image's noise goes by its index, so each is evaluated in its place.
        single = []
        for number in range(COUNT):
            one = {"image": images[[number]], "index": np.int64([number]), "weight": np.ones(1, np.float32)}
            single.append(evaluator(tf.data.Dataset.from_tensor_slices(one).batch(1), seed=1).bits_per_dim)
        assert measured.bits_per_dim == pytest.approx(np.mean(single), rel=1e-6)
        assert measured.standard_error == pytest.approx(np.std(single, ddof=1) / math.sqrt(COUNT), rel=1e-5)

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


def factor_of(columns):
    """The whole factor that makes so many images of 8 pixels, and a gap of 2 each, about as wide as all grids."""
    return grids._WIDTH // (columns * 10)


def tile(picture, left, top, size, factor):
    """The image at a place of a picture, after a look whether each of its pixels is a square of one colour."""
    pixels = np.asarray(picture)[top : top + size * factor, left : left + size * factor]
    small = pixels[::factor, ::factor]
    np.testing.assert_array_equal(pixels, small.repeat(factor, 0).repeat(factor, 1))
    return small


class TestGrid:
    @pytest.mark.parametrize("group", [(0, 0), (0, 2), (1, 3)])
    def test_puts_every_image_at_its_place_enlarged_by_a_whole_factor(self, group):
        images = random_images(8).reshape(2, 4, 8, 8, 3)
        picture = grid(images, group=group)
        factor, gap = factor_of(4), 2
        pixels = np.asarray(picture).astype(int)
        covered = np.zeros(pixels.shape[:2], bool)
        for row in range(2):
            for column in range(4):
                groups = [
                    place // together if together else 0 for place, together in zip((row, column), group, strict=True)
                ]
                top = gap + row * (8 * factor + gap) + groups[0] * 3 * gap
                left = gap + column * (8 * factor + gap) + groups[1] * 3 * gap
                np.testing.assert_array_equal(tile(picture, left, top, 8, factor), images[row, column])
                covered[top : top + 8 * factor, left : left + 8 * factor] = True
        assert (pixels[~covered] == 255).all()

    def test_large_images_keep_their_size(self):
        images = random_images(2, size=400).reshape(1, 2, 400, 400, 3)
        picture = grid(images)
        np.testing.assert_array_equal(tile(picture, 2, 2, 400, 1), images[0, 0])
        np.testing.assert_array_equal(tile(picture, 404, 2, 400, 1), images[0, 1])

    def test_caption_stands_below_and_changes_nothing_above(self):
        images = random_images(4).reshape(2, 2, 8, 8, 3)
        plain, captioned = (
            grid(images),
            grid(images, "What these images show, in more words than a line can hold. " * 3),
        )
        assert captioned.width == plain.width
        assert captioned.height > plain.height + 30
        pixels = np.asarray(captioned)
        np.testing.assert_array_equal(pixels[: plain.height], np.asarray(plain))
        caption = pixels[plain.height :]
        assert (caption < 100).any()
        # No word runs out of the picture.
        assert (caption[:, -2:] == 255).all()


class LossyModel:
    """Stands in for a model: gives back all images but one, and switches by exchanging bright and dark."""

    def encode(self, images):
        return images, images

    def decode(self, z, v):
        back = np.array(v)
        back[3, 0, 0, 0] ^= 1
        return back

    def switch(self, a, b):
        return a // 2, b // 2


class TestPictures:
    def test_reconstructions_are_counted_and_shown_below_their_images(self):
        images = random_images(12)
        picture, exact = reconstruction_grid(LossyModel(), images)
        assert exact == 11
        factor = factor_of(10)
        side = 8 * factor + 2
        np.testing.assert_array_equal(tile(picture, 2, 2, 8, factor), images[0])
        np.testing.assert_array_equal(tile(picture, 2, 2 + side, 8, factor), images[0])
        lost = tile(picture, 2 + 3 * side, 2 + side, 8, factor)
        np.testing.assert_array_equal(np.argwhere(lost != images[3]), [[0, 0, 0]])

    def test_all_images_of_a_model_with_alpha_below_1_come_back(self, model):
        assert reconstruction_grid(model, random_images(12))[1] == 12

    def test_switch_has_the_images_left_and_the_switched_right(self):
        a, b = random_images(4, seed=1), random_images(4, seed=2)
        picture = switch_grid(LossyModel(), a, b, columns=2)
        factor = factor_of(4)
        side = 8 * factor + 2
        # Right of a is what has the v of a, ba; right of b what has the v of b, ab.
        for place, expected in {(0, 0): a[0], (0, 1): b[0] // 2, (1, 0): b[0], (1, 1): a[0] // 2}.items():
            shown = tile(picture, 2 + place[1] * side, 2 + place[0] * side, 8, factor)
            np.testing.assert_array_equal(shown, expected, err_msg=str(place))

    def test_interpolation_has_the_images_in_its_corners(self, model):
        a, b = random_images(2)
        picture = interpolation_grid(model, a, b)
        factor = factor_of(6)
        side = 8 * factor + 2
        # Beside the images stand the labels of the rows, and above them a line of labels of the columns.
        left, top = picture.width - 6 * side, 2 + grids._LINE
        np.testing.assert_array_equal(tile(picture, left, top, 8, factor), a)
        np.testing.assert_array_equal(tile(picture, left + 5 * side, top + 5 * side, 8, factor), b)

    @pytest.mark.parametrize(("count", "names"), [(1, set()), (3, {"switch"})])
    def test_few_images_are_enough(self, model, tmp_path, count, names):
        assert save_pictures(model, random_images(count), tmp_path, "a-") == count
        expected = {"reconstructions", "samples", "interpolation"} | names
        assert {path.name for path in tmp_path.iterdir()} == {f"a-{name}.png" for name in expected}
        for path in tmp_path.iterdir():
            with Image.open(path) as picture:
                picture.load()
