"""The check of memory: what it measures and in which processes, what it makes of that, and once in earnest."""

from __future__ import annotations

import pytest

from tfdecouple.costs import activations
from tfdecouple.doctor import memory
from tfdecouple.doctor.apart import MeasurementError
from tfdecouple.doctor.examination import Examination, Request
from tfdecouple.doctor.options import by_name, tried
from tfdecouple.doctor.session import COUNTING, CROPS
from tfdecouple.doctor.speed import config_of, timed_config

# Of the quickstart, so few layers that an image is most of what is computed.
SMALL = (
    "model.image_size=64",
    "model.steps=[1,1]",
    "model.hidden_channels=[16,16]",
    "model.encoder_channels=[16]",
    "model.latent_dim=4",
)


class Machine:
    """Takes so many times the calculated memory for an image, and keeps what it was asked to measure."""

    def __init__(self, times, most_images=10**9):
        self.calls, self._times, self._most_images = [], times, most_images

    def __call__(self, target, setting, limit, arguments):
        self.calls.append((target, setting, arguments))
        yield {"doing": "something"}
        if arguments["batch"] > self._most_images:
            raise MeasurementError("memory", "it was killed")
        yield {
            "batch": arguments["batch"],
            "peak_bytes": 10**9 + self._times * arguments["batch"] * of_an_image(arguments),
        }


def of_an_image(arguments):
    config = config_of(arguments["preset"], arguments["settings"])
    return activations(config.model, memory=config.training.memory, precision=config.training.precision).total


def check(machine, device="CPU:0", **request):
    examination = Examination(Request(**request), lambda text: None, machine)
    examination.devices = [device]
    return list(memory.check(examination))


@pytest.mark.parametrize(("times", "holds"), [(1.3, True), (1.4, False), (0.8, True), (0.7, False)])
def test_a_third_too_much_or_too_little_does_not_hold(times, holds):
    smaller, larger, judged = check(Machine(times), preset="quickstart", settings=SMALL, quick=True)[:3]
    assert smaller.holds is None and larger.holds is None and judged.holds is holds
    assert larger.figures["batch"] == 2 * smaller.figures["batch"]
    assert judged.figures["measured_bytes"] == pytest.approx(times * judged.figures["calculated_bytes"])
    assert holds or "training.micro_batches" in judged.advice


@pytest.mark.parametrize("device", ["CPU:0", "GPU:0"])
def test_each_way_to_train_is_measured_at_two_batches_in_new_processes(device):
    machine = Machine(1.0)
    found = check(machine, device, preset="quickstart", settings=SMALL)
    variants = [variant for variant in tried(device == "GPU:0", False) if "train" in variant.phases]
    # What the calculation knows nothing of is a figure alone.
    promised = [f"{variant.name}, an image" for variant in variants if variant.is_calculated]
    assert [one.what for one in found if one.holds] == promised and len(promised) < len(variants)
    assert len(found) == 3 * len(variants) and len(machine.calls) == 2 * len(variants)
    for number, (target, setting, arguments) in enumerate(machine.calls):
        variant = variants[number // 2]
        assert target == "tfdecouple.doctor.memory:measure" and arguments["preset"] == "quickstart"
        assert arguments["settings"] == [*SMALL, *variant.settings]
        assert setting["alone"] and setting["environment"] == {**COUNTING, **variant.environment}
        # Above what else a process holds, and not far beyond.
        difference = memory._DIFFERENCE_MIB[device[:3]]
        smaller = arguments["batch"] / (1 + number % 2)
        assert smaller * of_an_image(arguments) / 2**20 == pytest.approx(difference, rel=0.05)


def test_there_are_images_for_every_batch():
    machine = Machine(1.0)
    check(machine, "GPU:0", preset="quickstart")
    batches = [arguments["batch"] for _, _, arguments in machine.calls]
    assert max(batches) > CROPS
    for batch in batches:
        assert timed_config("quickstart", [], batch).data.photograph_crops >= batch


def test_too_little_memory_breaks_no_promise():
    found = check(Machine(1.0, most_images=60), preset="quickstart", settings=SMALL, quick=True)
    assert {one.holds for one in found} == {None} and any("not measured" in one.said for one in found)


def test_without_a_preset_nothing_is_measured():
    machine = Machine(1.0)
    (finding,) = check(machine)
    assert finding.holds is None and "--preset" in finding.said and not machine.calls


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float32", "invert"])
def test_holds_here_for_a_small_model(name, monkeypatch):
    examination = Examination(Request(preset="quickstart", settings=SMALL), lambda text: None)
    monkeypatch.setattr(examination, "variants", lambda device: [by_name(name)])
    smaller, larger, judged = memory.check(examination)
    assert smaller.figures["peak_bytes"] < larger.figures["peak_bytes"]
    assert judged.holds, judged.said
