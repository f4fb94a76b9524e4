"""`evaluate` with all that it measures, none of it replaced; and interrupted."""

import json
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
from helpers.evaluations import compute_mean_colours, write_onnx
from helpers.models import SMALL, give_effect, random_images, strengthen_z
from helpers.places import ROOT, user_environment
from helpers.refusals import refused
from helpers.runs import write_run
from PIL import Image

from tfdecouple.cli import main
from tfdecouple.config import DataConfig, TrainingConfig
from tfdecouple.data import load_images, open_source
from tfdecouple.metrics import classification, linear_classifier
from tfdecouple.metrics.bits_per_dim import BoundEvaluator
from tfdecouple.metrics.frechet import draw_model_samples
from tfdecouple.metrics.outliers import MADE, SCORES, OutlierScorer, compare_outlier_scores, make_outlier_images
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.opened_run import load_model

# But what the fixture of a class runs is traced, as users' programs are.
pytestmark = pytest.mark.usefixtures("eager")

COUNTS = {"train": 60, "validation": 6, "test": 24}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A folder of dark and light images, whose class any classifier can tell."""
    folder = tmp_path_factory.mktemp("labelled")
    for split, count in COUNTS.items():
        for number, image in enumerate(random_images(count, seed=count) // 3):
            light = number % 2
            place = folder / split / ("dark", "light")[light]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image + np.uint8(120 * light)).save(place / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def run(labelled, tmp_path_factory):
    random.seed(0)
    model = DecoupledModel(SMALL)
    model.initialize(random_images(32))
    model = strengthen_z(give_effect(model))
    data = DataConfig(source=f"folder:{labelled}")
    return write_run(
        tmp_path_factory.mktemp("runs") / "run", model, data=data, training=TrainingConfig(evaluation_batch_size=8)
    )


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    return write_onnx(tmp_path_factory.mktemp("extractor") / "colours.onnx")


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def distance(*images):
    """The Frechet distance of two sets of images by the formula as it is usually written."""
    features = [compute_mean_colours(each) for each in images]
    a, b = (np.cov(rows.T) for rows in features)
    shift = features[0].mean(0) - features[1].mean(0)
    return np.square(shift).sum() + np.trace(a + b - 2 * np.real(scipy.linalg.sqrtm(a @ b)))


def evaluate(run, out, *more):
    return main(["evaluate", "--run", str(run), "--out", str(out), *map(str, more)])


class TestAllMetrics:
    @pytest.fixture(scope="class")
    def kinds(self, image_folder):
        return (*MADE, f"folder:{image_folder}")

    @pytest.fixture(scope="class")
    def out(self, run, extractor, kinds, tmp_path_factory):
        out = tmp_path_factory.mktemp("evaluation")
        more = ["--probe", "--frechet", extractor, "--frechet-images", 40, "--image-statistics", "--seed", 3]
        assert evaluate(run, out, "--split", "validation", *more, "--outliers", *kinds) == 0
        return out

    @pytest.mark.parametrize("name", ["probe", "frechet"])
    def test_test_images_are_looked_at_whatever_the_split(self, out, name):
        values = read(out, name)
        assert values["test_evaluations"] == 1 and "split" not in values and values["step"] == 1

    def test_probe_tells_the_classes(self, out):
        values = read(out, "probe")
        assert (values["train_images"], values["test_images"], values["classes"]) == (60, 24, 2)
        assert [row["features"] for row in values["results"]] == ["pixels", "pixels, PCA", "z", "v", "v, PCA"]
        pixels = values["results"][0]["classifiers"]
        assert {kind: result["accuracy"] for kind, result in pixels.items()} == dict.fromkeys(pixels, 1.0)
        assert values["chance"] == 0.5
        assert np.sum(values["confusion"]["counts"]) == 24
        with Image.open(out / "probe.png") as picture:
            assert picture.format == "PNG"
            picture.load()

    def test_statistics_of_images_are_of_the_split(self, out):
        values = read(out, "image_statistics-validation")
        assert (values["split"], values["train_images"], values["images"]) == ("validation", 60, 6)
        for name, found in values["statistics"].items():
            assert set(found["r2"]) == {"z", "v, PCA", "pixels, PCA"}, name
            assert 0 <= found["switch"]["nearer_to_z"]["mean"] <= 1
        # Dark and light images: what the pixels tell at once.
        assert values["statistics"]["brightness"]["r2"]["pixels, PCA"]["mean"] > 0.9

    def test_distance_is_the_formula_s(self, out, run, labelled):
        values = read(out, "frechet")
        assert (values["samples"], values["test_images"], values["floor_images"]) == (40, 24, 40)
        assert values["features"] == 3 and values["extractor"]["file"] == "colours.onnx"
        source = open_source(DataConfig(source=f"folder:{labelled}"), (8, 8, 3))
        real = {split: load_images(source, split, count)[0] for split, count in COUNTS.items()}
        samples = np.concatenate(list(draw_model_samples(load_model(run), 40, 1.0, 3, 8)))
        assert values["distance"] == pytest.approx(distance(samples, real["test"]), rel=1e-4)
        drawn = np.random.default_rng(3).permutation(60)[:40]
        assert values["floor"] == pytest.approx(distance(real["train"][drawn], real["test"]), rel=1e-4)
        # Noise in the place of images is far from them.
        assert values["distance"] > 2 * values["floor"]

    def test_outliers_are_told_by_the_scores_of_each_image(self, out, kinds):
        values = read(out, "outliers-validation")
        assert list(values["outliers"]) == list(kinds) and values["scores"] == SCORES
        scores = {
            kind: {name: np.array(each) for name, each in of_kind.items()}
            for kind, of_kind in values["per_image"].items()
        }
        known = scores["validation"]
        for kind, found in values["outliers"].items():
            assert found["images"] == len(scores[kind]["index"]) == found["known_images"] == 6
            for name, detection in found["detection"].items():
                both = (np.abs(each[name]) if name == "shell" else each[name] for each in (known, scores[kind]))
                assert detection == json.loads(json.dumps(compare_outlier_scores(*both, seed=3))), (kind, name)
        bits = read(out, "bits_per_dim-validation")["bits_per_dim"]
        assert known["bits_per_dim"].mean() == pytest.approx(bits, rel=1e-5)
        assert (out / "outliers-validation.png").is_file()

    def test_scores_of_an_image_do_not_depend_on_its_batch(self, out, run, labelled):
        scores = read(out, "outliers-validation")["per_image"]["validation"]
        images, _ = load_images(open_source(DataConfig(source=f"folder:{labelled}"), (8, 8, 3)), "validation", 6)
        right, order = (
            OutlierScorer(load_model(run), 1, seed=3)(images[:4], np.arange(4)),
            np.argsort(scores["index"])[:4],
        )
        for name in SCORES:
            np.testing.assert_allclose(np.array(scores[name])[order], right[name], rtol=1e-4, atol=1e-4, err_msg=name)


class TestMadeImages:
    @pytest.mark.parametrize("kind", MADE)
    def test_depend_on_their_numbers_and_not_on_their_batch(self, kind):
        images = random_images(50)
        made = make_outlier_images(kind, images, np.arange(50), 1)
        assert made.shape == images.shape and made.dtype == np.uint8 and len(np.unique(made, axis=0)) == 50
        np.testing.assert_array_equal(make_outlier_images(kind, images[2:], np.arange(2, 50), 1), made[2:])
        assert not np.array_equal(make_outlier_images(kind, images, np.arange(50), 2), made)

    def test_are_noise_one_colour_and_pixels_in_another_order(self):
        images = random_images(50)
        noise, flat, permuted = (make_outlier_images(kind, images, np.arange(50), 1) for kind in MADE)
        assert noise.mean() == pytest.approx(127.5, abs=3) and np.ptp(flat, (1, 2)).max() == 0
        for before, after in zip(images, permuted, strict=True):
            assert not np.array_equal(before, after)
            np.testing.assert_array_equal(*(np.sort(one.reshape(-1, 3), 0) for one in (before, after)))


@pytest.mark.parametrize(
    ("kind", "message"), [("noisy", "did you mean noise"), ("folder:/no/such", "there is no folder /no/such")]
)
def test_what_is_no_source_of_outliers_is_refused(run, tmp_path, capsys, kind, message):
    assert message in refused(capsys, lambda: evaluate(run, tmp_path, "--outliers", kind))


class TestInterrupted:
    def test_in_the_midst_of_the_probe(self, run, tmp_path, monkeypatch, capsys):
        (tmp_path / "probe.json").write_text('{"earlier": true}')
        (tmp_path / "probe.png").write_bytes(b"earlier")
        fits = []

        def fit(*arguments):
            fits.append(arguments)
            if len(fits) == 3:
                raise KeyboardInterrupt
            return linear_classifier.fit_classifier(*arguments)

        monkeypatch.setattr(classification, "fit_classifier", fit)
        assert evaluate(run, tmp_path, "--images", 20, "--probe") == 130
        out, err = capsys.readouterr()
        assert err.splitlines()[-1] == f"error: interrupted; kept in {tmp_path}: bits_per_dim-test.json"
        assert "results:" not in out
        # What an earlier evaluation left is as it was, and nothing lies there half written.
        assert read(tmp_path, "probe") == {"earlier": True} and (tmp_path / "probe.png").read_bytes() == b"earlier"
        assert {path.name for path in tmp_path.iterdir()} == {
            "bits_per_dim-test.json",
            "probe.json",
            "probe.png",
        }

    @pytest.mark.parametrize("became", [KeyboardInterrupt(), RuntimeError("INTERNAL: KeyboardInterrupt: ")])
    def test_before_anything_was_measured(self, run, tmp_path, monkeypatch, capsys, became):
        def interrupted(*arguments, **options):
            raise became

        monkeypatch.setattr(BoundEvaluator, "__call__", interrupted)
        assert evaluate(run, tmp_path / "out") == 130
        assert capsys.readouterr().err.endswith("error: interrupted; nothing was measured yet\n")
        assert not (tmp_path / "out").exists()

    @pytest.mark.slow
    def test_by_a_signal(self, run, tmp_path, forked):
        command = [sys.executable, "-m", "tfdecouple", "evaluate", "--run", run, "--out", tmp_path, "--images", 4]
        command += ["--importance", 10**8]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(list(map(str, command)), cwd=ROOT, env=user_environment(), **options) as process:
            # Progress with the second figure: the first is on the disk.
            for line in process.stderr:
                if line.startswith("importance-weighted"):
                    break
            process.send_signal(signal.SIGINT)
            err = process.communicate()[1]
        assert process.returncode == 130, err
        assert err.splitlines()[-1] == f"error: interrupted; kept in {tmp_path}: bits_per_dim-test.json"
        assert "Traceback" not in err
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"bits_per_dim-test.json"}
        assert read(tmp_path, "bits_per_dim-test")["images"] == 4
