"""Linear classification of codes: exact classifiers, no influence of test images, and results that add up."""

import dataclasses
import json
import math

import numpy as np
import pytest
from helpers.evaluations import compute_metric
from helpers.models import SMALL, random_images
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tfdecouple.data.splits import MemorySplit, Source
from tfdecouple.errors import DataError, NotInitializedError
from tfdecouple.metrics import linear_classifier, probe
from tfdecouple.metrics.drawn_images import draw_indices, read_batches
from tfdecouple.metrics.linear_classifier import (
    KINDS,
    STRENGTHS,
    Fitted,
    count_held_out,
    fit_classifier,
    fit_pca,
    standardize_features,
)
from tfdecouple.metrics.probe import LinearProbe
from tfdecouple.model import DecoupledModel

# The tiny models' work is too small for graphs to pay.
pytestmark = pytest.mark.usefixtures("eager")


def blobs(count=300, width=6, classes=3, spread=1.0, seed=0):
    """Features around one centre per class, float32, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = np.random.default_rng(99).standard_normal((classes, width)) * 2
    return (centres[labels] + spread * rng.standard_normal((count, width))).astype(np.float32), labels


def coloured_images(count, seed=0):
    """Red, green and blue images with noise, and their labels; sorted by label as a folder's are."""
    rng = np.random.default_rng(seed)
    labels = np.sort(np.arange(count) % 3).astype(np.int32)
    levels = 60 + 120 * np.eye(3, dtype=int)[labels][:, None, None] + rng.integers(-30, 30, (count, 8, 8, 3))
    return levels.astype(np.uint8), labels


def make_source(train, test):
    """A source of 8 x 8 images; train and test are pairs of images and labels."""

    def split(images, labels):
        return MemorySplit(len(images), "all", lambda: (images, np.asarray(labels, np.int32)))

    return Source(
        name="colours",
        title="coloured images",
        label_names=("red", "green", "blue"),
        image_shape=(8, 8, 3),
        splits={"train": split(*train), "test": split(*test)},
    )


def probe_result(model, source, train=120, test=60, **options):
    return compute_metric(LinearProbe, model, source, probe_images=train, images=test, **options)


def accuracies(result):
    return {
        (row["features"], kind): found["accuracy"]
        for row in result.values["results"]
        for kind, found in row["classifiers"].items()
    }


@pytest.fixture(scope="module")
def source():
    return make_source(coloured_images(120), coloured_images(60, seed=1))


@pytest.fixture(scope="module")
def result(tiny_model, source):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_classifier, "STRENGTHS", (1e-4, 1e-2))
        return probe_result(tiny_model, source)


@pytest.fixture
def two_strengths(monkeypatch):
    """Saves time where the choice of C is not tested."""
    monkeypatch.setattr(linear_classifier, "STRENGTHS", (1e-4, 1e-2))


class FirstClass:
    """A classifier that predicts the first class."""

    def predict(self, features):
        return np.zeros(len(features), np.int32)


@pytest.fixture
def no_fits(monkeypatch):
    """Saves the time of the classifiers where only their features matter."""
    monkeypatch.setattr(probe, "fit_classifier", lambda *_: Fitted(FirstClass(), 1.0, 0.5, ((1.0, 0.5),), True))


