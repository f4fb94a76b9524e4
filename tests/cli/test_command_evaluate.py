import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf
from helpers.commands import command, refuse
from helpers.densities import counted_batches
from helpers.evaluations import compute_mean_colours, write_onnx
from helpers.models import SMALL, give_effect, random_images, save_images, strengthen_z
from helpers.runs import write_run

from tfdecouple.config import DataConfig, TrainingConfig
from tfdecouple.data.batches import load_images
from tfdecouple.data.drawn_images import draw_image_indices
from tfdecouple.data.sources import open_source
from tfdecouple.metrics import classification
from tfdecouple.metrics.bits_per_dim import BoundEvaluator
from tfdecouple.metrics.frechet import draw_model_samples
from tfdecouple.metrics.outliers import MADE, compare_outlier_scores, make_outlier_images
from tfdecouple.model import DecoupledModel
from tfdecouple.model.outlier_scores import SCORES
from tfdecouple.runs.opened_run import load_model

# But what the fixture of a class runs is traced, as users' programs are.
pytestmark = pytest.mark.usefixtures("eager")


def make_run(folder, images, **changes):
    keras.utils.set_random_seed(3)
    model = DecoupledModel(dataclasses.replace(SMALL, **changes))
    model.initialize(random_images(16))
    data = DataConfig(source=f"folder:{images}")
    training = TrainingConfig(ema_decay=0.5, evaluation_batch_size=8)
    return write_run(folder, strengthen_z(give_effect(model)), data=data, training=training)


@pytest.fixture(scope="module")
def made_run(image_folder, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "made", image_folder)


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def source(image_folder):
    return open_source(DataConfig(source=f"folder:{image_folder}"), (8, 8, 3))


@pytest.fixture(scope="module")
def known(made_run, source):
    """Bits/dim of the test images by the evaluator, seed 4."""
    return BoundEvaluator(load_model(made_run))(counted_batches(load_images(source, "test", 5)[0], 5), seed=4)


