"""The recipe of docs/design.md for a check of doctor, carried out in a copy of the packages."""

from helpers.recipes import copy_of_packages, insert, recipe, run_in

# In one process, for TensorFlow takes its time to start.
USE = """
from tfdecouple.doctor.apart import run_here
from tfdecouple.doctor.checks import CHECKS
from tfdecouple.doctor.examination import Examination, Request
from tfdecouple.doctor.recommendation import Recommendation
from tfdecouple.doctor.report import Report

examination = Examination(Request(), print, run_here)
examination.take(CHECKS[-1])
print(Report(examination.request, examination.found, Recommendation()).text())
"""


def test_the_check_of_the_recipe_runs_and_is_told(tmp_path):
    copy = copy_of_packages(tmp_path)
    module, _, registered = recipe("check").partition("# in `CHECKS`\n")
    folder = copy / "tfdecouple" / "doctor"
    (folder / "repetition.py").write_text(module, encoding="utf-8")
    insert(folder / "checks.py", "memory, numerics, speed", "repetition, ", after="from tfdecouple.doctor import")
    insert(folder / "checks.py", "\n)", "\n" + registered, after='Check("memory"')
    done = run_in(copy, "-c", USE)
    assert done.returncode == 0, done.stderr
    assert "repetition: the same numbers in each call" in done.stdout
    assert "0 numbers of v are others in a second call" in done.stdout
