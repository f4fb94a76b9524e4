"""The speed that the benchmarks measure."""

import sys

import pytest
from helpers.models import SMALL_SETTINGS
from helpers.places import ROOT

from tfdecouple.config import load_preset, override

sys.path.insert(0, str(ROOT))

from benchmarks.model_benchmark import Benchmark, make_timed_config, time_calls  # noqa: E402

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
