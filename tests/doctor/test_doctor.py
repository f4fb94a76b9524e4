import functools
import json
import os
import re
import sys

import numpy as np
import pytest
from helpers.places import PATIENCE, ROOT, TESTS, read_output, run_python
from helpers.planted_checks import PLANTED

from benchmarks.emulation import emulated_accelerator, keep_tf32_switch
from tfdecouple.cli import main
from tfdecouple.doctor import check_runner, checks
from tfdecouple.doctor.check_runner import VARIANTS, CheckResult, Task
from tfdecouple.runs import opened_run
from tfdecouple.runs.run_folder import RunFolder

FACTS = {"versions": {"tensorflow": "2.21.0"}, "processor": "a processor", "cores": 2, "instructions": ["avx2"]}
FACTS |= {"memory_bytes": 8 * 2**30, "cuda": "12.5", "cudnn": "9", "tf32_by_default": True, "devices": ["CPU:0"]}
VISIBLE = [("0", 2, 1, True), ("GPU-1,MIG-2", 2, 0, False), ("-1", 2, 0, None), ("NoDevFiles", 2, 0, None)]


@pytest.mark.parametrize(("visible", "present", "seen", "holds"), [(None, 0, 0, None), (None, 2, 1, False), *VISIBLE])
def test_build_fails_if_tensorflow_misses_visible_gpus(visible, present, seen, holds):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    gpus = {"nvidia_smi": ["570.1, a GPU, 16384 MiB"] * present, "gpus": [{}] * seen, "environment": environment}
    found = {result.what: result for result in checks.check_machine({**FACTS, **gpus})}
    in_use = found["GPUs in use"]
    assert in_use.holds is holds and (not present or "570.1, a GPU" in found["GPU"].message)
    assert visible is None or "CUDA_VISIBLE_DEVICES" in in_use.message and "names GPUs" in in_use.advice


@pytest.mark.parametrize(("holds", "status"), [(True, 0), (False, 5)])
def test_doctor_status_is_5_if_a_check_fails(holds, status, monkeypatch, tmp_path, capsys):
    result = CheckResult("one", holds, "said", "" if holds else "do this")
    monkeypatch.setattr(check_runner, "run_in_process", lambda name, task: [result])
    assert main(["doctor", "--out", str(tmp_path / "new"), "--only", "numerics"]) == status
    assert "said" in capsys.readouterr().out
    plain = json.loads((tmp_path / "new" / "doctor.json").read_text())
    assert plain["holds"] is holds and list(plain["checks"]) == ["build", "numerics"]
    text = (tmp_path / "new" / "doctor.txt").read_text()
    assert "said" in text and ("What to do: do this" in text) is not holds


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(check_runner, "_MODULE", "helpers.planted_checks")
    monkeypatch.setattr(check_runner, "CHECKS", {**check_runner.CHECKS, **PLANTED})
    if str(TESTS) not in sys.path:
        monkeypatch.syspath_prepend(str(TESTS))
    return lambda name, timeout=PATIENCE: check_runner.run_in_process(name, Task(timeout=timeout, devices=("CPU:3",)))


def test_check_process_ignores_prints_and_modules_of_the_users_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit('imported from the folder of the user')")
    first, second = run("well")
    assert first == CheckResult("first", True, "well") and second.figures["devices"] == ["CPU:3"]
    assert str(tmp_path) not in second.figures["path"]


@pytest.mark.parametrize(
    ("name", "before", "kind", "message"),
    [
        ("fails_late", 1, "error", "ValueError: no such"),
        ("wants_memory", 0, "memory", "2**60 bytes"),
        ("is_killed", 1, "memory", "killed"),
        ("crashes", 1, "error", "signal 11"),
        ("hangs", 1, "time", "no result for 4 s"),
    ],
)
def test_failed_check_process_adds_a_line_with_advice(run, name, before, kind, message):
    *results, last = run(name, 4 if kind == "time" else PATIENCE)
    assert results == [CheckResult("first", True, "well")] * before
    assert last.figures["failed"] == kind and message in last.message and "\n" not in last.message and last.advice
    assert last.holds is False


@pytest.fixture(autouse=True, scope="module")
def traced_once():
    """Models and steps that all tests share, because tracing takes most of their time."""
    make, load = functools.cache(checks.make_training), functools.cache(opened_run.load_model)

    def reset_training(*arguments):
        state, step = make(*arguments)
        RunFolder(checks.MODEL).load_weights(state.model, averaged=False)
        for variable in (*state.optimizer.means.values(), *state.optimizer.variances.values()):
            variable.assign(np.zeros(variable.shape, np.float32))
        return state, step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "make_training", reset_training)
        patch.setattr(checks, "load_model", load)
        yield


@pytest.fixture
def compared_with(monkeypatch):
    """Compares devices of which the last one computes the stored numbers multiplied by {name: factor}."""
    right = dict(np.load(checks.MODEL / checks.NUMBERS))
    images = right.pop("images")

    def compare(factors, variant=VARIANTS[0], devices=("CPU:1",)):
        def compute(device, *_):
            chosen = factors if device == "CPU:1" else {}
            return {name: value * chosen.get(name, 1.0) for name, value in right.items()}

        monkeypatch.setattr(checks, "compute_numbers", compute)
        monkeypatch.setattr(checks, "compute_gradient", lambda device, *_: compute(device)["gradient"])
        return list(checks.compare_numbers(Task(variant=variant, devices=devices)))

    assert len(images) == checks.PHOTOGRAPHS
    return compare


VARIANT = {variant.name: variant for variant in VARIANTS}


