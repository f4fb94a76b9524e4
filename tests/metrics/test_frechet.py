"""The Frechet distance: closed forms, extractors of both formats, and results with their floor."""

import hashlib
import json
import os
import pathlib

import keras
import numpy as np
import pytest
import scipy.linalg
from helpers.eager import run_eagerly
from helpers.extractors import colours, frechet_result, write_onnx
from helpers.models import SMALL, random_images
from onnx import TensorProto

from tfdecouple.cli import main
from tfdecouple.errors import DataError, ExtractorError, InversionError, NotInitializedError, UntrustedError
from tfdecouple.metrics.frechet import Moments, compute_frechet_distance, compute_moments, draw_samples, open_extractor
from tfdecouple.model import DecoupledModel

REAL_DATA = os.environ.get("TFDECOUPLE_DATA_DIR")


def spd(width, seed):
    """A random covariance."""
    factor = np.random.default_rng(seed).standard_normal((width, 2 * width))
    return factor @ factor.T / width


def distance(mean_a, a, mean_b, b):
    return compute_frechet_distance(Moments(100, mean_a, a), Moments(100, mean_b, b))


def by_sqrtm(mean_a, a, mean_b, b):
    """The distance by the formula as it is usually written."""
    root = np.real(scipy.linalg.sqrtm(a @ b))
    return np.square(mean_a - mean_b).sum() + np.trace(a + b - 2 * root)


