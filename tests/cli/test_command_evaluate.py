"""`python -m tfdecouple evaluate`: what it prints, writes down and refuses."""

import dataclasses
import json
import os
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import refusals
from helpers.densities import counted_batches
from helpers.models import SMALL, give_effect, random_images, strengthen_z
from helpers.runs import write_run

from tfdecouple.cli import main
from tfdecouple.config import DataConfig, TrainingConfig
from tfdecouple.data import open_source
from tfdecouple.metrics.bits_per_dim import BoundEvaluator
from tfdecouple.metrics.drawn_images import draw_image_indices
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.opened_run import load_model
from tfdecouple.runtime import progress

pytestmark = pytest.mark.usefixtures("eager")


def make_run(folder, images, **changes):
    keras.utils.set_random_seed(3)
    model = DecoupledModel(dataclasses.replace(SMALL, **changes))
    model.initialize(random_images(16))
    data = DataConfig(source=f"folder:{images}")
    return write_run(folder, strengthen_z(give_effect(model)), data=data, training=TrainingConfig(ema_decay=0.5))


@pytest.fixture(scope="module")
def made_run(image_folder, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "made", image_folder)


def command(*arguments):
    return main(["evaluate", *map(str, arguments)])


def refused(capsys, *arguments):
    return refusals.refused(capsys, lambda: command(*arguments))


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def known(made_run, image_folder):
    """Bits/dim of the test images by the evaluator, seed 4."""
    source = open_source(DataConfig(source=f"folder:{image_folder}"), (8, 8, 3))
    images = next(source.open_split("test").decode_examples().batch(5).as_numpy_iterator())["image"]
    return BoundEvaluator(load_model(made_run))(counted_batches(images, 5), seed=4)


class TestBitsPerDim:
    def test_table_and_file_give_the_figure_of_the_evaluator(self, made_run, tmp_path, capsys, known, monkeypatch):
        monkeypatch.setattr(progress, "_FIRST", 1e6)
        assert command("--run", made_run, "--seed", 4, "--batch-size", 2, "--out", tmp_path) == 0
        values = read(tmp_path, "bits_per_dim-test")
        assert values["bits_per_dim"] == pytest.approx(known.bits_per_dim, rel=1e-6)
        assert values["standard_error"] == pytest.approx(known.standard_error, rel=1e-5)
        assert values["reconstruction"]["mean"] == pytest.approx(known.reconstruction.mean, rel=1e-6)
        out, err = capsys.readouterr()
        assert f"{known.bits_per_dim:.4f} ± {known.standard_error:.4f} bits/dim: ELBO" in out
        assert f"results: {tmp_path}" in out
        # Quick work has no progress to report.
        assert err == ""

    def test_file_says_what_was_measured(self, made_run, image_folder, tmp_path):
        options = ("--split", "validation", "--images", 4, "--samples", 2, "--out", tmp_path)
        assert command("--run", made_run, *options) == 0
        values = read(tmp_path, "bits_per_dim-validation")
        source = open_source(DataConfig(source=f"folder:{image_folder}"), (8, 8, 3))
        expected = {"command": "evaluate", "run": str(made_run), "step": 1, "averaged_weights": True, "seed": 0}
        expected |= {"data": source.title, "source": f"folder:{image_folder}", "split": "validation", "k": 2}
        expected |= {"split_description": source.descriptions["validation"], "split_images": 6, "images": 4}
        assert {name: values[name] for name in expected} == expected
        # Only test images are counted.
        assert "test_evaluations" not in values and not list(tmp_path.rglob("*.log"))

    def test_drawn_images_get_the_figures_that_they_have_among_all(self, made_run, image_folder, tmp_path, known):
        assert command("--run", made_run, "--images", 3, "--batch-size", 2, "--seed", 4, "--out", tmp_path) == 0
        source = open_source(DataConfig(source=f"folder:{image_folder}"), (8, 8, 3))
        drawn = np.sort(draw_image_indices(source, "test", 3, 4))
        assert drawn.tolist() != [0, 1, 2]
        every = next(source.open_split("test").decode_examples().batch(5).as_numpy_iterator())
        batch = {name: every[name][drawn] for name in ("image", "index")} | {"weight": np.ones(3, np.float32)}
        expected = BoundEvaluator(load_model(made_run))(tf.data.Dataset.from_tensors(batch), seed=4)
        values = read(tmp_path, "bits_per_dim-test")
        assert values["images"] == 3 and values["split_images"] == 5
        assert values["bits_per_dim"] == pytest.approx(expected.bits_per_dim, rel=1e-6)
        assert values["bits_per_dim"] != pytest.approx(known.bits_per_dim, rel=1e-6)

    def test_other_data_than_those_of_the_run(self, made_run, image_folder, tmp_path):
        for split in ("train", "validation", "test"):
            shutil.copytree(image_folder / "validation", tmp_path / "data" / split)
        assert command("--run", made_run, "--data", f"folder:{tmp_path / 'data'}", "--out", tmp_path) == 0
        values = read(tmp_path, "bits_per_dim-test")
        assert values["images"] == 6 and values["source"] == f"folder:{tmp_path / 'data'}"
        # The same images, in the same places, in the run's own data.
        assert command("--run", made_run, "--split", "validation", "--out", tmp_path) == 0
        assert read(tmp_path, "bits_per_dim-validation")["bits_per_dim"] == pytest.approx(values["bits_per_dim"])