class TestBitsPerDim:
    def test_evaluate_prints_and_writes_bits_per_dim_importance_weighted_bound_and_use_of_z(
        self, made_run, tmp_path, capsys, known, quiet
    ):
        options = ("--importance", 4, "--latent-use", "--seed", 4, "--batch-size", 2, "--out", tmp_path)
        command("evaluate", "--run", made_run, *options)
        elbo, bound, use = (read(tmp_path, f"{name}-test") for name in ("bits_per_dim", "importance", "latent_use"))
        assert elbo["bits_per_dim"] == pytest.approx(known.bits_per_dim, rel=1e-6)
        assert elbo["standard_error"] == pytest.approx(known.standard_error, rel=1e-5)
        assert elbo["reconstruction"]["mean"] == pytest.approx(known.reconstruction.mean, rel=1e-6)
        assert bound["bound"] == "importance-weighted" and bound["k"] == 4 and bound["images"] == 5
        assert bound["gain"]["mean"] > 0
        assert use["images"] == 5 and use["prior"] == "flow" and use["seed"] == 4 and len(use["kl_to_normal"]) == 4
        assert use["bits_per_dim"]["mean"] == pytest.approx(elbo["bits_per_dim"], rel=1e-6)
        out, err = capsys.readouterr()
        for printed in (
            f"{known.bits_per_dim:.4f} ± {known.standard_error:.4f} bits/dim: ELBO",
            f"{bound['bits_per_dim']:.4f}",
            f"active units         {use['active_units']} of 4",
            f"{use['shuffling_costs']['mean']:.4f} ± ",
            f"results: {tmp_path}",
        ):
            assert printed in out
        # Quick work has no progress to report.
        assert err == ""

    def test_json_file_names_run_data_and_split(self, made_run, image_folder, source, tmp_path):
        options = ("--split", "validation", "--images", 4, "--samples", 2, "--out", tmp_path)
        command("evaluate", "--run", made_run, *options)
        values = read(tmp_path, "bits_per_dim-validation")
        expected = {"command": "evaluate", "run": str(made_run), "step": 1, "averaged_weights": True, "seed": 0}
        expected |= {"data": source.title, "source": f"folder:{image_folder}", "split": "validation", "k": 2}
        expected |= {"split_description": source.descriptions["validation"], "split_images": 6, "images": 4}
        assert {name: values[name] for name in expected} == expected
        # Only test images are counted.
        assert "test_evaluations" not in values and not list(tmp_path.rglob("*.log"))

    def test_drawn_images_have_the_same_bits_per_dim_as_among_all_images(self, made_run, source, tmp_path, known):
        command("evaluate", "--run", made_run, "--images", 3, "--batch-size", 2, "--seed", 4, "--out", tmp_path)
        drawn = np.sort(draw_image_indices(source, "test", 3, 4))
        assert drawn.tolist() != [0, 1, 2]
        batch = {"image": load_images(source, "test", 5)[0][drawn], "index": drawn, "weight": np.ones(3, np.float32)}
        expected = BoundEvaluator(load_model(made_run))(tf.data.Dataset.from_tensors(batch), seed=4)
        values = read(tmp_path, "bits_per_dim-test")
        assert values["images"] == 3 and values["split_images"] == 5
        assert values["bits_per_dim"] == pytest.approx(expected.bits_per_dim, rel=1e-6)
        assert values["bits_per_dim"] != pytest.approx(known.bits_per_dim, rel=1e-6)

    def test_each_evaluation_of_test_images_is_counted_in_the_run(self, made_run, tmp_path, capsys):
        run = shutil.copytree(made_run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
        (run / "evaluation").mkdir()
        (run / "evaluation" / "test_evaluations.log").write_text("other data\n")
        for out in ("a", "b"):
            command("evaluate", "--run", run, "--images", 1, "--out", tmp_path / out)
        _, first, second = (run / "evaluation" / "test_evaluations.log").read_text().splitlines()
        assert first == second and read(tmp_path / "b", "bits_per_dim-test")["test_evaluations"] == 2
        assert not list(tmp_path.glob("[ab]/*.log"))
        out = capsys.readouterr().out
        assert "with this one: 1\n" in out and "with this one: 2\n" in out

    def test_evaluate_refuses_metrics_that_the_model_lacks_before_measuring(self, image_folder, tmp_path, capsys):
        run, out = make_run(tmp_path / "run", image_folder, conditioning="none"), tmp_path / "out"
        for option, says in (("--latent-use", "has no z"), ("--classify", "needs a model with labels")):
            assert says in refuse(capsys, "evaluate", "--run", run, "--out", out, option)
        assert not out.exists()
        command("evaluate", "--run", run, "--importance", 2)
        assert read(run / "evaluation", "importance-test")["kl"]["mean"] == 0


COUNTS = {"train": 60, "validation": 6, "test": 24}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A folder of dark and light images, whose class any classifier can tell."""
    images = {
        f"{split}/{('dark', 'light')[number % 2]}/{number:02}.png": image // 3 + np.uint8(120 * (number % 2))
        for split, count in COUNTS.items()
        for number, image in enumerate(random_images(count, seed=count))
    }
    return save_images(tmp_path_factory.mktemp("labelled"), images)


@pytest.fixture(scope="module")
def run(labelled, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", labelled)


def distance(*images):
    """The Frechet distance of two sets of images by the formula as it is usually written."""
    features = [compute_mean_colours(each) for each in images]
    a, b = (np.cov(rows.T) for rows in features)
    shift = features[0].mean(0) - features[1].mean(0)
    return np.square(shift).sum() + np.trace(a + b - 2 * np.real(scipy.linalg.sqrtm(a @ b)))


class TestAllMetrics:
    @pytest.fixture(scope="class")
    def kinds(self, image_folder):
        return (*MADE, f"folder:{image_folder}")

    @pytest.fixture(scope="class")
    def out(self, run, kinds, tmp_path_factory):
        out, extractor = (tmp_path_factory.mktemp(name) for name in ("evaluation", "extractor"))
        more = ["--probe", "--frechet", write_onnx(extractor / "colours.onnx"), "--frechet-images", 40, "--seed", 3]
        more += ["--image-statistics", "--outliers", *kinds]
        command("evaluate", "--run", run, "--out", out, "--split", "validation", *more)
        return out

    def test_frechet_distance_and_floor_equal_the_formula(self, out, run, labelled):
        values = read(out, "frechet-test")
        assert (values["samples"], values["images"], values["floor_images"]) == (40, 24, 40)
        assert values["features"] == 3 and values["extractor"]["file"] == "colours.onnx"
        source = open_source(DataConfig(source=f"folder:{labelled}"), (8, 8, 3))
        real = {split: load_images(source, split, count)[0] for split, count in COUNTS.items()}
        samples = np.concatenate(list(draw_model_samples(load_model(run), 40, 1.0, 3)))
        assert values["distance"] == pytest.approx(distance(samples, real["test"]), rel=1e-4)
        drawn = np.random.default_rng(3).permutation(60)[:40]
        assert values["floor"] == pytest.approx(distance(real["train"][drawn], real["test"]), rel=1e-4)
        assert values["distance"] > 2 * values["floor"]

    def test_outlier_detection_is_computed_from_the_scores_of_each_image(self, out, kinds):
        values = read(out, "outliers-validation")
        assert list(values["outliers"]) == list(kinds) and values["scores"] == SCORES
        scores = values["per_image"]
        known = scores["validation"]
        for kind, found in values["outliers"].items():
            assert found["images"] == len(scores[kind]["index"]) == found["known_images"] == 6
            for name, detection in found["detection"].items():
                both = (np.array(each[name]) for each in (known, scores[kind]))
                both = map(np.abs, both) if name == "shell" else both
                assert detection == json.loads(json.dumps(compare_outlier_scores(*both, seed=3))), (kind, name)
        bits = read(out, "bits_per_dim-validation")["bits_per_dim"]
        assert np.mean(known["bits_per_dim"]) == pytest.approx(bits, rel=1e-5)
        assert (out / "outliers-validation.png").is_file()


@pytest.mark.parametrize("kind", MADE)
def test_synthetic_outliers_depend_on_index_and_seed_alone(kind):
    images = random_images(50)
    made = make_outlier_images(kind, images, np.arange(50), 1)
    assert made.shape == images.shape and made.dtype == np.uint8 and len(np.unique(made, axis=0)) == 50
    np.testing.assert_array_equal(make_outlier_images(kind, images[2:], np.arange(2, 50), 1), made[2:])
    assert not np.array_equal(make_outlier_images(kind, images, np.arange(50), 2), made)


class TestInterruption:
    def test_interrupted_probe_keeps_earlier_results(self, run, tmp_path, monkeypatch, capsys):
        (tmp_path / "probe-test.json").write_text('{"earlier": true}')
        (tmp_path / "probe-test.png").write_bytes(b"earlier")
        fits, fit_classifier = [], classification.fit_classifier

        def fit(*arguments):
            fits.append(arguments)
            if len(fits) == 3:
                raise KeyboardInterrupt
            return fit_classifier(*arguments)

        monkeypatch.setattr(classification, "fit_classifier", fit)
        command("evaluate", "--run", run, "--out", tmp_path, "--images", 20, "--probe", status=130)
        out, err = capsys.readouterr()
        assert err.splitlines()[-1] == f"interrupted; kept in {tmp_path}: bits_per_dim-test.json"
        assert "results:" not in out
        assert read(tmp_path, "probe-test") == {"earlier": True}
        assert (tmp_path / "probe-test.png").read_bytes() == b"earlier"
        names = {"bits_per_dim-test.json", "probe-test.json", "probe-test.png"}
        assert {path.name for path in tmp_path.iterdir()} == names

    @pytest.mark.parametrize("became", [KeyboardInterrupt(), RuntimeError("INTERNAL: KeyboardInterrupt: ")])
    def test_interruption_before_the_first_metric_leaves_no_folder(self, run, tmp_path, monkeypatch, capsys, became):
        def interrupted(*arguments, **options):
            raise became

        monkeypatch.setattr(BoundEvaluator, "__call__", interrupted)
        command("evaluate", "--run", run, "--out", tmp_path / "out", status=130)
        assert capsys.readouterr().err.endswith("interrupted; nothing was measured yet\n")
        assert not (tmp_path / "out").exists()
