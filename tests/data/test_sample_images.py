"""Tests of the embedded photographs."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf
from helpers.numbered import one_line_error
from PIL import Image

from tfdecouple.config import PHOTOGRAPHS, DataConfig
from tfdecouple.data import load_images, open_source
from tfdecouple.data import sample_images as photographs_module


class TestPhotographs:
    @pytest.fixture(scope="class")
    def source(self):
        return open_source(DataConfig(photograph_crops=600), (32, 32, 3))

    def test_sets(self, source):
        assert source.sizes == {"train": 600, "validation": 512, "test": 1000}
        assert source.label_names == ("astronaut", "chelsea", "china", "coffee", "flower", "rocket") == PHOTOGRAPHS
        images, labels = load_images(source, "train", 600)
        assert images.shape == (600, 32, 32, 3)
        np.testing.assert_array_equal(np.bincount(labels), [100] * 6)
        # In colour, and not flat.
        assert np.mean(np.ptp(images.astype(int), axis=-1)) > 10
        assert np.mean(images.std(axis=(1, 2))) > 10

    def test_sets_do_not_depend_on_anything(self, source):
        again = open_source(DataConfig(photograph_crops=100), (32, 32, 3))
        tf.random.set_seed(3)
        for split, count in (("train", 100), ("validation", 512), ("test", 1000)):
            np.testing.assert_array_equal(load_images(source, split, count)[0], load_images(again, split, count)[0])

    def test_all_that_are_taken_may_be_used_by_anybody(self):
        known = photographs_module.PHOTOGRAPHS
        assert {known[name].licence for name in PHOTOGRAPHS} == {"public domain", "CC0", "CC BY 2.0"}
        assert set(known) - set(PHOTOGRAPHS) == {"motorcycle_left"}

    def test_some_can_be_chosen_and_an_unknown_one_is_refused(self):
        source = open_source(DataConfig(photographs=("rocket", "coffee")), (32, 32, 3))
        images, labels = load_images(source, "test", 4)
        assert source.label_names == ("rocket", "coffee") and labels.tolist() == [0, 1, 0, 1]
        # A photograph's crops take the numbers that fall to it.
        alone = load_images(open_source(DataConfig(photographs=("rocket",)), (32, 32, 3)), "test", 4)[0]
        np.testing.assert_array_equal(images[::2], alone[::2])
        message = one_line_error(lambda: open_source(DataConfig(photographs=("cofee",)), (32, 32, 3)))
        assert "names 'cofee', and there is no such photograph; did you mean coffee?; there are astronaut," in message

    def test_boxes_are_pinned(self):
        # Crops must be the same on every machine and with every version of NumPy.
        draws = np.random.default_rng(3).random((1000, 3))
        boxes = photographs_module.draw_crop_boxes((640, 427), "test", (32, 32), draws)
        assert hashlib.sha256(boxes.astype("<i8").tobytes()).hexdigest()[:16] == "f95893a383df9c23"

    @pytest.mark.parametrize("size", [(451, 300), (512, 512), (300, 451)])
    def test_regions_share_no_pixel(self, size):
        owner = np.zeros((size[1], size[0]), int)
        for split in ("train", "validation", "test"):
            left, top, right, bottom = photographs_module.find_split_band(size, split)
            assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
            assert not owner[top:bottom, left:right].any()
            owner[top:bottom, left:right] = ("train", "validation", "test").index(split) + 1
        assert np.mean(owner == 1) > 0.5
        # Between two bands lies the margin.
        along = owner[0] if size[0] >= size[1] else owner[:, 0]
        borders = np.flatnonzero(np.diff(along[along.nonzero()]))
        assert len(borders) == 2
        assert (along == 0).sum() >= 2 * photographs_module.MARGIN

    @pytest.mark.parametrize("split", ["train", "validation", "test"])
    def test_boxes_stay_in_their_region(self, split):
        size = (451, 300)
        draws = np.random.default_rng(0).random((2000, 3))
        draws[0], draws[1] = 0.0, np.nextafter(1.0, 0.0)
        boxes = photographs_module.draw_crop_boxes(size, split, (32, 32), draws)
        left, top, right, bottom = photographs_module.find_split_band(size, split)
        assert (boxes[:, :2] >= (left, top)).all() and (boxes[:, 2:] <= (right, bottom)).all()
        sides = boxes[:, 2] - boxes[:, 0]
        np.testing.assert_array_equal(sides, boxes[:, 3] - boxes[:, 1])
        largest = photographs_module.find_largest_crop_side(size)
        assert sides.min() == 32 and sides.max() == largest
        # Log-uniform: half of the sides lie below the geometric mean.
        assert abs(np.mean(sides < np.sqrt(32 * largest)) - 0.5) < 0.05

    def test_crops_come_from_their_region_alone(self):
        # A picture whose bands have one colour each: a filter that reached over the border would mix them.
        colours = {"train": (255, 0, 0), "validation": (0, 255, 0), "test": (0, 0, 255)}
        picture = Image.new("RGB", (300, 200))
        for split, colour in colours.items():
            picture.paste(colour, photographs_module.find_split_band(picture.size, split))
        for split, colour in colours.items():
            images, _ = photographs_module.cut_photograph_crops((picture,), split, 50, (16, 16, 3))
            assert (images == np.array(colour, np.uint8)).all()

    def test_too_large(self):
        message = one_line_error(lambda: open_source(DataConfig(), (90, 90, 3)))
        assert "a side of 90 pixels" in message and "chelsea has room for crops of 83" in message

    def test_missing_file_is_named(self, monkeypatch):
        missing = photographs_module.Photograph("coffee", "scikit-image", "skimage/data/no_cat.png", "", "")
        monkeypatch.setitem(photographs_module.PHOTOGRAPHS, "coffee", missing)
        message = one_line_error(lambda: open_source(DataConfig(), (32, 32, 3)))
        assert "no_cat.png" in message and "scikit-image 0." in message
