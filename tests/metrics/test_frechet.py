"""The Frechet distance: closed forms, exact streaming, extractors of both formats, and reports with their floor."""

import hashlib
import json
import os
import pathlib
import types

import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf
from helpers.eager import run_eagerly
from helpers.extractors import colours, quiet, report_of, write_onnx
from helpers.models import SMALL, random_images
from onnx import TensorProto

from tfdecouple.cli import main
from tfdecouple.errors import DataError, ExtractorError, InversionError, NotInitializedError, UntrustedError, UserError
from tfdecouple.metrics.frechet import Drawn, Moments, frechet_distance, open_extractor, summary
from tfdecouple.model import DecoupledModel
from tfdecouple.runtime import progress

REAL_DATA = os.environ.get("TFDECOUPLE_DATA_DIR")


def spd(width, seed, rank=None):
    """A random covariance of a rank."""
    factor = np.random.default_rng(seed).standard_normal((width, rank or 2 * width))
    return factor @ factor.T / width


def by_sqrtm(mean_a, a, mean_b, b):
    """The distance by the formula as it is usually written."""
    root = np.real(scipy.linalg.sqrtm(a @ b))
    return np.square(mean_a - mean_b).sum() + np.trace(a + b - 2 * root)


class TestDistance:
    def test_of_equal_gaussians_is_0(self):
        mean, covariance = np.arange(20.0), spd(20, 0)
        assert frechet_distance(mean, covariance, mean, covariance) == pytest.approx(0, abs=1e-12 * 20)

    def test_of_shifted_gaussians_is_the_square_of_the_shift(self):
        covariance, shift = spd(20, 0), np.linspace(-1, 2, 20)
        found = frechet_distance(np.zeros(20), covariance, shift, covariance)
        assert found == pytest.approx(np.square(shift).sum(), rel=1e-12)

    def test_of_scaled_gaussians(self):
        # x and 3 x are 2 x apart.
        covariance = spd(20, 0)
        found = frechet_distance(np.zeros(20), covariance, np.zeros(20), 9 * covariance)
        assert found == pytest.approx(4 * np.trace(covariance), rel=1e-12)

    def test_of_diagonal_gaussians(self):
        a, b = np.linspace(0.1, 4, 15), np.linspace(3, 0, 15)
        found = frechet_distance(np.zeros(15), np.diag(a**2), np.ones(15), np.diag(b**2))
        assert found == pytest.approx(15 + np.square(a - b).sum(), rel=1e-12)

    @pytest.mark.parametrize("seed", range(3))
    def test_of_any_gaussians_as_by_sqrtm(self, seed):
        means = np.random.default_rng(seed).standard_normal((2, 30))
        a, b = spd(30, seed + 10), 2 * spd(30, seed + 20)
        found = frechet_distance(means[0], a, means[1], b)
        assert found == pytest.approx(by_sqrtm(means[0], a, means[1], b), rel=1e-9)
        assert found == pytest.approx(frechet_distance(means[1], b, means[0], a), rel=1e-12)

    def test_singular_covariances_are_no_special_case(self):
        # As of fewer images than features. In common directions the distance is known.
        directions = np.linalg.qr(np.random.default_rng(0).standard_normal((60, 5)))[0]
        a, b = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 2, 1, 0, 7])
        first, second = ((directions * values**2) @ directions.T for values in (a, b))
        zero = np.zeros(60)
        found = frechet_distance(zero, first, zero, second)
        assert found == pytest.approx(np.square(a - b).sum(), rel=1e-10)
        assert frechet_distance(zero, first, zero, first) == pytest.approx(0, abs=1e-10)

    def test_nothing_varies(self):
        zero = np.zeros((3, 3))
        assert frechet_distance(np.zeros(3), zero, np.ones(3), zero) == 3