class TestFitClassifier:
    @pytest.mark.parametrize("kind", KINDS)
    def test_separable_features_are_told_apart_and_shuffled_labels_are_guessed(self, kind):
        features, labels = blobs(spread=0.1)
        fitted = fit_classifier(kind, features[:200], labels[:200])
        assert fitted.held_out_accuracy == 1 and fitted.converged
        assert np.mean(fitted.classifier.predict(features[200:]) == labels[200:]) == 1
        features, labels = blobs(2000, spread=0.1)
        labels = np.random.default_rng(5).permutation(labels)
        fitted = fit_classifier(kind, features[:1000], labels[:1000])
        accuracy = np.mean(fitted.classifier.predict(features[1000:]) == labels[1000:])
        assert abs(accuracy - 1 / 3) < 4 * math.sqrt(2 / 9 / 1000)

    def test_c_is_the_best_on_the_last_fifth(self):
        # Many noisy features: a weak classifier is best, and C matters.
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 2, 200)
        features = rng.standard_normal((200, 300)).astype(np.float32)
        features[:, :10] += 0.6 * (2 * labels[:, None] - 1)
        fitted = fit_classifier("logistic regression", features, labels)
        assert count_held_out(200) == 40
        expected = {
            strength: LogisticRegression(C=strength, max_iter=1000)
            .fit(features[:160], labels[:160])
            .score(features[160:], labels[160:])
            for strength, _ in fitted.tried
        }
        assert dict(fitted.tried) == pytest.approx(expected, abs=0.026)
        best = max(accuracy for _, accuracy in fitted.tried)
        assert fitted.held_out_accuracy == best > min(accuracy for _, accuracy in fitted.tried)
        assert fitted.strength == next(strength for strength, accuracy in fitted.tried if accuracy == best)

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_last_fit_is_on_all_images(self, kind, monkeypatch):
        features, labels = blobs(100, spread=2.0)
        fitted = fit_classifier(kind, features, labels)
        expected = KINDS[kind]()
        expected.C = fitted.strength
        expected.fit(features, labels)
        np.testing.assert_array_equal(fitted.classifier.coef_, expected.coef_)
        monkeypatch.setattr(linear_classifier, "MAX_ITERATIONS", 1)
        assert not fit_classifier(kind, features, labels).converged

    def test_larger_c_is_not_tried_once_it_harms(self, monkeypatch):
        class Worsening:
            """Is right with C up to 1e-3 and wrong beyond."""

            n_iter_ = np.array([1])

            def fit(self, features, labels):
                pass

            def predict(self, features):
                return np.full(len(features), int(self.C > 2e-3))

        monkeypatch.setitem(linear_classifier.KINDS, "worsening", Worsening)
        fitted = fit_classifier("worsening", np.zeros((50, 1), np.float32), np.zeros(50, int))
        assert fitted.tried == ((1e-5, 1), (1e-4, 1), (1e-3, 1), (1e-2, 0))
        assert fitted.strength == STRENGTHS[0]


class TestFeatures:
    def test_standardize_equals_numpy_in_double_precision(self):
        features = (1000 + 3 * np.random.default_rng(0).standard_normal((3000, 5))).astype(np.float32)
        exact = features.astype(np.float64)
        result, other = standardize_features(features, features[:7].copy())
        assert result.dtype == np.float32 and np.shares_memory(result, features)
        np.testing.assert_allclose(result, (exact - exact.mean(0)) / exact.std(0), atol=1e-3)
        np.testing.assert_array_equal(other, result[:7])
        np.testing.assert_allclose(standardize_features(np.full((2000, 2), 0.1, np.float32))[0], 0, atol=1e-7)

    @pytest.mark.parametrize("exact_up_to", [4096, 0])
    def test_components_are_those_of_the_covariance(self, exact_up_to, monkeypatch):
        monkeypatch.setattr(linear_classifier, "_EXACT_PCA", exact_up_to)
        rng = np.random.default_rng(0)
        features = (rng.standard_normal((400, 12)) * np.linspace(5, 0.5, 12)).astype(np.float32)
        features -= features.mean(0)
        pca = fit_pca(features, 3, seed=0)
        _, vectors = np.linalg.eigh(np.cov(features.T))
        overlap = np.abs(pca.components_ @ vectors[:, :-4:-1])
        np.testing.assert_allclose(overlap, np.eye(3), atol=1e-2)
        assert pca.transform(features).dtype == np.float32
        # Components of few images hold more than rounding.
        few = fit_pca(np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32), 64, seed=0)
        assert len(few.components_) == 19 and few.explained_variance_.min() > 1e-3

    def test_images_are_drawn_from_the_whole_split_and_read_once(self, source):
        images, labels = coloured_images(120)
        indices = draw_indices(source, "train", 30, seed=0)
        assert len(set(indices.tolist())) == 30 and indices.min() < 40 and indices.max() >= 80
        np.testing.assert_array_equal(indices, draw_indices(source, "train", 30, seed=0))
        assert set(indices) != set(draw_indices(source, "train", 30, seed=1))
        batches = list(read_batches(source, "train", indices, batch_size=7))
        np.testing.assert_array_equal(np.concatenate([b["image"] for b in batches]), images[np.sort(indices)])
        np.testing.assert_array_equal(np.concatenate([b["label"] for b in batches]), labels[np.sort(indices)])


