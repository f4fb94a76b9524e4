import keras
import numpy as np
import pytest
from helpers.evaluations import compute_mean_colours, compute_metric, write_onnx
from helpers.models import random_images
from helpers.numbered import make_memory_source
from helpers.refusals import message_of, refused

from tfdecouple.cli import main
from tfdecouple.errors import UntrustedError, UserError
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


def write_keras(path, dtype="uint8", shape=(None, None, 3), pooled=True):
    images = keras.Input(shape, dtype=dtype)
    values = keras.layers.Rescaling(1.0)(images)
    keras.Model(images, keras.layers.GlobalAveragePooling2D()(values) if pooled else values).save(path)
    return path


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    return write_onnx(tmp_path_factory.mktemp("extractor") / "colours.onnx")


class TestExtractor:
    @pytest.mark.parametrize(("write", "name"), [(write_onnx, "a.onnx"), (write_keras, "a.keras")])
    def test_extractor_gives_features_of_uint8_images(self, write, name, tmp_path):
        path = write(tmp_path / name)
        opened = frechet.open_feature_extractor(path, (8, 8, 3), trust=name.endswith(".keras"))
        for images in (random_images(5), random_images(3, seed=1)):
            np.testing.assert_allclose(opened(images), compute_mean_colours(images), rtol=1e-6)

    @pytest.mark.parametrize(
        ("write", "parts"),
        [
            (lambda p: p / "missing.onnx", ("there is no extractor file", "missing.onnx")),
            (lambda p: p, ("there is no extractor file",)),
            (lambda p: write_onnx(p / "a.onnx", dtype="float"), ("takes float and", "uint8")),
            (lambda p: write_onnx(p / "a.onnx", shape="n, 299, 299, 3"), ("(2, 8, 8, 3)", "299", "of these images")),
            (lambda p: write_onnx(p / "a.onnx", shape="1, 8, 8, 3"), ("(2, 8, 8, 3)", "of any n")),
            (lambda p: write_onnx(p / "a.onnx", keep_dims=1), ("features of shape (2, 1, 1, 3)",)),
            (lambda p: write_onnx(p / "a.onnx", outputs=("a", "b")), ("has 2 outputs",)),
            (lambda p: write_onnx(p / "a.onnx", divide_by=0.0), ("must be finite",)),
            (lambda p: write_keras(p / "a.keras", dtype="float32"), ("takes float32 and", "uint8")),
            (lambda p: write_keras(p / "a.keras", shape=(16, 16, 3)), ("(2, 8, 8, 3)",)),
            (lambda p: write_keras(p / "a.keras", pooled=False), ("features of shape (2, 8, 8, 3)",)),
        ],
    )
    def test_unsuitable_extractor_is_refused_in_one_line(self, write, parts, tmp_path):
        path = write(tmp_path)
        message = message_of(UserError, lambda: frechet.open_feature_extractor(path, (8, 8, 3), trust=True))
        assert all(part in message for part in parts), message

    def test_other_files_and_keras_code_are_refused_as_extractors(self, tmp_path):
        images = keras.Input((None, None, 3), dtype="uint8")
        keras.Model(images, keras.layers.Lambda(lambda x: x[:, 0, 0])(images)).save(tmp_path / "code.keras")
        for name, part in {"text.onnx": "as ONNX", "text.keras": "Keras", "code.keras": "cannot be opened"}.items():
            if name.startswith("text"):
                (tmp_path / name).write_text("no network\n")
            with pytest.raises(UserError, match=part):
                frechet.open_feature_extractor(tmp_path / name, (8, 8, 3), trust=True)

    def test_keras_extractor_needs_trust(self, tiny_run, tmp_path, monkeypatch, capsys):
        path = write_keras(tmp_path / "a.keras")
        monkeypatch.setattr(keras.saving, "load_model", lambda *_, **__: pytest.fail("it was opened"))
        with pytest.raises(UntrustedError, match="--trust"):
            frechet.open_feature_extractor(path, (8, 8, 3))
        command = ["evaluate", "--run", str(tiny_run), "--frechet", str(path)]
        assert "give --trust" in refused(capsys, lambda: main(command))


def samples(model, count, temperature=0.7, seed=0, batch_size=16):
    return np.concatenate(list(frechet.draw_model_samples(model, count, temperature, seed, batch_size)))


def compute_frechet(model, source, extractor, frechet_images=40, frechet_split="test"):
    options = {"frechet_images": frechet_images, "frechet_split": frechet_split, "temperature": 0.7, "batch_size": 16}
    return compute_metric(frechet.FrechetDistance, model, source, frechet=extractor, **options)


class TestResult:
    @pytest.fixture(scope="class")
    def source(self):
        return make_memory_source(train=(random_images(60, seed=1) // 2,), test=(random_images(50, seed=2),))

    @pytest.mark.parametrize("split", ["train", "train+validation"])
    def test_frechet_compares_with_the_chosen_split(self, tiny_model, extractor, split):
        parts = {name: random_images(20 * n, seed=n) // n for n, name in enumerate(("train", "validation", "test"), 1)}
        source = make_memory_source(**{name: (images,) for name, images in parts.items()})
        values = compute_frechet(tiny_model, source, extractor, 60, split).values
        images = np.concatenate([parts[name] for name in split.split("+")])
        both = [compute_mean_colours(features) for features in (images, parts["test"])]
        moments = [frechet.Moments(len(rows), rows.mean(0), np.cov(rows, rowvar=False)) for rows in both]
        assert values["images"] == len(images) and values["floor_split"] == "test"
        assert values["floor"] == pytest.approx(frechet.compute_frechet_distance(*moments), rel=1e-3)


class TestSamples:
    def test_sample_depends_on_its_number_and_the_seed_alone(self, tiny_model):
        result = samples(tiny_model, 20, batch_size=16)
        assert result.shape == (20, 8, 8, 3) and result.dtype == np.uint8
        assert len(np.unique(result.reshape(20, -1), axis=0)) == 20
        # Rounding can move a pixel by a level.
        np.testing.assert_allclose(samples(tiny_model, 20, batch_size=10).astype(int), result, atol=1)
        np.testing.assert_allclose(samples(tiny_model, 5).astype(int), result[:5], atol=1)
        assert (samples(tiny_model, 4, seed=1) != result[:4]).any()