class TestMoments:
    def vectors(self):
        # Far from 0, as features can be: what subtracts large sums loses all digits.
        return 1e8 + np.random.default_rng(0).standard_normal((101, 6)) @ np.diag([1, 2, 3, 4, 5, 6.0])

    @pytest.mark.parametrize("cuts", [(), (1,), (0, 50), (2, 3, 90), range(1, 101)])
    def test_equal_numpys_however_the_batches_are_cut(self, cuts):
        vectors = self.vectors()
        moments = Moments()
        for batch in np.split(vectors, list(cuts)):
            moments.add(batch)
        assert moments.count == 101
        np.testing.assert_allclose(moments.mean, vectors.mean(0), rtol=1e-15)
        np.testing.assert_allclose(moments.covariance, np.cov(vectors.T), rtol=1e-6, atol=1e-6)

    def test_do_not_depend_on_the_order(self):
        vectors = self.vectors()
        one, other = Moments(), Moments()
        for batch in np.split(vectors, 101):
            one.add(batch)
        for batch in np.array_split(np.random.default_rng(1).permutation(vectors), 7):
            other.add(batch)
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-15)
        np.testing.assert_allclose(one.covariance, other.covariance, rtol=1e-6, atol=1e-6)

    def test_are_in_double_precision(self):
        vectors = self.vectors().astype(np.float32)
        moments = Moments()
        moments.add(vectors)
        assert moments.covariance.dtype == np.float64
        np.testing.assert_allclose(moments.covariance, np.cov(vectors.astype(np.float64).T), rtol=1e-6, atol=1e-6)


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
            (lambda p: write_onnx(p / "a.onnx", shape=("n", 299, 299, 3)), ("[any, 299, 299, 3]", "[n, 8, 8, 3]")),
            (lambda p: write_onnx(p / "a.onnx", shape=(1, 8, 8, 3)), ("[1, 8, 8, 3]", "any n")),
            (lambda p: write_onnx(p / "a.onnx", shape=("n", "h", "w", 4)), ("[any, any, any, 4]",)),
            (lambda p: write_onnx(p / "a.onnx", keep_dims=1), ("features of shape [any, 1, 1, 3]", "[n, features]")),
            (lambda p: write_onnx(p / "a.onnx", outputs=("a", "b")), ("1 inputs and 2 outputs",)),
            (lambda p: write_keras(p / "a.keras", dtype="float32"), ("takes float32 images", "uint8")),
            (lambda p: write_keras(p / "a.keras", shape=(16, 16, 3)), ("[any, 16, 16, 3]",)),
            (lambda p: write_keras(p / "a.keras", pooled=False), ("features of shape [any, any, any, 3]",)),
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
        with pytest.raises(ExtractorError) as caught:
            open_extractor(extractor, (8, 12, channels))
        assert str(caught.value) == (
            f"the images have {channels} channels, and the extractor {extractor.name} takes 3; only grey images and "
            "those of three channels can be compared by it"
        )

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

    def test_refuses_features_that_are_not_finite(self, tmp_path):
        opened = open_extractor(write_onnx(tmp_path / "a.onnx", divide_by=0.0), (8, 8, 3))
        with pytest.raises(ExtractorError, match="not finite"):
            opened(random_images(2))

    def test_says_in_one_line_on_what_it_fails(self, extractor):
        with pytest.raises(ExtractorError, match=r"fails on images of shape \(2, 8, 8, 4\)") as caught:
            open_extractor(extractor, (8, 8, 3))(np.zeros((2, 8, 8, 4), np.uint8))
        assert "\n" not in str(caught.value)

    def test_refuses_another_number_of_features_than_of_images(self, extractor):
        opened = open_extractor(extractor, (8, 8, 3))
        opened._run = lambda images: colours(images)[:1]
        with pytest.raises(ExtractorError, match="for 2 images"):
            opened(random_images(2))

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
    return np.concatenate(list(Drawn(model, None, seed, batch_size, quiet).samples(count, temperature)))


def by_numpy(a, b):
    a, b = colours(a), colours(b)
    return by_sqrtm(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))


