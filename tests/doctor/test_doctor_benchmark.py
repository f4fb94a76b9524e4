"""The speed and the memory that doctor and the benchmarks measure."""

import pytest
from helpers.models import SMALL_SETTINGS

from tfdecouple.config import load_preset, override
from tfdecouple.doctor import benchmark
from tfdecouple.doctor.benchmark import (
    Benchmark,
    compare_memory,
    compute_ceiling,
    make_timed_config,
    measure_speed,
    time_calls,
)
from tfdecouple.doctor.check_runner import run_in_process
from tfdecouple.doctor.report import VARIANTS, Request, Task

BATCH = 2


@pytest.fixture(scope="module")
def benchmark_of_tiny_model(eager_file):
    """A tiny model and random images, of which it holds out four batches."""
    return Benchmark(override(make_timed_config(load_preset("quickstart"), BATCH), SMALL_SETTINGS))


def test_steps_of_training_begin_without_waiting_for_the_one_before(benchmark_of_tiny_model):
    work = benchmark_of_tiny_model.make_work("train", BATCH)
    assert work.begin is not None
    before = int(benchmark_of_tiny_model.state.updates.numpy())
    assert work.begin().fetch_numbers().applied
    time_calls(work.call, 1, 3, work.begin)
    assert int(benchmark_of_tiny_model.state.updates.numpy()) == before + 4


def test_a_batch_may_be_larger_than_what_is_held_out(benchmark_of_tiny_model):
    count = benchmark_of_tiny_model.source.sizes["test"] + 1
    assert benchmark_of_tiny_model.make_work("encode", count).call().shape == (count, 8, 8, 3)


class TestCeiling:
    @pytest.mark.parametrize(
        ("precision", "phase", "peak"),
        [("float32", "train", 19.5), ("tf32", "train", 156), ("mixed_bfloat16", "train", 312), ("tf32", "eval", 19.5)],
    )
    def test_is_the_peak_over_the_operations_of_an_image(self, precision, phase, peak):
        config = override(load_preset("cifar10"), [f"training.precision={precision}"])
        # The paper's model has 5.826 G multiply-adds in a forward pass; a training step has three times as many.
        operations = 2 * 5.826e9 * (3 if phase == "train" else 1)
        found = compute_ceiling(config, phase, "NVIDIA A100-SXM4-80GB")
        assert found == pytest.approx(peak * 1e12 / operations, rel=1e-3)

    def test_of_other_gpus_and_phases_is_unknown(self):
        config = load_preset("cifar10")
        assert compute_ceiling(config, "train", "Tesla T4") is None and compute_ceiling(config, "train", "") is None
        assert compute_ceiling(config, "decode", "NVIDIA A100-SXM4-80GB") is None

    def test_share_is_in_the_report_of_a_known_gpu(self, eager, monkeypatch):
        monkeypatch.setattr(benchmark, "read_gpu_name", lambda: "NVIDIA GeForce RTX 4090")
        request = Request(preset="quickstart", settings=tuple(SMALL_SETTINGS), quick=True)
        (result,) = measure_speed(Task(request, VARIANTS[2]))
        config = override(load_preset("quickstart"), [*SMALL_SETTINGS, "training.precision=mixed_bfloat16"])
        share = result.figures["images_per_s"] / compute_ceiling(config, "train", "RTX 4090")
        assert result.figures["share_of_ceiling"] == pytest.approx(share)
        assert result.message.endswith(f", {share:.1%} of the GPU's ceiling")


# The quickstart with so few layers that an image is most of what is computed.
SMALL = (
    "model.image_shape=[64,64,3]",
    "model.steps=[1,1]",
    "model.hidden_channels=[16,16]",
    "model.encoder_channels=[16]",
    "model.latent_dim=4",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float32", "invert"])
def test_an_image_takes_the_memory_that_was_calculated(name):
    (variant,) = [variant for variant in VARIANTS if variant.name == name]
    smaller, larger, judged = run_in_process("memory", Task(Request(preset="quickstart", settings=SMALL), variant))
    assert larger.figures["batch"] == 2 * smaller.figures["batch"]
    # Above everything else in memory, and not far beyond.
    difference = larger.figures["peak_bytes"] - smaller.figures["peak_bytes"]
    assert 180 * 2**20 < difference < 360 * 2**20
    assert judged.holds, judged.message


@pytest.mark.parametrize(("measured", "holds"), [(100.0, True), (140.0, False), (70.0, False)])
def test_memory_that_is_off_by_more_than_a_third_does_not_hold(measured, holds):
    judged = compare_memory(VARIANTS[0], measured, 103.0)
    assert judged.holds is holds and "training.micro_batches" in judged.advice
