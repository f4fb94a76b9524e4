import types

import numpy as np
import pytest

from export.formats.runtimes import Runtime
from export.verification.comparison import Answer, compare_files
from export.verification.vectors import choose_batch_sizes
from tfdecouple.registry import FORMATS

SIZES = choose_batch_sizes(8)
COUNT = sum(SIZES)
FLOATS = np.linspace(-2, 4, COUNT * 10, dtype=np.float32).reshape(COUNT, 10)


def floats(right=FLOATS, effect=1e-4):
    return Answer.from_model(right, [right + np.float32(effect)])


def bins(n_bins=256):
    """Values of pixels, none within 0.2 of the border of two bins."""
    rng = np.random.default_rng(0)
    return rng.integers(0, n_bins, (COUNT, 8, 8, 3)) + rng.uniform(0.2, 0.8, (COUNT, 8, 8, 3))


def pixels(values, effect=1e-3, n_bins=256):
    return Answer.from_model(values, [values + effect], n_bins)


def round_down(values, n_bins=256):
    return (np.floor(values) * (256 // n_bins)).astype(np.uint8)


class TestFloats:
    @pytest.mark.parametrize(("times", "passes"), [(0.9, True), (1.1, False)])
    def test_bound_is_a_multiple_of_the_effect_on_that_image(self, times, passes):
        effect = np.full((COUNT, 1), 1e-5, np.float32)
        effect[4] = 1e-3
        # The bound of an image with a small effect is that of the median image.
        effect[3] = 0
        answer = floats(effect=effect)
        assert answer.bound[3] == pytest.approx(answer.bound[2], rel=0.1) and answer.bound[3] < answer.bound[4] / 20
        found = FLOATS.copy()
        found[3, 7] += times * answer.bound[3]
        problem = answer.compare_file(found)[1]
        assert (problem is None) == passes
        if problem:
            assert problem.startswith("1 values of image 3 differ from the model, by up to ")
            assert f"allowed is {answer.bound[3]:.1e}" in problem

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_value_that_is_not_finite_is_a_problem(self, value):
        found = FLOATS.copy()
        found[-1, -1] = value
        assert f"image {COUNT - 1} differ from the model, by up to " in floats().compare_file(found)[1]


class TestPixels:
    @pytest.mark.parametrize("n_bins", [256, 32, 2])
    def test_one_wrong_subpixel_far_from_a_border_is_a_problem(self, n_bins):
        answer, found = pixels(bins(n_bins), n_bins=n_bins), round_down(bins(n_bins), n_bins)
        assert answer.compare_file(found) == ({"max": 0, "mean": 0, "unstable": 0, "differing": 0}, None)
        found[20, 7, 7, 2] ^= 256 // n_bins
        assert answer.compare_file(found)[1].startswith("1 values of image 20 differ from the model, by up to ")

    @pytest.mark.parametrize("n_bins", [256, 32])
    @pytest.mark.parametrize(("place", "sign"), [(0.0001, -1), (0.9999, 1)])
    def test_beside_a_border_the_neighbouring_bin_is_allowed_and_no_other_value(self, n_bins, place, sign):
        step, values = 256 // n_bins, bins(n_bins)
        values[4, 1, 2, 0] = 17 + place
        answer = pixels(values, n_bins=n_bins)
        for change in (sign * step, 2 * sign * step, sign * (step // 2 or 3)):
            found = round_down(values, n_bins)
            found[4, 1, 2, 0] = int(found[4, 1, 2, 0]) + change
            figures, problem = answer.compare_file(found)
            assert (problem is None) == (change == sign * step), change
            assert figures["max"] == abs(change)


class Made(Runtime):
    package, sorts_outputs = "numpy", False
    functions, vectors = {}, {}

    def call_endpoint(self, endpoint, inputs):
        for name, array in inputs.items():
            assert array.shape[1:] == self.vectors[f"in/{endpoint}/{name}"].shape[1:]
        return self.functions[endpoint](**inputs)

    def read_shapes(self, endpoint):
        return {}

    def read_weights(self):
        yield from ()


@pytest.fixture
def compare(monkeypatch, tmp_path):
    monkeypatch.setitem(FORMATS.entries, "made", lambda: types.SimpleNamespace(runtime=Made))

    def run(vectors, **functions):
        monkeypatch.setattr(Made, "functions", functions)
        monkeypatch.setattr(Made, "vectors", vectors)
        vectors = {"batches": np.array(SIZES), "weights/NHWC": np.array([]), "metadata": np.array("{}"), **vectors}
        return compare_files("made", tmp_path, vectors, {name: name for name in functions})

    return run


class TestRoundTrip:
    IMAGES = np.random.default_rng(0).integers(1, 255, (COUNT, 8, 8, 3), dtype=np.uint8)
    KINDS = {"real": IMAGES, "black": np.zeros((1, 8, 8, 3), np.uint8), "noise": IMAGES[:4]}

    @pytest.fixture
    def report(self, compare):
        """A function that returns the report of files that lose an image, of a model that does not keep another."""

        def run(unkept=None, lost=None):
            v, vectors = self.IMAGES.astype(np.float32), {}
            for name, images in self.KINDS.items():
                vectors |= {f"images/{name}": images, f"kept/{name}": np.arange(len(images)) != unkept}
            codes, decoded = Answer.from_model(v, [v]), Answer.from_model(v + 0.5, [v + 0.6], 256)
            vectors |= {"in/encode/images": self.IMAGES, "in/decode/v": v}
            vectors |= {f"out/encode/v/{field}": value for field, value in vars(codes).items()}
            vectors |= {f"out/decode/images/{field}": value for field, value in vars(decoded).items()}

            def decode(v):
                images = v.astype(np.uint8)
                if lost is not None and len(images) not in SIZES:
                    images[(images == self.IMAGES[lost]).all((1, 2, 3)), 0, 0, 0] ^= 1
                return {"images": images}

            return compare(vectors, encode=lambda images: {"v": images.astype(np.float32)}, decode=decode)

        return run

    def test_image_that_the_model_keeps_must_come_back_and_another_may_be_lost(self, report):
        assert report(lost=1).problems == [
            f"decode(encode): 1 of {COUNT} real images differ (number 1) which the model itself gives back",
            "decode(encode): 1 of 4 noise images differ (number 1) which the model itself gives back",
        ]
        found = report(unkept=1, lost=1)
        assert found.problems == [] and found.round_trip["noise"] == {"images": 4, "identical": 3, "model": 3}