@pytest.mark.usefixtures("eager")
class TestReport:
    @pytest.fixture(scope="class")
    def report(self, tiny_model, source, extractor):
        """Do not change it."""
        with run_eagerly():
            return report_of(tiny_model, source, extractor, count=60)

    def test_distance_and_floor_are_of_samples_and_training_images(self, report, tiny_model):
        test = random_images(50, seed=2)
        assert report["distance"] == pytest.approx(by_numpy(samples(tiny_model, 60), test), rel=1e-6)
        assert report["floor"] == pytest.approx(by_numpy(random_images(60, seed=1) // 2, test), rel=1e-6)
        assert report["distance"] != pytest.approx(report["floor"], rel=0.01)

    def test_says_what_it_is(self, report, extractor):
        assert report["name"] == "Frechet distance (colours.onnx)"
        sha256 = hashlib.sha256(extractor.read_bytes()).hexdigest()
        assert report["extractor"] == {"file": "colours.onnx", "sha256": sha256}
        numbers = {name: report[name] for name in ("samples", "test_images", "floor_images", "features")}
        assert numbers == {"samples": 60, "test_images": 50, "floor_images": 60, "features": 3}
        assert (report["temperature"], report["seed"]) == (0.7, 0)
        assert report["warnings"] == []
        assert json.loads(json.dumps(report)) == report
        text = "\n".join(summary(report, "noise"))
        for part in ("colours.onnx", sha256, f"{report['distance']:.4g}", f"{report['floor']:.4g}", "floor", "0.7"):
            assert part in text

    def test_images_like_the_test_images_reach_the_floor(self, source, extractor):
        class Remembering:
            """Has learned the training images by heart."""

            config = types.SimpleNamespace(has_latent=False, latent_dim=0, image_shape=(8, 8, 3), has_classes=False)
            images = random_images(60, seed=1) // 2
            place = 0

            def require_initialized(self):
                pass

            def quantize_images(self, images):
                return tf.constant(images)

            def decode(self, z, v):
                assert z is None
                self.place += len(v)
                return tf.constant(self.images[self.place - len(v) : self.place])

        report = report_of(Remembering(), source, extractor, count=60, batch_size=20)
        assert report["distance"] == pytest.approx(report["floor"], rel=1e-9) and report["floor"] > 1

    def test_is_called_by_the_file(self, tiny_model, source, tmp_path):
        report = report_of(tiny_model, source, write_onnx(tmp_path / "other.onnx"))
        assert report["name"] == "Frechet distance (other.onnx)"

    def test_batches_change_nothing(self, tiny_model, source, extractor):
        one, other = (report_of(tiny_model, source, extractor, batch_size=size) for size in (20, 64))
        assert one["floor"] == pytest.approx(other["floor"], rel=1e-6)
        assert one["distance"] == pytest.approx(other["distance"], rel=1e-4)

    def test_floor_is_of_as_many_images_as_there_are_samples(self, tiny_model, source, extractor):
        report = report_of(tiny_model, source, extractor, count=30, reference=20)
        assert (report["samples"], report["floor_images"], report["test_images"]) == (30, 30, 20)

    def test_warns_of_a_floor_of_fewer_images(self, tiny_model, source, extractor):
        told = []
        report = report_of(tiny_model, source, extractor, count=70, say=told.append)
        assert report["floor_images"] == 60 and report["samples"] == 70
        (warning,) = report["warnings"]
        assert "60 training images" in warning and "70 samples" in warning
        assert f"warning: {warning}" in told and f"Warning: {warning}" in summary(report, "noise")

    @pytest.mark.parametrize(
        ("count", "reference", "whose"),
        [(3, 50, {"samples", "training images"}), (4, 3, {"test images"}), (4, 4, set())],
    )
    def test_warns_where_there_are_no_more_images_than_features(
        self, tiny_model, source, extractor, count, reference, whose
    ):
        report = report_of(tiny_model, source, extractor, count=count, reference=reference)
        assert {w.split(" ", 1)[1].partition(" are no more")[0] for w in report["warnings"]} == whose

    @pytest.mark.parametrize(
        ("options", "error", "parts"),
        [
            ({"count": 1}, DataError, ("samples is 1", "at least 2")),
            ({"reference": 1}, DataError, ("test images is 1",)),
            ({"reference": 51}, DataError, ("51", "has 50")),
            ({"temperature": -1.0}, UserError, ("temperature is -1.0",)),
            ({"temperature": float("nan")}, UserError, ("temperature is nan",)),
            ({"batch_size": 0}, DataError, ("batch size is 0",)),
            ({"seed": -1}, DataError, ("seed is -1",)),
        ],
    )
    def test_refuses_in_one_line(self, tiny_model, source, extractor, options, error, parts):
        with pytest.raises(error) as caught:
            report_of(tiny_model, source, extractor, **options)
        message = str(caught.value)
        assert "\n" not in message and all(part in message for part in parts), message

    def test_refuses_a_model_without_weights(self, source, extractor):
        with pytest.raises(NotInitializedError):
            report_of(DecoupledModel(SMALL), source, extractor)


@pytest.mark.usefixtures("eager")
class TestSamples:
    def test_a_sample_depends_on_its_number_alone(self, tiny_model):
        found = samples(tiny_model, 20, batch_size=16)
        assert found.shape == (20, 8, 8, 3) and found.dtype == np.uint8
        assert len(np.unique(found.reshape(20, -1), axis=0)) == 20
        # Rounding can move a pixel by a level.
        np.testing.assert_allclose(samples(tiny_model, 20, batch_size=10).astype(int), found, atol=1)
        np.testing.assert_allclose(samples(tiny_model, 5).astype(int), found[:5], atol=1)

    def test_temperature_acts_on_v_alone(self, tiny_model, monkeypatch):
        codes = []
        decode = tiny_model.decode
        monkeypatch.setattr(tiny_model, "decode", lambda z, v: codes.append((np.array(z), np.array(v))) or decode(z, v))
        for temperature in (1.0, 0.5, 0.0):
            samples(tiny_model, 16, temperature)
        (z, v), (z_half, v_half), (z_zero, v_zero) = codes
        np.testing.assert_array_equal(z, z_half)
        np.testing.assert_array_equal(z, z_zero)
        np.testing.assert_allclose(v_half, v / 2)
        assert not v_zero.any()
        assert abs(v.mean()) < 0.1 and v.std() == pytest.approx(1, abs=0.05)

    def test_z_is_from_the_prior(self, tiny_model, monkeypatch):
        codes = []
        decode = tiny_model.decode
        monkeypatch.setattr(tiny_model, "decode", lambda z, v: codes.append(np.array(z)) or decode(z, v))
        samples(tiny_model, 256, batch_size=256)
        # Under the prior, its flow turns these z into standard normal noise.
        noise = np.array(tiny_model.prior_flow.forward_and_log_det(codes[0])[0])
        np.testing.assert_allclose(noise.mean(0), 0, atol=0.25)
        np.testing.assert_allclose(np.cov(noise.T), np.eye(4), atol=0.35)

    def test_seeds_give_other_samples(self, tiny_model):
        assert (samples(tiny_model, 4, seed=0) != samples(tiny_model, 4, seed=1)).any()

    def test_samples_that_are_not_finite_are_refused(self, tiny_model):
        with pytest.raises(InversionError, match="not finite"):
            samples(tiny_model, 2, temperature=1e38)

    def test_progress_is_told(self, tiny_model, monkeypatch):
        monkeypatch.setattr(progress, "INTERVAL", 0.0)
        lines = []
        list(Drawn(tiny_model, None, 0, 4, lines.append).samples(10, 0.7))
        assert [line.partition(", about ")[0] for line in lines] == ["  4 of 10 samples", "  8 of 10 samples"]
        assert lines[1].endswith(" left")
