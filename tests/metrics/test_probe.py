"""Linear classification of codes: exact classifiers, no influence of test images, and reports that add up."""

import dataclasses
import json
import math

import numpy as np
import pytest
from helpers.models import SMALL, random_images
from PIL import ImageDraw
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tfdecouple.data.source import Source
from tfdecouple.data.splits import MemorySplit
from tfdecouple.errors import DataError, NotInitializedError
from tfdecouple.metrics import linear_classifier, probe
from tfdecouple.metrics.classification import sample_report
from tfdecouple.metrics.drawn_images import drawn_indices, subset_batches
from tfdecouple.metrics.linear_classifier import (
    KINDS,
    STRENGTHS,
    Fitted,
    fit_classifier,
    fit_pca,
    held_out_count,
    standardize,
)
from tfdecouple.metrics.probe import linear_probe, table
from tfdecouple.model import DecoupledModel
from tfdecouple.visualization.confusion import confusion_picture

# The tiny models' work is too small for graphs to pay.
pytestmark = pytest.mark.usefixtures("eager")

NAMES = ("red", "green", "blue")


def quiet(text):
    pass


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


def make_source(train, test, names=NAMES):
    """A source of 8 x 8 images; train and test are pairs of images and labels."""

    def split(pair):
        images, labels = pair
        return MemorySplit(len(images), "all", lambda: (images, np.asarray(labels, np.int32)))

    return Source(
        name="colours",
        title="coloured images",
        label_names=names,
        image_shape=(8, 8, 3),
        splits={"train": split(train), "test": split(test)},
    )


def run(model, source, train=120, test=60, **options):
    arguments = {"seed": 0, "batch_size": 32, "say": quiet, **options}
    return linear_probe(model, source, train_images=train, test_images=test, **arguments)


def accuracies(report):
    return {
        (row["features"], kind): result["accuracy"]
        for row in report["results"]
        for kind, result in row["classifiers"].items()
    }


@pytest.fixture(scope="module")
def source():
    return make_source(coloured_images(120), coloured_images(60, seed=1))


@pytest.fixture(scope="module")
def report(tiny_model, source):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_classifier, "STRENGTHS", (1e-4, 1e-2))
        return run(tiny_model, source)


@pytest.fixture
def two_strengths(monkeypatch):
    """Saves time where the choice of C is not what is tested."""
    monkeypatch.setattr(linear_classifier, "STRENGTHS", (1e-4, 1e-2))


class Constant:
    """Takes everything for the first class."""

    def predict(self, features):
        return np.zeros(len(features), np.int32)


@pytest.fixture
def no_fits(monkeypatch):
    """Saves the time of the classifiers where only their features matter."""
    monkeypatch.setattr(probe, "fit_classifier", lambda *_: Fitted(Constant(), 1.0, 0.5, ((1.0, 0.5),), True))


class TestFitClassifier:
    @pytest.mark.parametrize("kind", KINDS)
    def test_separable_features_are_told_apart(self, kind):
        features, labels = blobs(spread=0.1)
        fitted = fit_classifier(kind, features[:200], labels[:200])
        assert fitted.held_out_accuracy == 1
        assert np.mean(fitted.classifier.predict(features[200:]) == labels[200:]) == 1
        assert fitted.converged

    @pytest.mark.parametrize("kind", KINDS)
    def test_shuffled_labels_are_guessed(self, kind):
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
        assert held_out_count(200) == 40
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
    def test_the_last_fit_is_on_all_images(self, kind):
        features, labels = blobs(100, spread=2.0)
        fitted = fit_classifier(kind, features, labels)
        expected = KINDS[kind]()
        expected.C = fitted.strength
        expected.fit(features, labels)
        np.testing.assert_array_equal(fitted.classifier.coef_, expected.coef_)

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

    def test_says_when_iterations_ran_out(self, monkeypatch):
        monkeypatch.setattr(linear_classifier, "MAX_ITERATIONS", 2)
        features, labels = blobs(spread=2.0)
        assert not fit_classifier("linear SVM", features, labels).converged


