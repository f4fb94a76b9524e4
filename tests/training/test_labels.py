import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers.commands import command, refuse
from helpers.models import random_images
from helpers.numbered import write_images
from helpers.places import copy_once, make_once
from helpers.refusals import message_of
from helpers.runs import read_log, run_config, write_run
from helpers.variants import OF_CLASSES, SMALLEST, equal, fresh
from PIL import Image

from tfdecouple.errors import ConfigError, DataError
from tfdecouple.runs.opened_run import load_model
from tfdecouple.training import train
from tfdecouple.training.step import TrainingState
from tfdecouple.training.training_folder import TrainingFolder

pytestmark = pytest.mark.usefixtures("eager_file")

NAMES = ["a", "b", "c"]
CODED, PRIOR = OF_CLASSES["classes"], OF_CLASSES["prior-classes"]


@pytest.fixture(scope="module")
def labelled_folder(tmp_path_factory):
    """A folder of 21 images for training, 6 for validation and 6 for test, of three labels in turn."""

    def make(folder):
        images = random_images(33, 4)
        for split, part in {"train": images[:21], "validation": images[21:27], "test": images[27:]}.items():
            for label, name in enumerate(NAMES):
                write_images(folder / split / name, part[label::3])

    return make_once(tmp_path_factory, "labelled", make)


def config_of(folder, model=CODED, **training):
    options = {"steps": 2, "evaluate_every": 2, "checkpoint_every": 2, "pictures": 0, **training}
    return run_config(folder, model=model, **options)


@pytest.fixture(scope="module")
def labelled_run(labelled_folder, eager_file, tmp_path_factory):
    """The run folder of a finished run. Do not change it."""

    def make(folder):
        train(config_of(labelled_folder, micro_batches=2), folder / "run")

    return copy_once(tmp_path_factory, "labelled-run", make) / "run"


class TestRun:
    def test_kl_of_class_codes_is_the_information_of_the_label(self, labelled_run, labelled_folder):
        row = read_log(labelled_run)["validation", 2]
        shares = np.array(CODED.class_probabilities) / 8
        assert row["kl"] == pytest.approx(-np.log(shares).mean(), rel=1e-5)
        # Of a batch with labels drawn without replacement it lies between the ends.
        assert -np.log(shares.max()) < read_log(labelled_run)["train", 2]["kl"] < -np.log(shares.min())

    def test_evaluate_uses_the_labels_of_images(self, labelled_run, labelled_folder, tmp_path, capsys):
        options = ("--split", "validation", "--out", tmp_path, "--classify", "--importance", 2)
        command("evaluate", "--run", labelled_run, *options)
        report = json.loads((tmp_path / "classify-validation.json").read_text())
        model = load_model(labelled_run)
        paths = sorted((labelled_folder / "validation").glob("*/*.png"))
        images = np.stack([np.asarray(Image.open(path)) for path in paths])
        labels = [NAMES.index(path.parent.name) for path in paths]
        right = np.argmax(model.classify(images), 1) == labels
        assert report["images"] == 6 and report["accuracy"] == pytest.approx(right.mean())
        assert report["chance"] == pytest.approx(1 / 3) and (tmp_path / "classify-validation.png").is_file()
        measured = json.loads((tmp_path / "bits_per_dim-validation.json").read_text())
        assert measured["kl"]["mean"] == pytest.approx(-np.log(np.array([1, 2, 5]) / 8).mean(), rel=1e-5)
        assert "classified right" in capsys.readouterr().out

    def test_sample_command_draws_images_of_labels_by_name(self, labelled_run, tmp_path, capsys):
        options = ("--run", labelled_run, "--out", tmp_path, "--count")
        command("sample", *options, 2, "--labels", "c", "a", "--temperatures", 0.5)
        facts = json.loads((tmp_path / "sample-0.5.json").read_text())
        assert set(facts["rows"]) == {"a", "c"} and (tmp_path / "sample-0.5.png").is_file()
        capsys.readouterr()
        assert "'d'" in refuse(capsys, "sample", *options, 2, "--labels", "d")
        command("reconstruct", *options, 1)
        for name in ("switch", "interpolate"):
            command(name, *options, 1)


class TestRefusals:
    @pytest.mark.parametrize(("model", "count"), [(CODED, 4), (PRIOR, 2)])
    def test_training_refuses_another_number_of_labels(self, model, count, labelled_folder, tmp_path):
        model = dataclasses.replace(model, classes=count, class_probabilities=())
        message = message_of(DataError, lambda: train(config_of(labelled_folder, model), tmp_path / "run"))
        assert all(part in message for part in ("3 labels", f"model.classes is {count}", "model.classes=3"))
        assert not (tmp_path / "run").exists()

    def test_training_refuses_images_without_labels(self, image_folder, labelled_folder, tmp_path):
        images = shutil.copytree(labelled_folder, tmp_path / "images")
        write_images(images / "train", random_images(8, 4))
        for folder, words in ((image_folder, "has no labels"), (images, "not from 0 to 2")):
            config = config_of(folder)
            assert words in message_of(DataError, lambda config=config: train(config, tmp_path / "run"))


class TestStart:
    @pytest.mark.parametrize("model", [PRIOR, CODED])
    def test_init_from_accepts_a_run_without_labels(self, model, labelled_folder, tmp_path):
        plain_run, config = write_run(tmp_path / "plain", fresh(SMALLEST)), config_of(labelled_folder, model)
        state = TrainingState(config)
        before = {name: variable.numpy() for name, variable in state.model.named_variables().items()}
        TrainingFolder(tmp_path / "run", config).load_initial_weights(state, str(plain_run), ())
        theirs = load_model(plain_run).named_variables()
        for name, variable in state.model.named_variables().items():
            equal(variable, theirs[name] if name in theirs else before[name])
        new = {name.partition("/")[0] for name in state.model.named_variables() if name not in theirs}
        assert new == {"prior_affine" if model is PRIOR else "class_codes"}

    def test_init_from_refuses_a_run_with_other_labels(self, labelled_folder, tmp_path):
        run = write_run(tmp_path / "theirs", fresh(PRIOR))
        config = config_of(labelled_folder, PRIOR)
        directory, state = TrainingFolder(tmp_path / "run", config), TrainingState(config)
        # An imported run has no names of labels.
        directory.load_initial_weights(state, str(run), ("a", "b", "c"))
        (run / "labels.json").write_text(json.dumps(["b", "a", "c"]))
        directory.load_initial_weights(state, str(run), ("b", "a", "c"))
        message = message_of(ConfigError, lambda: directory.load_initial_weights(state, str(run), ("a", "b", "c")))
        assert "the label 'b' where the images have 'a'" in message
