import hashlib

import numpy as np
import tensorflow as tf
from helpers.numbered import one_line_error
from PIL import Image

from tfdecouple.config import DataConfig
from tfdecouple.data import sample_images as photographs_module
from tfdecouple.data.batches import load_images
from tfdecouple.data.sources import open_source


class TestPhotographs:
    def test_crops_do_not_depend_on_their_count_or_a_seed(self):
        source, again = (open_source(DataConfig(photograph_crops=count), (32, 32, 3)) for count in (600, 100))
        tf.random.set_seed(3)
        for split, count in (("train", 100), ("validation", 512), ("test", 1000)):
            np.testing.assert_array_equal(load_images(source, split, count)[0], load_images(again, split, count)[0])

    def test_photographs_can_be_chosen_by_name_and_unknown_names_are_refused(self):
        source = open_source(DataConfig(photographs=("rocket", "coffee")), (32, 32, 3))
        images, labels = load_images(source, "test", 4)
        assert source.label_names == ("rocket", "coffee") and labels.tolist() == [0, 1, 0, 1]
        # A photograph's crops take the numbers that fall to it.
        alone = load_images(open_source(DataConfig(photographs=("rocket",)), (32, 32, 3)), "test", 4)[0]
        np.testing.assert_array_equal(images[::2], alone[::2])
        message = one_line_error(lambda: open_source(DataConfig(photographs=("cofee",)), (32, 32, 3)))
        assert "names 'cofee', and there is no such photograph; did you mean coffee?; there are astronaut," in message

    def test_boxes_of_crops_never_change(self):
        # Crops must be the same on every machine and with every version of NumPy.
        draws = np.random.default_rng(3).random((1000, 3))
        boxes = photographs_module.draw_crop_boxes((640, 427), "test", (32, 32), draws)
        assert hashlib.sha256(boxes.astype("<i8").tobytes()).hexdigest()[:16] == "f95893a383df9c23"

    def test_crops_of_a_split_contain_no_pixel_of_another_split(self):
        # A picture whose bands have one colour each: a filter that reached over the border would mix them.
        colours = {"train": (255, 0, 0), "validation": (0, 255, 0), "test": (0, 0, 255)}
        picture = Image.new("RGB", (300, 200))
        for split, colour in colours.items():
            picture.paste(colour, photographs_module.find_split_band(picture.size, split))
        for split, colour in colours.items():
            images, _ = photographs_module.cut_photograph_crops((picture,), split, 50, (16, 16, 3))
            assert (images == np.array(colour, np.uint8)).all()

    def test_crops_larger_than_a_photograph_are_refused(self):
        message = one_line_error(lambda: open_source(DataConfig(), (90, 90, 3)))
        assert "a side of 90 pixels" in message and "chelsea allows crops of 83" in message
        assert "have 3 channels, or 1" in one_line_error(lambda: open_source(DataConfig(), (16, 24, 4)))

    def test_crops_for_grey_models_are_grey(self):
        data = DataConfig(photographs=("coffee",), photograph_crops=8)
        grey, rgb = (load_images(open_source(data, (16, 24, channels)), "test", 8)[0] for channels in (1, 3))
        # Rounding before or after the conversion to grey changes a value by 2 at most.
        converted = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in rgb])
        assert np.abs(grey[..., 0].astype(int) - converted).max() <= 2 and grey.std() > 10
