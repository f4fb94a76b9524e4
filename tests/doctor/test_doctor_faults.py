"""The checks on the model that comes along: all holds here, and each fault that is planted is found."""

import contextlib
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from helpers.emulation import _Emulation, emulated_accelerator, switch_left_alone
from helpers.forked import forked_programs
from tensorflow.python.distribute import mirrored_strategy

from export.verification import check_onnx, runtimes
from tfdecouple import runs
from tfdecouple.doctor import devices, exactness, exports, numerics, trained
from tfdecouple.doctor.apart import run_here
from tfdecouple.doctor.examination import Examination, Request
from tfdecouple.doctor.options import DEFAULT, by_name
from tfdecouple.runtime import extras
from tfdecouple.training.strategy import make_strategy


@contextlib.contextmanager
def faulty(**options):
    """An accelerator with TF32 left on, or with noise."""
    with switch_left_alone(), emulated_accelerator(**options):
        yield


def wrong_bfloat16():
    """An accelerator that is right in float32, and in bfloat16 off by up to nine tenths."""
    return mock.patch.object(_Emulation, "_kind", lambda self, node, rounds: only_bfloat16(node))


def only_bfloat16(node):
    types = [node.attr[name].type for name in ("T", "Ta") if name in node.attr]
    is_product = node.op in ("MatMul", "BatchMatMulV2", "Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter")
    return "bfloat16" if is_product and tf.bfloat16.as_datatype_enum in types else ""


@pytest.fixture(scope="module")
def trial():
    """The model on the first CPU, traced once."""
    return numerics.Trial("CPU:0", trained.load_images(trained.IMAGES))


@pytest.fixture
def loaded(trial, monkeypatch):
    """Whoever loads the model gets the one that is traced."""
    monkeypatch.setattr(runs, "load_model", lambda run: trial.model)


def judged(trial, variant="float32"):
    off = numerics.off_by(trial.numbers(by_name(variant).settings), trained.load_numbers())
    found = {"device": "CPU:0", "variant": variant, "against": "the numbers that came along", "off": off}
    return numerics.judge(found)


class TestNumerics:
    @pytest.mark.parametrize("variant", ["float32", "bfloat16 nets"])
    def test_hold_here(self, trial, variant):
        finding = judged(trial, variant)
        assert finding.holds, finding.said
        # And could not hold by giving the same array.
        assert variant == "float32" or finding.figures["off"]["gradient"] > 1e-4

    def test_hold_on_an_accelerator_that_adds_up_in_another_order(self, trial):
        with emulated_accelerator(noise=1e-6):
            finding = judged(trial)
        assert finding.holds, finding.said

    @pytest.mark.parametrize("fault", [faulty(), emulated_accelerator(noise=1e-3)], ids=["TF32 left on", "perturbed"])
    def test_find_a_fault_of_float32(self, trial, fault):
        with fault:
            finding = judged(trial)
        assert not finding.holds and "float32" in finding.advice, finding.said

    def test_find_wrong_bfloat16(self, trial):
        with wrong_bfloat16(), emulated_accelerator(noise=0.9):
            finding, exact = judged(trial, "bfloat16 nets"), judged(trial)
        assert not finding.holds and "training.precision=mixed_bfloat16" in finding.advice, finding.said
        assert exact.holds, exact.said

    def test_find_a_device_that_computes_something_else(self, monkeypatch, trial):
        right = trial.numbers()
        monkeypatch.setattr(numerics.Trial, "__init__", lambda self, device, images: setattr(self, "_device", device))
        monkeypatch.setattr(numerics, "trial_on", numerics.trial_on.__wrapped__)

        def numbers(self, settings=()):
            if self._device == "CPU:0":
                return right
            with emulated_accelerator(noise=1e-3):
                return traced(settings)

        traced = trial.numbers
        monkeypatch.setattr(numerics.Trial, "numbers", numbers)
        examination = Examination(Request(), lambda text: None, run_here)
        examination.devices = ["CPU:1"]
        monkeypatch.setattr(examination, "variants", lambda device: [DEFAULT])
        first, second = numerics.check(examination)
        assert first.what.startswith("CPU:0") and first.holds
        assert second.what.startswith("CPU:1") and second.holds is False and "the CPU's" in second.said

    def test_what_changes_its_process_is_compared_alone(self):
        settings = []
        examination = Examination(Request(), lambda text: None, lambda *given: settings.append(given[1]) or iter(()))
        examination.devices = ["GPU:0"]
        assert list(numerics.check(examination)) == []
        assert [one["alone"] for one in settings] == [bool(one["environment"]) for one in settings]
        assert by_name("all GPU memory at once").environment in [one["environment"] for one in settings]

    def test_no_number_is_too_far(self):
        off = numerics.off_by({"z": np.array([np.nan])}, {"z": np.array([1.0])})
        assert numerics.too_far(off, DEFAULT) == ["z"]
        assert numerics.too_far({"v": numerics.IN_USE, "gradient": 0.01}, DEFAULT) == ["gradient"]
        assert numerics.too_far({"v": numerics.IN_USE, "gradient": 0.01}, by_name("bfloat16 nets")) == []


