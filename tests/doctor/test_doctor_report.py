import json
import sys

import pytest
from helpers.models import SMALL_SETTINGS
from helpers.places import PATIENCE, TESTS
from helpers.planted_checks import PLANTED
from helpers.recipes import copy_packages, insert_text, read_recipe, run_in_copy

from tfdecouple.cli import main
from tfdecouple.config import preset_config
from tfdecouple.doctor import check_runner, checks
from tfdecouple.doctor.check_runner import VARIANTS, Result, Task
from tfdecouple.networks.architecture import compute_ceiling

FACTS = {
    "versions": {"tensorflow": "2.21.0"},
    "processor": "a processor",
    "cores": 2,
    "instructions": ["avx2"],
    "memory_bytes": 8 * 2**30,
    "nvidia_smi": [],
    "gpus": [],
    "cuda": "12.5",
    "cudnn": "9",
    "environment": {},
    "tf32_by_default": True,
    "devices": ["CPU:0"],
}
GPU = "570.1, a GPU, 16384 MiB"


def of_machine(**changes):
    return {result.what: result for result in checks.check_machine({**FACTS, **changes})}


class TestBuild:
    @pytest.mark.parametrize(
        ("visible", "present", "seen", "holds"),
        [
            (None, 0, 0, None),
            (None, 2, 1, False),
            ("0", 2, 1, True),
            ("GPU-1,MIG-2", 2, 0, False),
            ("-1", 2, 0, None),
            ("NoDevFiles", 2, 0, None),
        ],
    )
    def test_build_fails_if_tensorflow_misses_visible_gpus(self, visible, present, seen, holds):
        environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        found = of_machine(nvidia_smi=[GPU] * present, gpus=[{}] * seen, environment=environment)
        assert found["GPUs in use"].holds is holds
        assert not present or "570.1, a GPU" in found["GPU"].message
        if visible is not None:
            assert (
                "CUDA_VISIBLE_DEVICES" in found["GPUs in use"].message and "names GPUs" in found["GPUs in use"].advice
            )

    def test_build_fails_for_a_variable_that_rounds_float32(self):
        assert "float32 of the CPU" not in of_machine(environment={"ONEDNN_DEFAULT_FPMATH_MODE": "STRICT"})
        found = of_machine(environment={"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"})["float32 of the CPU"]
        assert found.holds is False and found.advice == "unset ONEDNN_DEFAULT_FPMATH_MODE"


