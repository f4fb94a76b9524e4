"""The speed that doctor measures: each phase does its work, with labels and with several variants."""

import pytest
from helpers.models import SMALL_SETTINGS

from tfdecouple.doctor import speed
from tfdecouple.doctor.report import VARIANTS, Request, Task


@pytest.mark.parametrize("preset", ["quickstart", "cifar10_classes"])
def test_speed_of_each_phase_is_measured_with_and_without_labels(eager, monkeypatch, preset):
    monkeypatch.setattr(speed, "_SECONDS", {True: 1e-3})
    request = Request(preset=preset, settings=(*SMALL_SETTINGS, "model.factors=[]"), quick=True)
    results = list(speed.measure_speed(Task(request, VARIANTS[0])))
    assert [result.figures["phase"] for result in results] == list(VARIANTS[0].phases)
    assert all(result.figures["images_per_s"] > 0 and result.holds is None for result in results)


def test_variant_is_timed_with_its_settings(monkeypatch):
    config = speed.make_doctor_config(Request(preset="quickstart"), 4, VARIANTS[2])
    assert config.training.precision == "mixed_bfloat16" and config.training.batch_size == 4
