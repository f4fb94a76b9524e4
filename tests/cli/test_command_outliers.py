"""`evaluate --outliers`: that figures, scores of each image and picture belong together, and what it refuses."""

import json

import numpy as np
import pytest
from helpers.models import random_images
from helpers.refusals import refused
from PIL import Image

from tfdecouple.cli import main
from tfdecouple.config import DataConfig
from tfdecouple.data import open_source
from tfdecouple.metrics.outliers import MADE, SCORES, Scorer, compare_scores, make_images
from tfdecouple.runs.opened_run import load_model

pytestmark = pytest.mark.usefixtures("eager_file")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with two labels: 6 dark and 4 bright images for test."""
    folder = tmp_path_factory.mktemp("images")
    for split, counts in {"train": (3, 3), "validation": (2, 2), "test": (6, 4)}.items():
        for label, count in zip(("bright", "dark"), counts, strict=True):
            (folder / split / label).mkdir(parents=True)
            for number, image in enumerate(random_images(count, seed=count + len(label))):
                Image.fromarray(image).save(folder / split / label / f"{number}.png")
    return folder


def evaluate(run, out, *more):
    return main(["evaluate", *map(str, ["--run", run, "--out", out, *more])])


@pytest.fixture(scope="module")
def result(tiny_run, images, image_folder, tmp_path_factory):
    """The result for all kinds of sources, with a batch that the images do not fill."""
    out = tmp_path_factory.mktemp("result")
    kinds = ("noise", "constant", "permuted", f"folder:{image_folder}")
    data = ("--data", f"folder:{images}", "--batch-size", 8, "--samples", 2, "--seed", 3)
    assert evaluate(tiny_run, out, *data, "--outliers", *kinds) == 0
    return json.loads((out / "outliers-test.json").read_text()), out, kinds


class TestResult:
    def test_figures_are_of_the_scores_of_each_image(self, result):
        values, _, kinds = result
        assert list(values["outliers"]) == list(kinds) and values["scores"] == SCORES
        every = values["per_image"]
        known = {name: np.array(each) for name, each in every["test"].items()}
        for kind, found in values["outliers"].items():
            mine = {name: np.array(each) for name, each in every[kind].items()}
            assert found["images"] == len(mine["index"]) and found["known_images"] == 10
            for name, said in found["detection"].items():
                scores = (np.abs(each[name]) if name == "shell" else each[name] for each in (known, mine))
                right = compare_scores(*scores, seed=3)
                assert said == json.loads(json.dumps(right)), (kind, name)
        # As many as there are: of the other folder five.
        assert [found["images"] for found in values["outliers"].values()] == [10, 10, 10, 5]

    def test_scores_of_an_image_do_not_depend_on_its_batch(self, result, tiny_run, images):
        values, _, _ = result
        source = open_source(DataConfig(source=f"folder:{images}"), (8, 8, 3))
        batch = next(source.examples("test").batch(10).as_numpy_iterator())
        right = Scorer(load_model(tiny_run), 2, seed=3)(batch["image"], batch["index"])
        said = values["per_image"]["test"]
        order = np.argsort(said["index"])
        for name in SCORES:
            np.testing.assert_allclose(np.array(said[name])[order], right[name], rtol=1e-4, atol=1e-4, err_msg=name)

    def test_bits_per_dim_are_those_of_the_evaluation(self, result):
        values, out, _ = result
        whole = json.loads((out / "bits_per_dim-test.json").read_text())
        assert np.mean(values["per_image"]["test"]["bits_per_dim"]) == pytest.approx(whole["bits_per_dim"], rel=1e-5)

    def test_picture_and_the_count_of_looks(self, result):
        values, out, _ = result
        with Image.open(out / "outliers-test.png") as picture:
            assert picture.size[0] > 800 and len(picture.convert("RGB").getcolors(2**20)) > 10
        assert values["test_evaluations"] >= 1

    def test_validation_images_are_no_look(self, tiny_run, images, tmp_path, capsys):
        arguments = ("--data", f"folder:{images}", "--split", "validation", "--outliers", "noise")
        assert evaluate(tiny_run, tmp_path, *arguments) == 0
        assert not (tmp_path / "test_evaluations.log").exists()
        out = capsys.readouterr().out
        assert "noise (4 images), against 4 of validation" in out and "AUROC" in out


class TestMadeImages:
    @pytest.mark.parametrize("kind", MADE)
    def test_depend_on_their_numbers_and_not_on_their_batch(self, kind):
        images = random_images(50)
        made = make_images(kind, images, np.arange(50), 1)
        assert made.shape == images.shape and made.dtype == np.uint8 and len(np.unique(made, axis=0)) == 50
        np.testing.assert_array_equal(make_images(kind, images[2:], np.arange(2, 50), 1), made[2:])
        assert not np.array_equal(make_images(kind, images, np.arange(50), 2), made)

    def test_are_noise_one_colour_and_pixels_in_another_order(self):
        images = random_images(50)
        noise, flat, moved = (make_images(kind, images, np.arange(50), 1) for kind in MADE)
        assert noise.mean() == pytest.approx(127.5, abs=3) and np.ptp(flat, (1, 2)).max() == 0
        for before, after in zip(images, moved, strict=True):
            assert not np.array_equal(before, after)
            np.testing.assert_array_equal(*(np.sort(one.reshape(-1, 3), 0) for one in (before, after)))


class TestRefusals:
    def test_what_is_no_source(self, tiny_run, images, tmp_path, capsys):
        def of(*kinds):
            arguments = ("--data", f"folder:{images}", "--outliers", *kinds)
            return refused(capsys, lambda: evaluate(tiny_run, tmp_path, *arguments))

        assert "did you mean noise" in of("noisy")
        assert "there is no folder /no/such" in of("folder:/no/such")