class TestStandardize:
    def test_equals_numpy_in_double_precision(self):
        features = (1000 + 3 * np.random.default_rng(0).standard_normal((3000, 5))).astype(np.float32)
        exact = features.astype(np.float64)
        result, other = standardize(features, features[:7].copy())
        assert result.dtype == np.float32 and np.shares_memory(result, features)
        np.testing.assert_allclose(result, (exact - exact.mean(0)) / exact.std(0), atol=1e-3)
        np.testing.assert_array_equal(other, result[:7])

    def test_features_that_do_not_vary_become_zero(self):
        np.testing.assert_allclose(standardize(np.full((2000, 2), 0.1, np.float32))[0], 0, atol=1e-7)


class TestPca:
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

    def test_components_of_few_images_hold_more_than_rounding(self):
        features = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32)
        pca = fit_pca(features, 64, seed=0)
        assert len(pca.components_) == 19 and pca.explained_variance_.min() > 1e-3


class TestSubset:
    def test_indices_are_drawn_from_the_whole_split(self, source):
        indices = drawn_indices(source, "train", 30, seed=0)
        assert len(set(indices.tolist())) == 30
        assert indices.min() < 40 and indices.max() >= 80
        np.testing.assert_array_equal(indices, drawn_indices(source, "train", 30, seed=0))
        assert set(indices) != set(drawn_indices(source, "train", 30, seed=1))

    def test_batches_hold_these_images_once(self, source):
        images, labels = coloured_images(120)
        indices = drawn_indices(source, "train", 30, seed=0)
        batches = list(subset_batches(source, "train", indices, batch_size=7, say=quiet))
        np.testing.assert_array_equal(np.concatenate([b["image"] for b in batches]), images[np.sort(indices)])
        np.testing.assert_array_equal(np.concatenate([b["label"] for b in batches]), labels[np.sort(indices)])

    def test_progress_is_told(self, source, monkeypatch):
        monkeypatch.setattr("tfdecouple.runtime.progress.INTERVAL", 0.0)
        lines = []
        list(subset_batches(source, "test", np.arange(20), batch_size=8, say=lines.append))
        assert [line.partition(", about ")[0] for line in lines] == ["  8 of 20 test images", "  16 of 20 test images"]
        assert lines[1].endswith(" left")


