"""The checks with the bundled model: all promises hold here, and each planted fault is found."""

import contextlib
import functools

import numpy as np
import pytest
from helpers.emulation import emulated_accelerator, keep_tf32_switch

from tfdecouple.doctor import device_checks
from tfdecouple.doctor.report import VARIANTS, Request, Task
from tfdecouple.runs import opened_run
from tfdecouple.runs.run_folder import load_weights


@contextlib.contextmanager
def faulty():
    """An accelerator with TF32 left on."""
    with keep_tf32_switch(), emulated_accelerator():
        yield


@pytest.fixture(autouse=True, scope="module")
def traced_once():
    """Models and steps that all tests share, because tracing takes most of their time."""
    make, load = functools.cache(device_checks.make_training), functools.cache(opened_run.load_model)

    def reset_training(*arguments):
        state, step = make(*arguments)
        load_weights(device_checks.MODEL, state.model, averaged=False)
        for variable in (*state.optimizer.means.values(), *state.optimizer.variances.values()):
            variable.assign(np.zeros(variable.shape, np.float32))
        return state, step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_checks, "make_training", reset_training)
        patch.setattr(opened_run, "load_model", load)
        yield


VARIANT = {variant.name: variant for variant in VARIANTS}


def compared(variant="float32"):
    """The results of a variant on the first CPU, traced once."""
    (result,) = device_checks.compare_numbers(Task(Request(), VARIANT[variant]))
    return result


class TestNumerics:
    @pytest.mark.parametrize("variant", ["float32", pytest.param("bfloat16 nets", marks=pytest.mark.slow)])
    def test_hold_here(self, variant):
        result = compared(variant)
        assert result.holds, result.message
        # The gradient in bfloat16 is another one.
        assert variant == "float32" or result.figures["off"]["gradient"] > 1e-4

    def test_hold_on_an_accelerator_that_adds_up_in_another_order(self):
        with emulated_accelerator(noise=1e-6):
            result = compared()
        assert result.holds, result.message

    def test_find_tf32_that_is_left_on(self):
        with faulty():
            result = compared()
        assert not result.holds and "float32" in result.advice, result.message

    def test_find_a_device_that_computes_something_else(self, monkeypatch):
        right = device_checks.compute_numbers

        def numbers(device, images):
            found = right("CPU:0", images)
            return found if device == "CPU:0" else {**found, "v": 1.001 * found["v"]}

        monkeypatch.setattr(device_checks, "compute_numbers", numbers)
        monkeypatch.setattr(device_checks, "compute_gradient", lambda *_: device_checks.load_numbers()["gradient"])
        first, second = device_checks.compare_numbers(Task(Request(), devices=("CPU:1",)))
        assert first.what.startswith("CPU:0") and first.holds
        assert second.what.startswith("CPU:1") and second.holds is False and "too far: v" in second.message

    @pytest.mark.parametrize(
        ("off", "variant", "holds"),
        [
            ({"z": np.nan}, "float32", False),
            ({"v": device_checks.BOUND, "gradient": 0.01}, "float32", False),
            ({"gradient": 0.01}, "bfloat16 nets", True),
            ({"gradient": 0.5}, "bfloat16 nets", False),
        ],
    )
    def test_bounds(self, off, variant, holds):
        result = device_checks.check_numbers("CPU:0", VARIANT[variant], off)
        assert result.holds is holds
        assert variant == "float32" or "training.precision=mixed_bfloat16" in result.advice


class TestExactness:
    def test_every_kind_comes_back(self):
        (result,) = device_checks.try_round_trips(Task(Request(quick=True)))
        assert result.holds, result.message
        assert len(result.figures["lost"]) == 10 and result.what == "Keras, CPU:0"

    def test_images_that_tf32_loses_are_found(self):
        with faulty():
            (result,) = device_checks.try_round_trips(Task(Request(quick=True)))
        assert result.holds is False and "lost: " in result.message and "noise" in result.message


class TestDevices:
    @pytest.mark.parametrize(("off", "holds"), [(0.0, True), (1e-6, True), (2 * device_checks.WEIGHTS_BOUND, False)])
    def test_weights_that_are_far_off_do_not_hold(self, off, holds):
        start, alone = np.zeros(4), np.ones(4)
        result = device_checks.check_weights("weights", start, alone, alone + off)
        assert result.holds is holds and result.figures["bitwise"] is (off == 0)
        assert holds or "--devices 1" in result.advice
