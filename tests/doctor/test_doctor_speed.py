"""The speed that doctor measures: each phase does its work, with labels and with several variants."""

import pytest
from helpers.models import SMALL_SETTINGS

from tfdecouple.config import load_preset
from tfdecouple.doctor import checks
from tfdecouple.doctor.check_runner import VARIANTS, Task, make_doctor_config
from tfdecouple.networks.architecture import compute_ceiling


@pytest.mark.parametrize("preset", ["quickstart", "cifar10_classes"])
def test_doctor_times_each_phase_with_and_without_labels(eager, monkeypatch, preset):
    monkeypatch.setattr(checks, "_SECONDS", {True: 1e-3})
    results = list(checks.measure_speed(Task(preset, (*SMALL_SETTINGS, "model.factors=[]"), quick=True)))
    # There is no line about the ceiling, because this machine has no GPU.
    assert [result.figures["phase"] for result in results] == list(VARIANTS[0].phases)
    assert all(result.figures["images_per_s"] > 0 and result.holds is None for result in results)


def test_doctor_times_a_variant_with_its_settings():
    config = make_doctor_config(Task("quickstart", variant=VARIANTS[2]), 4)
    assert config.training.precision == "mixed_bfloat16" and config.training.batch_size == 4


@pytest.mark.parametrize("gpu", ["NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA A100-SXM4-40GB", "Tesla T4", ""])
def test_share_of_the_ceiling_is_reported_for_gpus_with_a_known_peak(gpu):
    config = load_preset("cifar10")
    results = list(checks.compare_with_ceiling(config, gpu, compute_ceiling(config, "train", "A100") / 4))
    peak = {"H100": 66.9, "H200": 66.9, "A100-SXM4-40GB": 19.5}.get(gpu.replace("NVIDIA ", "").split(" ")[0])
    assert [result.figures["share"] for result in results] == ([] if peak is None else [pytest.approx(19.5 / 4 / peak)])
    assert all(result.holds is None and "of the ceiling" in result.what for result in results)
