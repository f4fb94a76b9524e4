"""A program that runs checks as `tfdecouple doctor` does, but checks that raise, hang or are killed, for tests."""

import os
import signal
import sys
import time
import types

from tfdecouple.doctor import check_runner
from tfdecouple.doctor.check_runner import Check, CheckResult
from tfdecouple.system.process import run_program


def well(task):
    print("chatter\n" * 10_000)
    yield CheckResult("first", True, "well")
    yield CheckResult("second", None, task.variant.name, figures={"devices": task.devices, "path": sys.path})


def fails_late(task):
    yield CheckResult("first", True, "well")
    raise ValueError("no such\nkernel")


def hangs(task):
    yield CheckResult("first", True, "well")
    time.sleep(1800)


def wants_memory(task):
    raise MemoryError("2**60 bytes")


def is_killed(task):
    yield CheckResult("first", True, "well")
    os.kill(os.getpid(), signal.SIGKILL)


def crashes(task):
    yield CheckResult("first", True, "well")
    os.kill(os.getpid(), signal.SIGSEGV)


NAMES = ("well", "fails_late", "hangs", "wants_memory", "is_killed", "crashes")
PLANTED = {name: Check("planted", f"planted:{name}") for name in NAMES}

if __name__ == "__main__":
    check_runner.CHECKS.update(PLANTED)
    check_runner.start_tensorflow = lambda: None
    sys.modules["tfdecouple.doctor.planted"] = sys.modules["__main__"]
    sys.modules["tfdecouple.training.workers"] = types.SimpleNamespace(make_strategy=lambda devices: None)
    sys.exit(run_program(check_runner.main))
