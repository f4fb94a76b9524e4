import numpy as np
import pytest
from helpers.evaluations import compute_mean_colours, compute_metric, write_onnx
from helpers.models import random_images
from helpers.numbered import make_memory_source
from helpers.refusals import message_of

from tfdecouple.errors import UserError
from tfdecouple.metrics import frechet

pytestmark = pytest.mark.usefixtures("eager_file")


def distance(mean_a, a, mean_b, b):
    return frechet.compute_frechet_distance(frechet.Moments(100, mean_a, a), frechet.Moments(100, mean_b, b))


class TestDistance:
    def test_distance_of_gaussians_has_its_closed_form(self):
        factor, zero, shift = np.random.default_rng(0).standard_normal((20, 40)), np.zeros(20), np.linspace(-1, 2, 20)
        covariance = factor @ factor.T / 20
        assert distance(shift, covariance, shift, covariance) == pytest.approx(0, abs=1e-12 * 20)
        assert distance(zero, covariance, shift, covariance) == pytest.approx(np.square(shift).sum(), rel=1e-12)
        # x and 3 x are 2 x apart.
        assert distance(zero, covariance, zero, 9 * covariance) == pytest.approx(4 * np.trace(covariance), rel=1e-12)
        a, b = np.linspace(0.1, 4, 15), np.linspace(3, 0, 15)
        result = distance(np.zeros(15), np.diag(a**2), np.ones(15), np.diag(b**2))
        assert result == pytest.approx(15 + np.square(a - b).sum(), rel=1e-12)

    def test_distance_is_exact_for_singular_covariances(self):
        # The covariances of 5 images of 60 features. In common directions the distance is known.
        directions = np.linalg.qr(np.random.default_rng(0).standard_normal((60, 5)))[0]
        a, b = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 2, 1, 0, 7])
        first, second = ((directions * values**2) @ directions.T for values in (a, b))
        zero = np.zeros(60)
        assert distance(zero, first, zero, second) == pytest.approx(np.square(a - b).sum(), rel=1e-10)
        assert distance(zero, first, zero, first) == pytest.approx(0, abs=1e-10)
        assert distance(np.zeros(3), np.zeros((3, 3)), np.ones(3), np.zeros((3, 3))) == 3

    def test_moments_of_features_are_in_double_precision(self):
        # Far from 0, as features can be: differences of large sums would lose all digits.
        vectors = (1e8 + np.random.default_rng(0).standard_normal((101, 6)) * [1, 2, 3, 4, 5, 60]).astype(np.float32)
        moments = frechet.compute_feature_moments(lambda images: images, np.split(vectors, [1, 50]))
        exact = vectors.astype(np.float64)
        assert moments.images == 101
        np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-15)
        np.testing.assert_allclose(moments.covariance, np.cov(exact.T), rtol=1e-6, atol=1e-6)


class TestExtractor:
    def test_extractor_gives_features_of_uint8_images(self, tmp_path):
        opened = frechet.open_feature_extractor(write_onnx(tmp_path / "a.onnx"), (8, 8, 3))
        for images in (random_images(5), random_images(3, seed=1)):
            np.testing.assert_allclose(opened(images), compute_mean_colours(images), rtol=1e-6)

    @pytest.mark.parametrize(
        ("write", "parts"),
        [
            (lambda p: p / "missing.onnx", ("there is no extractor file", "missing.onnx")),
            (lambda p: p, ("there is no extractor file",)),
            (lambda p: __file__, ("cannot be opened as ONNX",)),
            (lambda p: write_onnx(p / "a.onnx", dtype="float"), ("expected: (tensor(float))", "uint8")),
            (lambda p: write_onnx(p / "a.onnx", shape="n, 299, 299, 3"), ("(2, 8, 8, 3)", "299", "of these images")),
            (lambda p: write_onnx(p / "a.onnx", shape="1, 8, 8, 3"), ("(2, 8, 8, 3)", "of any n")),
            (lambda p: write_onnx(p / "a.onnx", keep_dims=1), ("features of shape (2, 1, 1, 3)",)),
            (lambda p: write_onnx(p / "a.onnx", outputs=("a", "b")), ("one output",)),
            (lambda p: write_onnx(p / "a.onnx", divide_by=0.0), ("must be finite",)),
        ],
    )
    def test_unsuitable_extractor_is_refused_in_one_line(self, write, parts, tmp_path):
        path = write(tmp_path)
        message = message_of(UserError, lambda: frechet.open_feature_extractor(path, (8, 8, 3)))
        assert all(part in message for part in parts), message


@pytest.mark.parametrize("split", ["train", "train+validation"])
def test_frechet_compares_with_the_chosen_split(tiny_model, tmp_path, split):
    parts = {name: random_images(20 * n, seed=n) // n for n, name in enumerate(("train", "validation", "test"), 1)}
    source, extractor = make_memory_source(**{name: (images,) for name, images in parts.items()}), tmp_path / "a.onnx"
    options = {"frechet": write_onnx(extractor), "frechet_images": 60, "frechet_split": split}
    values = compute_metric(frechet.FrechetDistance, tiny_model, source, **options).values
    images = np.concatenate([parts[name] for name in split.split("+")])
    both = [compute_mean_colours(features) for features in (images, parts["test"])]
    moments = [frechet.Moments(len(rows), rows.mean(0), np.cov(rows, rowvar=False)) for rows in both]
    assert values["images"] == len(images) and values["floor_split"] == "test"
    assert values["floor"] == pytest.approx(frechet.compute_frechet_distance(*moments), rel=1e-3)


def test_sample_depends_on_its_number_and_the_seed_alone(tiny_model):
    def draw(count, seed):
        return np.concatenate(list(frechet.draw_model_samples(tiny_model, count, 0.7, seed)))

    samples = draw(70, 0)
    assert samples.shape == (70, 8, 8, 3) and len(np.unique(samples.reshape(70, -1), axis=0)) == 70
    np.testing.assert_array_equal(draw(66, 0), samples[:66])
    assert (draw(4, 1) != samples[:4]).any()