class TestLinearProbe:
    def test_colours_are_found_in_pixels(self, report):
        assert accuracies(report)["pixels", "linear SVM"] == 1
        assert accuracies(report)["pixels", "logistic regression"] == 1
        assert accuracies(report)["pixels, PCA", "linear SVM"] == 1

    def test_has_all_features_and_their_dimensions(self, report):
        dimensions = {row["features"]: row["dimensions"] for row in report["results"]}
        assert dimensions == {"pixels": 192, "pixels, PCA": 4, "z": 4, "v": 192, "v, PCA": 4}

    def test_shuffled_labels_are_guessed(self, tiny_model, two_strengths):
        rng = np.random.default_rng(0)
        train, test = (random_images(count, seed=count) for count in (200, 500))
        source = make_source((train, rng.integers(0, 2, 200)), (test, rng.integers(0, 2, 500)))
        found = accuracies(run(tiny_model, source, 200, 500, batch_size=250))
        assert len(found) == 10
        assert all(abs(accuracy - 0.5) < 4 * math.sqrt(0.25 / 500) for accuracy in found.values()), found

    def test_features_are_the_models_codes(self, tiny_model, source, no_fits, monkeypatch):
        # What is classified, before it is standardised, is what encode gives, whatever the batches.
        seen = []
        monkeypatch.setattr(probe, "standardize", lambda *both: seen.append(both) or both)
        run(tiny_model, source, 30, 10, batch_size=20)
        by_width = {}
        for train, test in seen:
            by_width.setdefault(train.shape[1], []).append((train, test))
        (pixels, pixels_test), (v, v_test) = by_width[192]
        z = by_width[4][1]
        for x, codes_z, codes_v in ((pixels, z[0], v), (pixels_test, z[1], v_test)):
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
        reports = [run(tiny_model, make_source(train, test), 100, 50) for test in (coloured_images(50, seed=1), dark)]
        half = len(fitted) // 2
        # Of pixels and v: the scaling twice, a PCA and 2 x 2 classifiers; of z: one scaling and 2 classifiers.
        assert half == 2 * (2 + 1 + 4) + 1 + 2
        for one, other in zip(fitted[:half], fitted[half:], strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)
        assert accuracies(reports[0]) != accuracies(reports[1])

    def test_confusion_adds_up(self, report):
        confusion = report["confusion"]
        counts = np.array(confusion["counts"])
        assert confusion["features"] == "z" and confusion["labels"] == [0, 1, 2]
        # Rows are the true classes, 20 images of each.
        np.testing.assert_array_equal(counts.sum(1), [20, 20, 20])
        assert np.trace(counts) / counts.sum() == confusion["accuracy"]
        row = next(row for row in report["results"] if row["features"] == "z")
        held_out = {kind: result["held_out_accuracy"] for kind, result in row["classifiers"].items()}
        assert held_out[confusion["classifier"]] == max(held_out.values())
        assert row["classifiers"][confusion["classifier"]]["accuracy"] == confusion["accuracy"]

    def test_confusion_has_the_class_that_was_mistaken(self):
        rows = [{"features": "z", "classifiers": {"a": {"held_out_accuracy": 0.1, "accuracy": 0.5}}}]
        labels, predicted = np.array([2, 2, 7, 9]), np.array([2, 9, 7, 2])
        confusion = probe.confusion_of(rows, "z", {("z", "a"): predicted}, labels)
        assert confusion["labels"] == [2, 7, 9]
        assert confusion["counts"] == [[1, 0, 1], [0, 1, 0], [1, 0, 0]]

    def test_errors_are_binomial(self, report):
        for row in report["results"]:
            for result in row["classifiers"].values():
                share = result["accuracy"]
                assert result["standard_error"] == pytest.approx(math.sqrt(share * (1 - share) / 60))

    def test_is_plain_and_says_what_it_did(self, report):
        assert json.loads(json.dumps(report)) == report
        numbers = {name: report[name] for name in ("train_images", "test_images", "held_out_images", "classes", "seed")}
        assert numbers == {"train_images": 120, "test_images": 60, "held_out_images": 24, "classes": 3, "seed": 0}
        assert report["chance"] == pytest.approx(1 / 3)
        text = "\n".join(table(report))
        for row in report["results"]:
            line = next(line for line in table(report) if line.startswith(f"{row['features']} "))
            for result in row["classifiers"].values():
                assert f"{100 * result['accuracy']:.2f} %" in line
        assert "24 of the training images" in text and "33.33 %" in text

    def test_model_without_z_has_pixels_as_it_sees_them_and_v(self, source, no_fits, monkeypatch):
        model = DecoupledModel(dataclasses.replace(SMALL, conditioning="none", n_bits=3))
        model.initialize(random_images(16))
        seen = []
        monkeypatch.setattr(probe, "standardize", lambda *both: seen.append(both[0]) or both)
        report = run(model, source, 40, 20)
        assert [row["features"] for row in report["results"]] == ["pixels", "v"]
        assert report["confusion"]["features"] == "v"
        assert set(np.unique(seen[0] % 32)) == {0}

    @pytest.mark.parametrize(
        ("train", "test", "counts", "parts"),
        [
            ((20, [-1] * 20), (9, [0] * 9), (20, 9), ("train images without a label", "sub-folders")),
            ((20, [0, 1] * 10), (9, [-1] * 9), (20, 9), ("test images without a label",)),
            ((20, [1] * 20), (9, [0] * 9), (20, 9), ("one class", "two or more")),
            ((20, [0, 1] * 10), (9, [0] * 9), (21, 9), ("21", "has 20")),
            ((20, [0, 1] * 10), (9, [0] * 9), (20, 10), ("10", "has 9")),
            ((20, [0, 1] * 10), (9, [0] * 9), (9, 9), ("9", "at least 10")),
            ((20, [0, 1] * 10), (9, [0] * 9), (20, 0), ("is 0", "at least 1")),
        ],
    )
    def test_refuses_in_one_line(self, tiny_model, train, test, counts, parts):
        source = make_source(*((random_images(count), labels) for count, labels in (train, test)))
        with pytest.raises(DataError) as caught:
            run(tiny_model, source, *counts)
        message = str(caught.value)
        assert "\n" not in message and all(part in message for part in parts), message

    def test_refuses_a_model_without_weights(self, source):
        with pytest.raises(NotInitializedError):
            run(DecoupledModel(dataclasses.replace(SMALL, conditioning="none")), source)


