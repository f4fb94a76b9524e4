import sys

import pytest
from helpers.places import PATIENCE, TESTS
from helpers.planted_checks import PLANTED
from helpers.recipes import copy_packages, insert_text, read_recipe, run_in_copy

from tfdecouple.doctor import check_runner
from tfdecouple.doctor.check_runner import Result, Task
from tfdecouple.errors import UserError


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


def test_too_many_devices_for_doctor_is_one_line():
    with pytest.raises(UserError, match=r"^--devices is 0; it must be from 1 to 256$"):
        check_runner.run_in_process("build", Task(requested=0))


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