class TestDistance:
    def test_of_equal_shifted_and_scaled_gaussians(self):
        covariance, zero, shift = spd(20, 0), np.zeros(20), np.linspace(-1, 2, 20)
        assert distance(shift, covariance, shift, covariance) == pytest.approx(0, abs=1e-12 * 20)
        assert distance(zero, covariance, shift, covariance) == pytest.approx(np.square(shift).sum(), rel=1e-12)
        # x and 3 x are 2 x apart.
        assert distance(zero, covariance, zero, 9 * covariance) == pytest.approx(4 * np.trace(covariance), rel=1e-12)

    def test_of_diagonal_gaussians(self):
        a, b = np.linspace(0.1, 4, 15), np.linspace(3, 0, 15)
        found = distance(np.zeros(15), np.diag(a**2), np.ones(15), np.diag(b**2))
        assert found == pytest.approx(15 + np.square(a - b).sum(), rel=1e-12)

    @pytest.mark.parametrize("seed", range(3))
    def test_of_any_gaussians_as_by_sqrtm(self, seed):
        means = np.random.default_rng(seed).standard_normal((2, 30))
        a, b = spd(30, seed + 10), 2 * spd(30, seed + 20)
        found = distance(means[0], a, means[1], b)
        assert found == pytest.approx(by_sqrtm(means[0], a, means[1], b), rel=1e-9)
        assert found == pytest.approx(distance(means[1], b, means[0], a), rel=1e-12)

    def test_of_singular_covariances(self):
        # The covariances of 5 images of 60 features. In common directions the distance is known.
        directions = np.linalg.qr(np.random.default_rng(0).standard_normal((60, 5)))[0]
        a, b = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 2, 1, 0, 7])
        first, second = ((directions * values**2) @ directions.T for values in (a, b))
        zero = np.zeros(60)
        assert distance(zero, first, zero, second) == pytest.approx(np.square(a - b).sum(), rel=1e-10)
        assert distance(zero, first, zero, first) == pytest.approx(0, abs=1e-10)
        assert distance(np.zeros(3), np.zeros((3, 3)), np.ones(3), np.zeros((3, 3))) == 3

    def test_moments_are_in_double_precision(self):
        # Far from 0, as features can be: differences of large sums would lose all digits.
        vectors = (1e8 + np.random.default_rng(0).standard_normal((101, 6)) * [1, 2, 3, 4, 5, 60]).astype(np.float32)
        moments = compute_moments(lambda images: images, np.split(vectors, [1, 50]))
        exact = vectors.astype(np.float64)
        assert moments.count == 101
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
    def test_gives_features_of_uint8_images(self, write, name, tmp_path):
        path = write(tmp_path / name)
        opened = open_extractor(path, (8, 8, 3), trust=name.endswith(".keras"))
        for images in (random_images(5), random_images(3, seed=1)):
            np.testing.assert_allclose(opened(images), colours(images), rtol=1e-6)
        assert opened.file_name == name
        assert opened.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    @pytest.mark.parametrize(
        ("write", "parts"),
        [
            (lambda p: p / "missing.onnx", ("there is no extractor file", "missing.onnx")),
            (lambda p: p, ("there is no extractor file",)),
            (lambda p: write_onnx(p / "a.onnx", dtype=TensorProto.FLOAT), ("takes float images", "uint8")),
            (lambda p: write_onnx(p / "a.onnx", shape=("n", 299, 299, 3)), ("(2, 8, 8, 3)", "299", "of these images")),
            (lambda p: write_onnx(p / "a.onnx", shape=(1, 8, 8, 3)), ("(2, 8, 8, 3)", "of any n")),
            (lambda p: write_onnx(p / "a.onnx", keep_dims=1), ("features of shape (2, 1, 1, 3)",)),
            (lambda p: write_onnx(p / "a.onnx", outputs=("a", "b")), ("1 inputs and 2 outputs",)),
            (lambda p: write_onnx(p / "a.onnx", divide_by=0.0), ("not finite",)),
            (lambda p: write_keras(p / "a.keras", dtype="float32"), ("takes float32 images", "uint8")),
            (lambda p: write_keras(p / "a.keras", shape=(16, 16, 3)), ("(2, 8, 8, 3)",)),
            (lambda p: write_keras(p / "a.keras", pooled=False), ("features of shape (2, 8, 8, 3)",)),
        ],
    )
    def test_refuses_in_one_line(self, write, parts, tmp_path):
        path = write(tmp_path)
        with pytest.raises(ExtractorError) as caught:
            open_extractor(path, (8, 8, 3), trust=True)
        message = str(caught.value)
        assert "\n" not in message and all(part in message for part in parts), message

    @pytest.mark.parametrize("channels", [2, 5])
    def test_refuses_images_that_are_neither_grey_nor_rgb(self, extractor, channels):
        with pytest.raises(ExtractorError, match=f"the images have {channels} channels, .* takes 3; only grey"):
            open_extractor(extractor, (8, 12, channels))

    @pytest.mark.parametrize(("name", "part"), [("text.onnx", "as ONNX"), ("text.pt", "as ONNX"), ("a.keras", "Keras")])
    def test_refuses_other_files_in_one_line(self, name, part, tmp_path):
        (tmp_path / name).write_text("no network\n")
        with pytest.raises(ExtractorError, match=part) as caught:
            open_extractor(tmp_path / name, (8, 8, 3), trust=True)
        assert "\n" not in str(caught.value)

    def test_refuses_keras_files_with_code(self, tmp_path):
        images = keras.Input((None, None, 3), dtype="uint8")
        keras.Model(images, keras.layers.Lambda(lambda x: x[:, 0, 0])(images)).save(tmp_path / "a.keras")
        with pytest.raises(ExtractorError, match="cannot be opened") as caught:
            open_extractor(tmp_path / "a.keras", (8, 8, 3), trust=True)
        assert "\n" not in str(caught.value)

    def test_opens_a_keras_file_only_where_it_is_trusted(self, tmp_path, monkeypatch, capsys):
        path = write_keras(tmp_path / "a.keras")
        monkeypatch.setattr(keras.saving, "load_model", lambda *_, **__: pytest.fail("it was opened"))
        with pytest.raises(UntrustedError, match="--trust"):
            open_extractor(path, (8, 8, 3))
        assert main(["evaluate", "--run", "no/such/run", "--frechet", str(path)]) == 2
        assert "give --trust" in capsys.readouterr().err

    @pytest.mark.skipif(REAL_DATA is None, reason="TFDECOUPLE_DATA_DIR is not set")
    def test_a_real_network_tells_a_gradient_from_noise(self):
        folders = (pathlib.Path(REAL_DATA, "features"), pathlib.Path(REAL_DATA).parent / "features")
        path = next((path for folder in folders for path in sorted(folder.glob("*.onnx"))), None)
        if path is None:
            pytest.skip("there is no features/*.onnx")
        opened = open_extractor(path, (32, 32, 3))
        smooth = np.tile(np.arange(0, 256, 8, dtype=np.uint8)[:, None, None], (4, 1, 32, 3))
        features = opened(np.concatenate([smooth, random_images(4, size=32)]))
        assert features.ndim == 2 and features.shape[1] > 100
        assert np.linalg.norm(features[0] - features[4]) > 1.5 * np.linalg.norm(features[4] - features[5])
        np.testing.assert_allclose(features[0], features[3], atol=1e-4)


def samples(model, count, temperature=0.7, seed=0, batch_size=16):
    return np.concatenate(list(draw_samples(model, count, temperature, seed, batch_size)))


def by_numpy(a, b):
    a, b = colours(a), colours(b)
    return by_sqrtm(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))