class TestLinearProbe:
    def test_colours_are_found_in_pixels(self, result):
        found = accuracies(result)
        assert found["pixels", "linear SVM"] == found["pixels", "logistic regression"] == 1
        assert found["pixels, PCA", "linear SVM"] == 1
        dimensions = {row["features"]: row["dimensions"] for row in result.values["results"]}
        assert dimensions == {"pixels": 192, "pixels, PCA": 4, "z": 4, "v": 192, "v, PCA": 4}

    def test_shuffled_labels_are_guessed(self, tiny_model, two_strengths):
        rng = np.random.default_rng(0)
        train, test = (random_images(count, seed=count) for count in (200, 500))
        source = make_source((train, rng.integers(0, 2, 200)), (test, rng.integers(0, 2, 500)))
        found = accuracies(probe_result(tiny_model, source, 200, 500, batch_size=250))
        assert len(found) == 10
        assert all(abs(accuracy - 0.5) < 4 * math.sqrt(0.25 / 500) for accuracy in found.values()), found

    def test_features_are_the_models_codes(self, tiny_model, source, no_fits, monkeypatch):
        # Before they are standardised, the features are the codes of `encode`, whatever the batches.
        seen = []
        monkeypatch.setattr(probe, "standardize_features", lambda *both: seen.append(both) or both)
        probe_result(tiny_model, source, 30, 10, batch_size=20)
        by_width = {}
        for both in seen:
            by_width.setdefault(both[0].shape[1], []).append(both)
        pixels, v = by_width[192]
        for x, codes_z, codes_v in zip(pixels, by_width[4][1], v, strict=True):
            codes = tiny_model.encode(x.reshape(-1, 8, 8, 3).astype(np.uint8))
            np.testing.assert_allclose(codes_z, codes.z, atol=1e-5)
            np.testing.assert_allclose(codes_v, np.reshape(codes.v, (len(x), -1)), atol=1e-4)

    def test_test_images_influence_nothing_that_is_fitted(self, tiny_model, two_strengths, monkeypatch):
        fitted = []

        def spy(owner, name, values):
            original = getattr(owner, name)

            def wrapper(*arguments, **keywords):
                result = original(*arguments, **keywords)
                fitted.append(values(result))
                return result

            monkeypatch.setattr(owner, name, wrapper)

        spy(StandardScaler, "fit", lambda s: (s.mean_.copy(), s.scale_.copy()))
        spy(probe, "fit_pca", lambda p: (p.components_, p.mean_))
        spy(probe, "fit_classifier", lambda f: (f.strength, f.tried, f.classifier.coef_, f.classifier.intercept_))
        train = coloured_images(100)
        dark = np.zeros((50, 8, 8, 3), np.uint8), np.arange(50) % 3
        results = [
            probe_result(tiny_model, make_source(train, test), 100, 50) for test in (coloured_images(50, 1), dark)
        ]
        half = len(fitted) // 2
        # For pixels and v: the scaling twice, a PCA and 2 x 2 classifiers; for z: one scaling and 2 classifiers.
        assert half == 2 * (2 + 1 + 4) + 1 + 2
        for one, other in zip(fitted[:half], fitted[half:], strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)
        assert accuracies(results[0]) != accuracies(results[1])

    def test_confusion_adds_up(self, result):
        confusion = result.values["confusion"]
        counts = np.array(confusion["counts"])
        assert confusion["features"] == "z" and confusion["labels"] == [0, 1, 2]
        # Rows are the true classes, 20 images of each.
        np.testing.assert_array_equal(counts.sum(1), [20, 20, 20])
        assert np.trace(counts) / counts.sum() == confusion["accuracy"]
        row = next(row for row in result.values["results"] if row["features"] == "z")
        held_out = {kind: found["held_out_accuracy"] for kind, found in row["classifiers"].items()}
        assert held_out[confusion["classifier"]] == max(held_out.values())
        assert row["classifiers"][confusion["classifier"]]["accuracy"] == confusion["accuracy"]
        labels, predicted = np.array([2, 2, 7, 9]), np.array([2, 9, 7, 2])
        confusion = probe.count_confusion("z", "a", labels, predicted)
        assert (confusion["labels"], confusion["accuracy"]) == ([2, 7, 9], 0.5)
        assert confusion["counts"] == [[1, 0, 1], [0, 1, 0], [1, 0, 0]]

    def test_is_plain_and_says_what_it_did(self, result):
        values, text = result.values, "\n".join(result.lines)
        assert json.loads(json.dumps(values)) == values
        numbers = {name: values[name] for name in ("train_images", "test_images", "held_out_images", "classes", "seed")}
        assert numbers == {"train_images": 120, "test_images": 60, "held_out_images": 24, "classes": 3, "seed": 0}
        assert values["chance"] == pytest.approx(1 / 3)
        for row in values["results"]:
            line = next(line for line in result.lines if line.startswith(f"{row['features']} "))
            for found in row["classifiers"].values():
                share = found["accuracy"]
                assert f"{100 * share:.2f} %" in line
                assert found["standard_error"] == pytest.approx(math.sqrt(share * (1 - share) / 60))
        assert "24 of the training images" in text and "33.33 %" in text

    def test_model_without_z_has_pixels_as_it_sees_them_and_v(self, source, no_fits, monkeypatch):
        model = DecoupledModel(dataclasses.replace(SMALL, conditioning="none", n_bits=3))
        with pytest.raises(NotInitializedError):
            probe_result(model, source)
        model.initialize(random_images(16))
        seen = []
        monkeypatch.setattr(probe, "standardize_features", lambda *both: seen.append(both[0]) or both)
        values = probe_result(model, source, 40, 20).values
        assert [row["features"] for row in values["results"]] == ["pixels", "v"]
        assert values["confusion"]["features"] == "v"
        assert set(np.unique(seen[0] % 32)) == {0}

    @pytest.mark.parametrize(
        ("options", "most", "values", "train", "test"),
        [
            ({}, 10_000, 2**26, 120, 60),
            ({}, 12, 2**26, 12, 12),
            ({}, 10_000, 192 * 20, 20, 20),
            ({"images": 3}, 10_000, 2**26, 10, 3),
            ({"images": 3, "probe_images": 17}, 10_000, 2**26, 17, 3),
        ],
    )
    def test_numbers_of_images(self, tiny_model, source, no_fits, monkeypatch, options, most, values, train, test):
        monkeypatch.setattr(probe, "IMAGES", most)
        monkeypatch.setattr(probe, "VALUES", values)
        found = compute_metric(LinearProbe, tiny_model, source, **options).values
        assert (found["train_images"], found["test_images"]) == (train, test)

    @pytest.mark.parametrize(
        ("train", "test", "count", "parts"),
        [
            ([-1] * 20, [0] * 9, 20, ("train images without a label", "sub-folders")),
            ([0, 1] * 10, [-1] * 9, 20, ("test images without a label",)),
            ([1] * 20, [0] * 9, 20, ("the 16", "one class", "two or more")),
            ([0, 1] * 10, [0] * 9, 9, ("9", "at least 10")),
        ],
    )
    def test_refuses_in_one_line(self, tiny_model, train, test, count, parts):
        source = make_source((random_images(20), train), (random_images(9), test))
        with pytest.raises(DataError) as caught:
            probe_result(tiny_model, source, count, 9)
        message = str(caught.value)
        assert "\n" not in message and all(part in message for part in parts), message