def compared(variant="float32"):
    (result,) = checks.compare_numbers(Task(variant=VARIANT[variant]))
    return result


class TestNumerics:
    @pytest.mark.parametrize("variant", ["float32", pytest.param("bfloat16 nets", marks=pytest.mark.slow)])
    def test_numerics_pass_on_this_cpu(self, variant):
        result = compared(variant)
        assert result.holds, result.message
        # The gradient in bfloat16 is another one.
        assert variant == "float32" or result.figures["off"]["gradient"] > 1e-4

    def test_numerics_fail_with_tf32_left_on(self):
        with keep_tf32_switch(), emulated_accelerator():
            result = compared()
        assert not result.holds and "float32" in result.advice, result.message

    def test_numerics_fail_on_a_device_with_wrong_v(self, compared_with):
        first, second = compared_with({"v": 1.001}, devices=("CPU:1",))
        assert first.what.startswith("CPU:0") and first.holds
        assert second.what.startswith("CPU:1") and second.holds is False and "too large: v" in second.message

    @pytest.mark.parametrize(
        ("factors", "variant", "holds"),
        [
            ({"z": np.nan}, "float32", False),
            ({"v": 1 + 0.5 * checks.BOUND}, "float32", True),
            ({"gradient": 1.01}, "float32", False),
            ({"gradient": 1.01}, "bfloat16 nets", True),
            ({"gradient": 1.5}, "bfloat16 nets", False),
        ],
    )
    def test_numerics_have_a_bound_for_each_variant(self, compared_with, factors, variant, holds):
        result = compared_with(factors, VARIANT[variant])[-1]
        assert result.holds is holds
        assert variant == "float32" or "training.precision=mixed_bfloat16" in result.advice


class TestExactness:
    def test_exactness_passes_for_every_kind_of_image(self):
        (result,) = checks.try_round_trips(Task(quick=True))
        assert result.holds, result.message
        assert len(result.figures["lost"]) == 10 and result.what == "Keras, CPU:0"

    def test_exactness_fails_for_images_that_tf32_loses(self):
        with keep_tf32_switch(), emulated_accelerator():
            (result,) = checks.try_round_trips(Task(quick=True))
        assert result.holds is False and "lost: " in result.message and "noise" in result.message


@pytest.mark.parametrize(("off", "holds"), [(0.0, True), (1e-6, True), (2 * checks.WEIGHTS_BOUND, False)])
def test_devices_whose_trained_weights_differ_fail(off, holds, monkeypatch):
    weights = iter([np.ones(4), np.ones(4) + off])
    monkeypatch.setattr(checks, "train_weights", lambda strategy, images: (np.zeros(4), next(weights)))
    (result,) = checks.compare_devices(Task(devices=("CPU:0", "CPU:1")))
    assert result.holds is holds and result.figures["bitwise"] is (off == 0)
    assert holds or "--devices 1" in result.advice


@pytest.mark.slow
def test_quick_doctor_passes_on_two_logical_devices(tmp_path, forked):
    out = tmp_path / "out"
    options = ["--only", "exactness", "devices", "speed", "--devices", 2, "--timeout", PATIENCE, "--out", out]
    command = [sys.executable, "-m", "tfdecouple", "doctor", "--quick", *options]
    printed = read_output(*command, folder=tmp_path, PYTHONPATH=str(ROOT))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    plain = json.loads((out / "doctor.json").read_text(encoding="utf-8"))
    assert plain["holds"] and list(plain["checks"]) == ["build", "exactness", "devices", "speed"]
    # docs/results/doctor.md lists the fields.
    documented = (ROOT / "docs" / "results" / "doctor.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in documented for name in plain)
    of = {name: {result["what"]: result for result in results} for name, results in plain["checks"].items()}
    assert {"Keras, CPU:0", "Keras, CPU:1"} == set(of["exactness"])
    assert [result["holds"] for result in of["devices"].values()] == [True]
    phases = {result["figures"]["phase"] for result in of["speed"].values() if "phase" in result["figures"]}
    assert phases == {"train", "eval", "encode", "decode"}
    assert any(result["figures"].get("devices") == 2 for result in of["speed"].values())
    holds = [result["holds"] for every in of.values() for result in every.values()]
    assert holds.count(True) == 3 and False not in holds
    # What people see says the same, and how far it was on the way.
    assert re.search(r"\[ *\d+ s\] exactness: ", printed)
    assert f"All {holds.count(True)} tests passed." in printed


# What Python runs as it starts, in each process: there is no network.
NO_NETWORK = """
import socket, sys

def refuse(*arguments, **options):
    raise OSError("there is no network")

socket.socket.__init__ = socket.getaddrinfo = refuse
print("sockets are refused", file=sys.stderr)
"""


@pytest.mark.slow
def test_doctor_finds_rounding_without_network_and_writable_folders(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK, encoding="utf-8")
    here = {**dict.fromkeys(("HOME", "TMPDIR", "KERAS_HOME"), "/proc/nothing"), "ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}
    here["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{ROOT}"
    options = ["--quick", "--only", "numerics", "--timeout", PATIENCE]
    # Nobody may write to the folder /proc, not even root.
    done = run_python("-m", "tfdecouple", "doctor", *options, folder="/proc", **here)
    said = " ".join(done.stdout.split())
    assert done.returncode == 5, said + done.stderr
    assert "sockets are refused" in done.stderr and "not measured" not in said
    assert "numerics: the same numbers" in said and re.search(r"(holds|FAILS) CPU:0, float32 relative", said)
    assert "build, float32 of the CPU: rounded" in said and "What to do: unset ONEDNN_DEFAULT_FPMATH_MODE" in said
    assert "tests failed:" in said