class TestEvaluations:
    @pytest.fixture
    def run(self, made_run, tmp_path):
        """The run as if nobody had evaluated it."""
        return shutil.copytree(made_run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))

    def test_of_test_images_have_a_line_each_wherever_results_go(self, run, tmp_path, capsys):
        (run / "evaluation").mkdir()
        (run / "evaluation" / "test_evaluations.log").write_text("other data\n")
        for out in ("a", "b"):
            assert command("--run", run, "--images", 1, "--out", tmp_path / out) == 0
        _, first, second = (run / "evaluation" / "test_evaluations.log").read_text().splitlines()
        assert first == second and read(tmp_path / "b", "bits_per_dim-test")["test_evaluations"] == 2
        assert not list(tmp_path.glob("[ab]/*.log"))
        out = capsys.readouterr().out
        assert "with this one: 1\n" in out and "with this one: 2\n" in out

    def test_of_a_run_that_may_not_be_written_are_counted_beside_the_results(self, run, tmp_path, monkeypatch):
        # The superuser, who may run the tests, can write everywhere.
        may = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: "run" not in str(path).split("/")[-2:] and may(path, mode))
        assert command("--run", run, "--images", 1, "--out", tmp_path / "out") == 0
        assert (tmp_path / "out" / "test_evaluations.log").exists() and not (run / "evaluation").exists()


class TestMore:
    def test_importance_weighted_bound_and_use_of_z(self, made_run, tmp_path, capsys):
        assert command("--run", made_run, "--importance", 4, "--latent-use", "--seed", 4, "--out", tmp_path) == 0
        elbo, bound, use = (read(tmp_path, f"{name}-test") for name in ("bits_per_dim", "importance", "latent_use"))
        assert bound["bound"] == "importance-weighted" and bound["k"] == 4 and bound["images"] == 5
        assert bound["gain"]["mean"] > 0 and 1 <= bound["effective_draws"] <= 4
        assert use["images"] == 5 and use["prior"] == "flow" and use["seed"] == 4 and len(use["information"]) == 4
        assert use["bits_per_dim"]["mean"] == pytest.approx(elbo["bits_per_dim"], rel=1e-6)
        out = capsys.readouterr().out
        assert f"{bound['bits_per_dim']:.4f}" in out
        assert f"active units         {use['active_units']} of 4" in out
        assert f"{use['shuffling_costs']['mean']:.4f} ± " in out

    def test_single_image_has_no_error_and_its_file_is_json(self, made_run, tmp_path, capsys):
        assert command("--run", made_run, "--images", 1, "--out", tmp_path) == 0
        text = (tmp_path / "bits_per_dim-test.json").read_text()
        assert "NaN" not in text and json.loads(text)["standard_error"] is None
        assert "±" not in capsys.readouterr().out


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--images", -1], "--images is -1; it must be at least 0"),
            (["--frechet-images", 1], "--frechet-images is 1; it must be at least 2"),
            (["--seed", 2**31], "--seed is 2147483648; it must be at most 2,147,483,647"),
            (["--temperature", "nan"], "--temperature is nan"),
            (["--frechet", "no/such.onnx"], "there is no extractor file no/such.onnx"),
            (["--image-statistics", "--split", "train"], "--split is 'train', which --image-statistics is fitted on"),
            (["--split", "tset"], "argument --split: invalid choice: 'tset'"),
            (["--data", "folder:no/such"], "no/such"),
        ],
    )
    def test_mistake_is_one_line(self, made_run, capsys, tmp_path, arguments, message):
        assert message in refused(capsys, "--run", made_run, "--out", tmp_path / "out", *arguments)

    def test_use_of_z_of_a_model_without_z(self, image_folder, tmp_path, capsys):
        run = make_run(tmp_path / "run", image_folder, conditioning="none")
        assert "has no z" in refused(capsys, "--run", run, "--latent-use")
        # Its bits/dim can be had.
        assert command("--run", run, "--importance", 2) == 0
        assert read(run / "evaluation", "importance-test")["kl"]["mean"] == 0

    def test_labels_of_a_model_that_knows_none_are_refused_before_anything_is_measured(
        self, made_run, tmp_path, capsys
    ):
        message = refused(capsys, "--run", made_run, "--out", tmp_path / "out", "--classify")
        assert "--classify needs a model that knows labels" in message
        assert not (tmp_path / "out").exists()

    def test_folder_that_cannot_be_written(self, made_run, tmp_path, capsys):
        (tmp_path / "file").touch()
        error = refused(capsys, "--run", made_run, "--images", 1, "--out", tmp_path / "file" / "out")
        assert "cannot write " in error and "--out" in error
