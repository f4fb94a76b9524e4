"""Fixtures of the tests of training."""

import pytest
from helpers.runs import FakeStep

from tfdecouple.metrics.base import Estimate
from tfdecouple.metrics.bits_per_dim import ELBO, Bound
from tfdecouple.model import gradient
from tfdecouple.training import evaluation, loop


@pytest.fixture
def stand_ins(monkeypatch):
    """Replaces what takes time at evaluations; returns a function that makes one fake evaluator."""
    monkeypatch.setattr(evaluation, "save_pictures", lambda inputs, *_: len(inputs.images))

    def fake(measure=lambda split: 8.0):
        class FakeEvaluator:
            def __init__(self, *_):
                pass

            def __call__(self, batches, k=1, **_):
                one, zero = Estimate(1.0, 0.1), Estimate(0.0, 0.0)
                return Bound(ELBO, k, 5, measure(batches), 0.1, one, one, zero, zero, 1.0)

        monkeypatch.setattr(loop, "BoundEvaluator", FakeEvaluator)
        monkeypatch.setattr(loop, "evaluation_batches", lambda source, split, **_: split)

    fake()
    return fake


@pytest.fixture
def fake_step(eager, monkeypatch):
    """Replaces the step, whose tracing takes time, and traces nothing else; returns the stand-in."""
    monkeypatch.setattr(loop, "TrainStep", FakeStep)
    return FakeStep


@pytest.fixture(scope="module")
def weights_of_both_sizes():
    """Lets some of the weights be large: they are updated by themselves, the small ones together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient, "_SMALL", 64)
        yield
