import math
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.evaluations import compute_metric
from helpers.models import random_images
from helpers.numbered import make_memory_source
from helpers.refusals import message_of

from tfdecouple.errors import DataError
from tfdecouple.metrics import classification
from tfdecouple.metrics.metric import Estimate

pytestmark = pytest.mark.usefixtures("eager")


def coloured_images(count, seed=0):
    """Red, green and blue images with noise, and their labels; sorted by label as a folder's are."""
    rng = np.random.default_rng(seed)
    labels = np.sort(np.arange(count) % 3).astype(np.int32)
    levels = 60 + 120 * np.eye(3, dtype=int)[labels][:, None, None] + rng.integers(-30, 30, (count, 8, 8, 3))
    return levels.astype(np.uint8), labels


def probe_result(model, source, train=120, test=60, **options):
    return compute_metric(classification.LinearProbe, model, source, probe_images=train, images=test, **options)


@pytest.fixture(scope="module")
def source():
    return make_memory_source(train=coloured_images(120), test=coloured_images(60, seed=1))


@pytest.fixture(scope="module")
def result(tiny_model, source):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classification, "STRENGTHS", (1e-4, 1e-2))
        return probe_result(tiny_model, source)


@pytest.fixture
def fitted(monkeypatch):
    """The features that classifiers would be fitted to; the fits, which take the time, are left out."""
    seen, first_class = [], SimpleNamespace(predict=lambda features: np.zeros(len(features), np.int32))

    def fit(kind, features, *_):
        seen.append(features.copy())
        return first_class, {"converged": True}

    monkeypatch.setattr(classification, "fit_classifier", fit)
    return seen


@pytest.mark.parametrize("kind", classification.CLASSIFIERS)
def test_classifier_has_the_best_c_on_the_last_fifth_and_is_fitted_to_all_images(kind, monkeypatch):
    # Many noisy features: a weak classifier is best, and C matters.
    monkeypatch.setattr(classification, "STRENGTHS", classification.STRENGTHS[:5])
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    features = rng.standard_normal((200, 300)).astype(np.float32)
    features[:, :10] += 0.6 * (2 * labels[:, None] - 1)
    fitted, choice = classification.fit_classifier(kind, features, labels)
    for strength, accuracy in choice["tried"]:
        expected = classification.make_classifier(kind).set_params(C=strength).fit(features[:160], labels[:160])
        assert accuracy == pytest.approx(expected.score(features[160:], labels[160:]), abs=0.026)
    shares = [accuracy for _, accuracy in choice["tried"]]
    assert choice["held_out_accuracy"] == max(shares) > min(shares)
    assert choice["C"] == choice["tried"][shares.index(max(shares))][0]
    expected = classification.make_classifier(kind).set_params(C=choice["C"]).fit(features, labels)
    np.testing.assert_array_equal(fitted.coef_, expected.coef_)
    monkeypatch.setattr(classification, "MAX_ITERATIONS", 1)
    assert not classification.fit_classifier(kind, features, labels)[1]["converged"]


def test_pca_of_few_images_has_no_component_of_rounding_errors():
    for features in (30, 5000):
        values = np.random.default_rng(0).standard_normal((20, features)).astype(np.float32)
        reduced, same = classification.reduce_features(values, values.copy(), 64, seed=0)
        assert reduced.shape == (20, 19) and reduced.dtype == np.float32
        np.testing.assert_array_equal(reduced, same)
        # Components of one set are not correlated; a component of rounding errors would be a mixture of the others.
        np.testing.assert_allclose(reduced.T @ reduced / 20, np.eye(19), atol=1e-3)


class TestLinearProbe:
    def test_probe_classifies_colours_by_pixels_and_prints_every_accuracy(self, result):
        values = result.values
        of_pixels, of_components = (row["classifiers"] for row in values["results"][:2])
        assert of_pixels["linear SVM"]["accuracy"] == of_pixels["logistic regression"]["accuracy"] == 1
        assert of_components["linear SVM"]["accuracy"] == 1
        dimensions = {row["features"]: row["dimensions"] for row in values["results"]}
        assert dimensions == {"pixels": 192, "pixels, PCA": 4, "z": 4, "v": 192, "v, PCA": 4}
        numbers = {name: values[name] for name in ("train_images", "test_images", "held_out_images", "classes", "seed")}
        assert numbers == {"train_images": 120, "test_images": 60, "held_out_images": 24, "classes": 3, "seed": 0}
        assert values["chance"] == pytest.approx(1 / 3)
        for row in values["results"]:
            line = next(line for line in result.lines if line.startswith(f"{row['features']} "))
            for classifier in row["classifiers"].values():
                share = classifier["accuracy"]
                assert f"{Estimate(share, classifier['standard_error']).to_percent(2)}" in line
                assert classifier["standard_error"] == pytest.approx(math.sqrt(share * (1 - share) / 59))

    def test_probe_classifies_the_codes_of_encode(self, tiny_model, source, fitted, monkeypatch):
        # Before they are standardised, the features are the codes of `encode`, whatever the batches.
        seen, standardize = [], classification.standardize_features

        def record(*both):
            seen.append([array.copy() for array in both])
            return standardize(*both)

        monkeypatch.setattr(classification, "standardize_features", record)
        probe_result(tiny_model, source, 30, 10, batch_size=20)
        pixels, _, z, v, _ = seen
        for x, codes_z, codes_v in zip(pixels, z, v, strict=True):
            codes = tiny_model.encode(x)
            np.testing.assert_allclose(codes_z, codes.z, atol=1e-5)
            np.testing.assert_allclose(codes_v, codes.v, atol=1e-4)

    def test_probe_is_not_fitted_to_test_images(self, tiny_model, fitted):
        for test in (coloured_images(20, 1), (np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 3)):
            probe_result(tiny_model, make_memory_source(train=coloured_images(40), test=test), 40, 20)
        assert len(fitted) == 2 * 10
        for first, second in zip(fitted[:10], fitted[10:], strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("train", "test", "parts"),
    [
        ([-1] * 20, [0] * 9, ("train images without a label", "sub-folders")),
        ([0, 1] * 10, [-1] * 9, ("test images without a label",)),
        ([1] * 20, [0] * 9, ("the 16", "one class", "two or more")),
        ([0, 1], [0] * 9, ("2", "at least 10")),
    ],
)
def test_images_that_allow_no_classifier_are_refused_in_one_line(tiny_model, train, test, parts):
    source = make_memory_source(train=(random_images(len(train)), train), test=(random_images(9), test))
    message = message_of(DataError, lambda: probe_result(tiny_model, source, len(train)))
    assert all(part in message for part in parts), message
