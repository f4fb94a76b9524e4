import pytest
import tensorflow as tf
from helpers.models import LEAST, random_images
from helpers.runs import FakeStep, read_log_without_timing, run_config

from tfdecouple.cli import main
from tfdecouple.metrics.bits_per_dim import ELBO, Bound
from tfdecouple.metrics.metric import Estimate
from tfdecouple.model import DecoupledModel
from tfdecouple.registry import DIAGNOSTICS
from tfdecouple.runs.run_folder import RunFolder
from tfdecouple.storage.checkpoints import CheckpointFolder
from tfdecouple.storage.files import write_json
from tfdecouple.training import evaluation, loop, train


@pytest.fixture
def stand_ins(monkeypatch):
    """A function that makes evaluations return the bits/dim `measure(split)`, by default 8; no pictures are written."""
    diagnostics = {"smallest_scale": 1.0, "worst_condition": 1.0}
    monkeypatch.setattr(evaluation, "draw_pictures", lambda inputs, *_: ({}, len(inputs.images)))
    monkeypatch.setitem(DIAGNOSTICS.entries, "model", lambda model, images: diagnostics)

    def fake(measure=lambda split: 8.0):
        def evaluate(batches, k=1, **_):
            one, zero = Estimate(1.0, 0.1), Estimate(0.0, 0.0)
            return Bound(ELBO, k, 5, measure(batches), 0.1, one, one, zero, zero)

        monkeypatch.setattr(loop, "BoundEvaluator", lambda *_: evaluate)
        monkeypatch.setattr(loop, "make_evaluation_batches", lambda source, split, **_: split)

    fake()
    return fake


@pytest.fixture
def fake_step(eager, monkeypatch):
    """The class FakeStep, which replaces TrainStep; other functions run eagerly, so that nothing is traced.

    FakeStep uses no images, so training batches are always the same, and the weights are not initialised from images.
    """
    batches = tf.data.Dataset.from_tensors({"image": random_images(8)}).repeat()
    monkeypatch.setattr(loop, "TrainStep", FakeStep)
    monkeypatch.setattr(loop, "make_training_batches", lambda *_, **__: batches)
    monkeypatch.setattr(DecoupledModel, "initialize", lambda model, *_, **__: model.initialized.assign(True))
    return FakeStep


class FakeRun:
    """A run of the smallest model, in the folder `path`, whose steps and evaluations compute nothing.

    `measure(f)` makes evaluations return the bits/dim f(split), and lists the measured splits in `measured`.
    """

    def __init__(self, images, path, monkeypatch, stand_ins):
        self.images, self.path, self._monkeypatch, self._stand_ins = images, path, monkeypatch, stand_ins
        self.measure(lambda split: 8.0)

    def measure(self, function):
        self.measured = []
        self._stand_ins(lambda split: self.measured.append(split) or function(split))

    def skip_steps(self, steps):
        """Makes the steps with these indices have a loss that is not finite."""
        self._monkeypatch.setattr(FakeStep, "bad", steps)

    def train(self, model=LEAST, **training):
        return train(run_config(self.images, model=model, **training), self.path).summary

    def call_train_program(self, **training):
        """Trains as `python train.py` does; returns the exit status."""
        path = self.path.parent / "config.json"
        write_json(path, run_config(self.images, model=LEAST, **training).to_dict())
        return main(["train", "--config", str(path), "--workdir", str(self.path)])

    def read_log(self):
        return read_log_without_timing(self.path)

    def read_summary(self):
        return RunFolder(self.path).read_summary()

    def list_checkpoint_steps(self, kind="step"):
        return CheckpointFolder(self.path / "checkpoints").list_checkpoint_steps(kind)


@pytest.fixture
def fake_run(image_folder, tmp_path, monkeypatch, stand_ins, fake_step):
    return FakeRun(image_folder, tmp_path / "run", monkeypatch, stand_ins)