@pytest.mark.parametrize(
    ("devices", "asked", "used"),
    [(["CPU:0", "CPU:1"], None, 1), (["CPU:0", "CPU:1"], 2, 2), (["GPU:0", "GPU:1"], None, 2), (["GPU:0"], 1, 1)],
)
def test_doctor_uses_all_gpus_or_one_cpu_unless_the_user_gives_a_number(devices, asked, used, monkeypatch):
    tasks = []
    facts = {**FACTS, "devices": devices, "gpus": [{}] * len(devices) if "GPU:0" in devices else []}
    found = [Result("versions", None, "", figures=facts)]
    monkeypatch.setattr(check_runner, "run_in_process", lambda name, task: tasks.append(task) or found)
    check_runner.run_checks(Task(requested=asked), ["exactness"], lambda text: None)
    assert tasks[-1].devices == tuple(devices[:used])


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--only", "numeric"], "there is no check 'numeric'; there are build, numerics"),
            (["--set", "training.batchsize=1"], "there is no option 'training.batchsize'"),
            (["--devices", "0"], "--devices is 0"),
            (["--timeout", "0"], "--timeout is 0"),
            (["--out", "/proc/nothing"], "/proc/nothing"),
        ],
    )
    def test_wrong_option_of_doctor_is_one_line(self, arguments, says, capsys):
        assert main(["doctor", *arguments]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1

    @pytest.mark.parametrize(("holds", "status"), [(True, 0), (False, 5)])
    def test_doctor_status_is_5_if_a_check_fails(self, holds, status, monkeypatch, tmp_path, capsys):
        result = Result("one", holds, "said", "" if holds else "do this")
        monkeypatch.setattr(check_runner, "run_in_process", lambda name, task: [result])
        assert main(["doctor", "--out", str(tmp_path / "new"), "--only", "numerics"]) == status
        assert "said" in capsys.readouterr().out
        plain = json.loads((tmp_path / "new" / "doctor.json").read_text())
        assert plain["holds"] is holds and list(plain["checks"]) == ["build", "numerics"]
        text = (tmp_path / "new" / "doctor.txt").read_text()
        assert "said" in text and ("What to do: do this" in text) is not holds


@pytest.mark.parametrize("preset", ["quickstart", "cifar10_classes"])
def test_doctor_times_each_phase_with_and_without_labels(eager, monkeypatch, preset):
    monkeypatch.setattr(checks, "_SECONDS", {True: 1e-3})
    results = list(checks.measure_speed(Task(preset, (*SMALL_SETTINGS, "model.factors=[]"), quick=True)))
    # There is no line about the ceiling, because this machine has no GPU.
    assert [result.figures["phase"] for result in results] == list(VARIANTS[0].phases)
    assert all(result.figures["images_per_s"] > 0 and result.holds is None for result in results)


@pytest.mark.parametrize("gpu", ["NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA A100-SXM4-40GB", "Tesla T4", ""])
def test_share_of_the_ceiling_is_reported_for_gpus_with_a_known_peak(gpu):
    config = preset_config("cifar10")
    results = list(checks.compare_with_ceiling(config, gpu, compute_ceiling(config, "train", "A100") / 4))
    peak = {"H100": 66.9, "H200": 66.9, "A100-SXM4-40GB": 19.5}.get(gpu.replace("NVIDIA ", "").split(" ")[0])
    assert [result.figures["share"] for result in results] == ([] if peak is None else [pytest.approx(19.5 / 4 / peak)])
    assert all(result.holds is None and "of the ceiling" in result.what for result in results)


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
    assert first == Result("first", True, "well") and second.figures["devices"] == ["CPU:3"]
    assert str(tmp_path) not in second.figures["path"]


@pytest.mark.parametrize(
    ("name", "before", "kind", "message"),
    [
        ("fails_late", 1, "error", "ValueError: no such"),
        ("wants_memory", 0, "memory", "2**60 bytes"),
        ("is_killed", 1, "memory", "killed"),
        ("crashes", 1, "error", "signal 11"),
        ("hangs", 1, "time", "not done after 4 s"),
    ],
)
def test_failed_check_process_adds_a_line_with_advice(run, name, before, kind, message):
    *results, last = run(name, 4 if kind == "time" else PATIENCE)
    assert results == [Result("first", True, "well")] * before
    assert last.figures["failed"] == kind and message in last.message and "\n" not in last.message and last.advice
    assert last.holds is False


@pytest.mark.parametrize(("name", "holds"), [("measured_fails_late", False), ("measured_wants_memory", None)])
def test_measurement_without_memory_is_no_failure(run, name, holds):
    assert run(name)[-1].holds is holds


def test_doctor_runs_each_check_with_its_variants_on_the_found_devices(monkeypatch):
    asked = []

    def note(name, task):
        asked.append((name, task.variant.name, task.devices))
        return [Result("versions", True, "", figures={"devices": ["GPU:0", "GPU:1"], "gpus": [{}, {}]})]

    monkeypatch.setattr(check_runner, "run_in_process", note)
    results = check_runner.run_checks(Task(preset="quickstart"), check_runner.CHECKS, lambda text: None)
    assert list(results) == list(check_runner.CHECKS)
    of = {name: [variant for each, variant, _ in asked if each == name] for name in check_runner.CHECKS}
    assert of["build"] == of["exactness"] == of["devices"] == ["float32"]
    assert {"tf32", "XLA"} < set(of["numerics"]) == set(of["speed"])
    assert {devices for name, _, devices in asked if name != "build"} == {("GPU:0", "GPU:1")}
    asked.clear()
    check_runner.run_checks(Task(quick=True), ["speed"], lambda text: None)
    assert {name for name, _, _ in asked} == {"build", "speed"} and len(asked) == 4


def test_doctor_check_of_the_recipe_is_run_and_reported(tmp_path):
    copy = copy_packages(tmp_path)
    module, _, registered = read_recipe("doctor check").partition("# in `CHECKS`\n")
    folder = copy / "tfdecouple" / "doctor"
    (folder / "repetition.py").write_text(module, encoding="utf-8")
    insert_text(folder / "check_runner.py", "\n}", "\n" + registered, after="CHECKS = {")
    done = run_in_copy(copy, "-m", "tfdecouple", "doctor", "--only", "repetition", anew=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "repetition: the same numbers in each call" in done.stdout
    assert "0 numbers of v differ in a second call" in done.stdout
