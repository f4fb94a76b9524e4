"""Measurements in processes of their own: what they find arrives, whatever becomes of them."""

import pathlib
import subprocess
import sys
import threading
import time

import pytest
from helpers.places import PATIENCE, ROOT, TESTS

from tfdecouple.doctor import apart
from tfdecouple.doctor.apart import MeasurementError, Processes, run_here
from tfdecouple.doctor.examination import Examination, Request
from tfdecouple.doctor.finding import Finding

SETTING = {"tensorflow": False, "environment": {}, "alone": False}


@pytest.fixture(autouse=True)
def found_by_processes(monkeypatch):
    """Lets processes import the measurements of the tests."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


@pytest.fixture
def run():
    """Runs a measurement of the tests, in processes that end with the test."""
    processes = Processes()

    def run(name, limit=PATIENCE, setting=SETTING, **arguments):
        return processes(f"helpers.measurements:{name}", setting, limit, arguments)

    yield run
    processes.end()
    assert not apart.running


def test_a_process_takes_the_next_measurement_of_its_setting_until_one_fails(run):
    def process(**options):
        (found,) = run("tells_process", **options)
        return found["number"]

    first = process()
    assert process() == first
    alone, other = ({**SETTING, **change} for change in ({"alone": True}, {"environment": {"TFDECOUPLE_TRIED": "1"}}))
    numbers = [process(setting=alone), process(setting=alone), process(setting=other)]
    assert len({first, *numbers}) == 4 and process() == first
    with pytest.raises(MeasurementError, match="no such"):
        list(run("fails_late"))
    assert process() != first


def test_what_is_yielded_arrives_whatever_is_printed(run):
    assert list(run("well", number=21)) == [{"doing": "the double"}, {"number": 21}, {"number": 42}]


@pytest.mark.parametrize("limit", [1e9, float("inf")])
def test_a_limit_may_be_longer_than_the_system_waits_at_once(run, limit, monkeypatch):
    assert list(run("well", limit, number=21))[-1] == {"number": 42}
    # And it is waited for again, as often as that takes.
    monkeypatch.setattr(apart, "_MOST_SECONDS", 0.001)
    assert list(run("well", limit, number=21))[-1] == {"number": 42}


def test_what_is_asked_for_and_not_there_is_a_mistake(run, forked):
    setting = {**SETTING, "tensorflow": True, "devices": 0}
    with pytest.raises(MeasurementError, match="^--devices is 0; it must be at least 1$") as error:
        list(run("well", setting=setting, number=21))
    assert error.value.kind == "mistake"


@pytest.mark.parametrize(
    ("name", "before", "kind", "says"),
    [
        ("fails_late", [{"number": 1}], "error", "ValueError: no such"),
        ("wants_memory", [{"doing": "a large array"}], "memory", "2**60 bytes"),
        ("is_killed", [{"number": 1}], "memory", "killed"),
        ("crashes", [{"doing": "something native"}], "error", "signal 11"),
        ("nonsense", [], "error", "nonsense"),
    ],
)
def test_what_goes_wrong_is_told_after_what_was_found(run, name, before, kind, says):
    found = []
    with pytest.raises(MeasurementError) as error:
        for each in run(name):
            found.append(each)
    assert found == before
    assert error.value.kind == kind and says in str(error.value) and "\n" not in str(error.value)


def is_running(number):
    """Whether a process computes or sleeps: not gone, and no zombie that nobody has waited for."""
    try:
        status = pathlib.Path("/proc", number, "stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_what_hangs_is_ended_with_all_that_it_started(run, tmp_path):
    child, limit = tmp_path / "child", 1
    while not child.is_file() and limit < PATIENCE:
        with pytest.raises(MeasurementError, match=f"not done after {limit} s") as error:
            list(run("hangs", limit=limit, folder=str(tmp_path)))
        assert error.value.kind == "time"
        limit *= 4
    deadline = time.monotonic() + PATIENCE
    while is_running(child.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_nothing_outlives_the_program_that_began_it(tmp_path):
    code = (
        "import os, sys, threading; from tfdecouple.doctor.apart import Processes\n"
        f"run = Processes()('helpers.measurements:hangs', {SETTING}, {PATIENCE}, {{'folder': sys.argv[1]}})\n"
        "next(run); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)
    deadline = time.monotonic() + PATIENCE
    while is_running((tmp_path / "child").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_variables_of_its_own_reach_it_and_the_users_folder_does_not(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setting = {**SETTING, "environment": {"TFDECOUPLE_TRIED": "1"}}
    (found,) = run("tells_environment", setting=setting, variable="TFDECOUPLE_TRIED")
    assert found["value"] == "1" and found["folder"] != str(tmp_path)


class TestExamination:
    @staticmethod
    def findings(name, runner=run_here, **options):
        told = []
        examination = Examination(Request(timeout=PATIENCE), told.append, runner)
        target, judge = f"helpers.measurements:{name}", lambda found: Finding("a number", None, str(found["number"]))
        arguments = options.pop("arguments", {})
        return list(examination.findings(target, judge, "numbers", arguments, tensorflow=False, **options)), told

    def test_progress_is_told_and_findings_are_judged(self):
        findings, told = self.findings("well", arguments={"number": 1})
        assert [one.said for one in findings] == ["1", "2"]
        assert len(told) == 1 and told[0].endswith("the double")

    @pytest.mark.parametrize(
        ("name", "promise", "holds"),
        [
            ("fails_late", True, False),
            ("fails_late", False, False),
            ("wants_memory", True, False),
            ("wants_memory", False, None),
        ],
    )
    def test_a_failure_is_a_line_with_advice(self, name, promise, holds):
        findings, _ = self.findings(name, promise=promise)
        last = findings[-1]
        assert last.holds is holds and last.what == "numbers" and "not measured" in last.said and last.advice
        assert len(findings) == (2 if name == "fails_late" else 1)

    def test_a_check_that_fails_itself_ends_no_other(self):
        from tfdecouple.doctor.checks import Check

        def bad(examination):
            yield Finding("first", True, "well")
            raise KeyError("figures")

        examination = Examination(Request(), lambda text: None)
        examination.take(Check("bad", "goes wrong", bad))
        examination.take(Check("good", "goes well", lambda examination: iter([Finding("second", True, "well")])))
        assert [one.holds for one in examination.found["bad"]] == [True, False]
        assert "KeyError" in examination.found["bad"][1].said
        assert [one.holds for one in examination.found["good"]] == [True]

    def test_a_mistake_ends_it(self):
        from tfdecouple.doctor.checks import CHECKS

        def mistaken(*arguments):
            raise MeasurementError("mistake", "--devices is 8; there are 1 (GPU:0)")
            yield

        examination = Examination(Request(devices=8), lambda text: None, mistaken)
        with pytest.raises(MeasurementError, match="--devices is 8"):
            examination.examine(CHECKS)

    def test_nothing_runs_beside_what_runs_alone(self):
        from tfdecouple.doctor.checks import Check

        running, seen, both = [], [], threading.Barrier(2)

        def runner(target, setting, limit, arguments):
            running.append(target)
            if not setting["alone"]:
                both.wait(PATIENCE)
            seen.append((target, len(running)))
            time.sleep(0.05)
            running.remove(target)
            yield {}

        def measure(examination):
            for alone in (False, True):
                yield from examination.findings(f"alone {alone}", judged, "numbers", {}, alone=alone)

        def judged(found):
            return Finding("a number", None, "well")

        examination = Examination(Request(), lambda text: None, runner)
        examination.examine([Check(name, "measures", measure) for name in ("one", "two")])
        assert sorted(seen) == [("alone False", 2), ("alone False", 2), ("alone True", 1), ("alone True", 1)]

    def test_an_interrupt_ends_what_runs(self, tmp_path):
        from tfdecouple.doctor.checks import Check

        examination = Examination(Request(timeout=PATIENCE), lambda text: None)

        def hangs(examination):
            target, arguments = "helpers.measurements:hangs", {"folder": str(tmp_path)}
            yield from examination.findings(target, None, "hangs", arguments, tensorflow=False)

        def interrupts(examination):
            while not (tmp_path / "child").is_file():
                time.sleep(0.1)
            raise KeyboardInterrupt
            yield

        with pytest.raises(KeyboardInterrupt):
            examination.examine([Check("one", "is interrupted", interrupts), Check("two", "hangs", hangs)])
        assert not apart.running

    def test_a_failure_without_advice_is_refused(self):
        with pytest.raises(ValueError, match="no advice"):
            Finding("something", False, "wrong")