@pytest.mark.usefixtures("eager")
class TestResult:
    @pytest.fixture(scope="class")
    def result(self, tiny_model, source, extractor):
        """Do not change it."""
        with run_eagerly():
            return frechet_result(tiny_model, source, extractor, frechet_images=60)

    def test_distance_and_floor_are_of_samples_and_training_images(self, result, tiny_model):
        values, test = result.values, random_images(50, seed=2)
        assert values["distance"] == pytest.approx(by_numpy(samples(tiny_model, 60), test), rel=1e-6)
        assert values["floor"] == pytest.approx(by_numpy(random_images(60, seed=1) // 2, test), rel=1e-6)
        assert values["distance"] != pytest.approx(values["floor"], rel=0.01)

    def test_says_what_it_is(self, result, extractor):
        values = result.values
        assert values["name"] == "Frechet distance (colours.onnx)"
        sha256 = hashlib.sha256(extractor.read_bytes()).hexdigest()
        assert values["extractor"] == {"file": "colours.onnx", "sha256": sha256}
        numbers = {name: values[name] for name in ("samples", "test_images", "floor_images", "features")}
        assert numbers == {"samples": 60, "test_images": 50, "floor_images": 60, "features": 3}
        assert (values["temperature"], values["seed"], values["warnings"]) == (0.7, 0, [])
        assert json.loads(json.dumps(values)) == values
        text = "\n".join(result.lines)
        for part in ("colours.onnx", sha256, f"{values['distance']:.4g}", f"{values['floor']:.4g}", "floor", "0.7"):
            assert part in text

    def test_batches_change_nothing(self, tiny_model, source, extractor):
        one, other = (frechet_result(tiny_model, source, extractor, batch_size=size).values for size in (20, 64))
        assert one["floor"] == pytest.approx(other["floor"], rel=1e-6)
        assert one["distance"] == pytest.approx(other["distance"], rel=1e-4)

    def test_warns_of_a_floor_of_fewer_images(self, tiny_model, source, extractor):
        values, lines, _ = frechet_result(tiny_model, source, extractor, frechet_images=70)
        assert values["floor_images"] == 60 and values["samples"] == 70
        (warning,) = values["warnings"]
        assert "60 training images" in warning and "70 samples" in warning and f"Warning: {warning}" in lines

    @pytest.mark.parametrize(("count", "kinds"), [(3, 3), (4, 0)])
    def test_warns_where_there_are_no_more_images_than_features(self, tiny_model, source, extractor, count, kinds):
        warnings = frechet_result(tiny_model, source, extractor, frechet_images=count).values["warnings"]
        assert len(warnings) == kinds and all("no more than the 3 features" in warning for warning in warnings)

    def test_refuses_too_few_images_and_a_model_without_weights(self, tiny_model, source, extractor):
        with pytest.raises(DataError, match="test images is 1; a covariance needs at least 2"):
            frechet_result(tiny_model, source, extractor, frechet_images=1)
        with pytest.raises(NotInitializedError):
            frechet_result(DecoupledModel(SMALL), source, extractor)


@pytest.mark.usefixtures("eager")
class TestSamples:
    def test_a_sample_depends_on_its_number_and_the_seed_alone(self, tiny_model):
        found = samples(tiny_model, 20, batch_size=16)
        assert found.shape == (20, 8, 8, 3) and found.dtype == np.uint8
        assert len(np.unique(found.reshape(20, -1), axis=0)) == 20
        # Rounding can move a pixel by a level.
        np.testing.assert_allclose(samples(tiny_model, 20, batch_size=10).astype(int), found, atol=1)
        np.testing.assert_allclose(samples(tiny_model, 5).astype(int), found[:5], atol=1)
        assert (samples(tiny_model, 4, seed=1) != found[:4]).any()

    def test_temperature_acts_on_v_alone_and_z_is_from_the_prior(self, tiny_model, monkeypatch):
        codes = []
        decode = tiny_model.decode
        monkeypatch.setattr(tiny_model, "decode", lambda z, v: codes.append((np.array(z), np.array(v))) or decode(z, v))
        for temperature in (1.0, 0.5, 0.0):
            samples(tiny_model, 256, temperature, batch_size=256)
        (z, v), (z_half, v_half), (z_zero, v_zero) = codes
        np.testing.assert_array_equal(z, z_half)
        np.testing.assert_array_equal(z, z_zero)
        np.testing.assert_allclose(v_half, v / 2)
        assert not v_zero.any()
        assert abs(v.mean()) < 0.1 and v.std() == pytest.approx(1, abs=0.05)
        # Under the prior, its flow turns these z into standard normal noise.
        noise = np.array(tiny_model.prior_flow.forward_and_log_det(z)[0])
        np.testing.assert_allclose(noise.mean(0), 0, atol=0.25)
        np.testing.assert_allclose(np.cov(noise.T), np.eye(4), atol=0.35)

    def test_samples_that_are_not_finite_are_refused(self, tiny_model):
        with pytest.raises(InversionError, match="not finite"):
            samples(tiny_model, 2, temperature=1e38)