class TestExactness:
    @staticmethod
    def look():
        found = [each for each in exactness.measure("CPU:0", trained.IMAGES) if "kinds" in each]
        return exactness.judge(found[0])

    def test_every_kind_comes_back(self, loaded):
        finding = self.look()
        assert finding.holds, finding.said
        assert len(finding.figures["kinds"]) == 10 and finding.what == "Keras, CPU:0"

    def test_images_that_tf32_loses_are_found(self, loaded):
        with faulty():
            finding = self.look()
        assert finding.holds is False and "lost: " in finding.said and "noise" in finding.said


class TestExports:
    @pytest.fixture(scope="class")
    def found(self):
        """What an export finds here, and where its files lie, before they go."""
        examination = Examination(Request(quick=True), lambda text: None, run_here)
        with pytest.MonkeyPatch.context() as patch, forked_programs():
            patch.setattr(exactness, "count_of", lambda examination: 4)
            folders = []
            use = runtimes.use_onnx

            def plant(folder, provider):
                """The files as they are, then with a provider that loses one value of one pixel."""
                folders.append(folder)
                yield from use(folder, provider)
                patch.setattr(check_onnx, "session", losing(check_onnx.session))
                yield from use(folder, provider)
                with faulty():
                    yield from runtimes.use_saved_model(folder, "CPU:0")

            patch.setattr(runtimes, "use_onnx", plant)
            return list(exports.check(examination))

    def test_hold_here_in_each_runtime(self, found):
        assert [one.what for one in found[:3]] == ["the export", "SavedModel, CPU:0", "ONNX, CPUExecutionProvider"]
        assert all(one.holds for one in found[:3]), [one.said for one in found]

    def test_a_provider_that_loses_pixels_is_found(self, found):
        lossy = found[3]
        assert lossy.what == "ONNX, CPUExecutionProvider" and lossy.holds is False
        assert "runtimes.md" in lossy.advice

    def test_a_saved_model_in_tf32_is_found(self, found):
        assert found[4].what == "SavedModel, CPU:0" and found[4].holds is False

    def test_without_the_packages_it_is_not_tried(self, monkeypatch):
        monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else object())
        (finding,) = exports.check(Examination(Request(), lambda text: None, run_here))
        assert finding.holds is None and "pip install 'tfdecouple[export]'" in finding.said

    def test_a_provider_that_cannot_start_breaks_nothing(self):
        finding = exports.judge({"where": "ONNX, CUDAExecutionProvider", "unavailable": "no CUDA"})
        assert finding.holds is None and "no CUDA" in finding.said


def losing(session):
    """Sessions whose images are off by one in one value."""

    class Losing:
        def __init__(self, *arguments):
            self._session = session(*arguments)
            self.get_outputs, self.get_providers = self._session.get_outputs, self._session.get_providers

        def run(self, names, inputs):
            made = self._session.run(names, inputs)
            for array in made:
                if array.dtype == np.uint8:
                    array[0, 3, 5, 1] ^= 1
            return made

    return Losing


class TestDevices:
    def test_sums_are_right_here_and_a_wrong_one_is_found(self, monkeypatch):
        strategy = make_strategy(2)
        assert devices.wrong_sums(strategy) == 0
        right = mirrored_strategy.MirroredExtended._batch_reduce_to

        def scaled(value):
            return type(value)([x * (1 + 2**-22) for x in value.values])

        monkeypatch.setattr(
            mirrored_strategy.MirroredExtended,
            "_batch_reduce_to",
            lambda self, *arguments: [scaled(value) for value in right(self, *arguments)],
        )
        wrong = devices.wrong_sums(strategy)
        finding = devices.judge({"sums": wrong, "way": "a ring"})
        assert wrong > 0 and finding.holds is False and "--devices 1" in finding.advice

    def test_weights_that_are_far_off_do_not_hold(self):
        found = {"count": 2, "variant": "one pack", "bitwise": False, "largest": 0.1, "off": 2 * devices.MOVED}
        assert devices.judge(found).holds is False
        assert devices.judge({**found, "off": 1e-6}).holds is True
        assert "to the bit" in devices.judge({**found, "bitwise": True}).said
        assert devices.judge(found).what.endswith(", one pack")

    def test_what_concerns_several_is_compared_on_all_of_them_and_not_on_one(self):
        asked = {}

        def note(target, setting, timeout, arguments):
            asked.setdefault(target.rpartition(".")[2], []).extend(arguments["variants"])
            return iter(())

        examination = Examination(Request(), lambda text: None, note)
        examination.devices = ["GPU:0", "GPU:1"]
        list(devices.check(examination))
        list(numerics.check(examination))
        assert asked["devices:measure"] == ["float32", "one pack"]
        assert "tf32" in asked["numerics:measure"] and "one pack" not in asked["numerics:measure"]

    def test_each_is_compared_with_its_own_settings(self, monkeypatch):
        def weights(strategy, images, settings=()):
            together = strategy.num_replicas_in_sync > 1
            return np.zeros(2), np.full(2, 1 + 0.5 * (together and settings == ("training.bytes_per_pack=0",)))

        monkeypatch.setattr(devices, "weights_after", weights)
        monkeypatch.setattr(devices, "wrong_sums", lambda strategy: 0)
        found = [each for each in devices.measure(2, ["float32", "one pack"]) if "off" in each]
        assert [(each["variant"], each["off"]) for each in found] == [("float32", 0.0), ("one pack", 0.5)]

    def test_one_device_is_compared_with_nothing(self):
        (finding,) = devices.check(Examination(Request(), lambda text: None, run_here))
        assert finding.holds is None and "--devices 2" in finding.said