@pytest.mark.parametrize(
    ("train", "count", "parts"),
    [([0, 1] * 10, 2, ("2", "at least 10")), ([1] * 20, 20, ("the 16", "one class", "two or more"))],
)
def test_samples_of_labels_are_refused_as_a_probe_is_before_any_is_drawn(tiny_model, train, count, parts):
    source = make_source((random_images(20), train), (random_images(9), [0] * 9))
    with pytest.raises(DataError) as caught:
        # The tiny model, which knows no labels, would refuse to draw them.
        sample_report(tiny_model, source, per_label=2, train_images=count, test_images=9)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


class TestConfusionPicture:
    def report(self, counts, labels=(0, 1)):
        confusion = {
            "features": "z",
            "classifier": "linear SVM",
            "accuracy": 0.5,
            "labels": list(labels),
            "counts": counts,
        }
        return {"confusion": confusion}

    def dark(self, picture):
        """Places of pixels of the colour of a full cell, (rows, columns)."""
        return np.nonzero((np.asarray(picture) == (31, 78, 140)).all(-1))

    def test_columns_are_the_predicted_classes(self):
        # All is taken for the second class: the right column is dark, over the height of both rows.
        rows, columns = self.dark(confusion_picture(self.report([[0, 4], [0, 4]]), NAMES))
        left_rows, left_columns = self.dark(confusion_picture(self.report([[4, 0], [4, 0]]), NAMES))
        assert left_columns.max() < columns.min()
        assert (rows.min(), rows.max()) == (left_rows.min(), left_rows.max())
        width = np.ptp(columns) + 1
        assert np.ptp(rows) + 1 == 2 * width and columns.min() - left_columns.min() == width

    def test_rows_are_the_true_classes(self):
        rows, columns = self.dark(confusion_picture(self.report([[4, 0], [0, 4]]), NAMES))
        middle = rows.min() + (np.ptp(rows) + 1) // 2
        assert columns[rows < middle].max() < columns[rows >= middle].min()

    def test_shades_are_shares_of_the_row(self):
        few, many = (confusion_picture(self.report([[n, 0], [n, n]]), NAMES) for n in (2, 200))
        half = tuple(np.rint((255 + np.array((31, 78, 140))) / 2).astype(int))
        for picture in (few, many):
            shades = {colour for _, colour in picture.getcolors(1 << 20)}
            assert half in shades or tuple(np.int64(half) - 1) in shades

    def test_has_room_for_names_and_none_for_missing_ones(self):
        short, long = (
            confusion_picture(self.report([[1, 0], [0, 1]]), names) for names in (("a", "b"), ("a", "b" * 60))
        )
        assert long.width > short.width and long.height > short.height
        # Labels beyond the names, as of a folder that grew, stand as numbers.
        assert confusion_picture(self.report([[1, 0], [0, 1]], (0, 70)), ("a",)).width

    def test_title_claims_no_split(self, monkeypatch):
        # Whoever classifies validation images draws it, too.
        said = []
        monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda draw, place, text, **_: said.append(text))
        confusion_picture(self.report([[4, 0], [0, 4]]), NAMES)
        assert said[0] == "z, linear SVM: 50.0 % of 8 images right. Rows: true class; columns: predicted."

    def test_many_classes_fit(self):
        counts = np.eye(60, dtype=int).tolist()
        picture = confusion_picture(self.report(counts, range(60)), [f"class {number}" for number in range(60)])
        assert max(picture.size) < 1200
