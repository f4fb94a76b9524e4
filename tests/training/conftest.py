"""Fixtures for the tests of training: stand-ins for evaluations and steps."""

import pytest
from helpers.runs import FakeStep

from tfdecouple.metrics.bits_per_dim import ELBO, Bound
from tfdecouple.metrics.metric import Estimate
from tfdecouple.model import gradient
from tfdecouple.training import evaluation, loop


@pytest.fixture
def stand_ins(monkeypatch):
    """A function that makes evaluations return the bits/dim `measure(split)`, by default 8; no pictures are written."""
    diagnostics = {"smallest_scale": 1.0, "worst_condition": 1.0}
    monkeypatch.setattr(evaluation, "save_pictures", lambda inputs, *_: len(inputs.images))
    monkeypatch.setattr(evaluation, "DIAGNOSTICS", [lambda model, images: diagnostics])

    def fake(measure=lambda split: 8.0):
        class FakeEvaluator:
            def __init__(self, *_):
                pass

            def __call__(self, batches, k=1, **_):
                one, zero = Estimate(1.0, 0.1), Estimate(0.0, 0.0)
                return Bound(ELBO, k, 5, measure(batches), 0.1, one, one, zero, zero, 1.0)

        monkeypatch.setattr(loop, "BoundEvaluator", FakeEvaluator)
        monkeypatch.setattr(loop, "make_evaluation_batches", lambda source, split, **_: split)

    fake()
    return fake


@pytest.fixture
def fake_step(eager, monkeypatch):
    """The class FakeStep, which replaces TrainStep; other functions run eagerly, so that nothing is traced."""
    monkeypatch.setattr(loop, "TrainStep", FakeStep)
    return FakeStep


@pytest.fixture(scope="module")
def weights_of_both_sizes():
    """Lowers the limit of small weights to 64 numbers, so that a tiny model has small and large weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient, "_LARGEST_JOINED_SIZE", 64)
        yield
