"""The recipe of docs/extending.md for a check of doctor, carried out in a copy of the packages."""

from helpers.recipes import copy_packages, insert_text, read_recipe, run_in_copy


def test_the_check_of_the_recipe_runs_and_is_told(tmp_path):
    copy = copy_packages(tmp_path)
    module, _, registered = read_recipe("doctor check").partition("# in `CHECKS`\n")
    folder = copy / "tfdecouple" / "doctor"
    (folder / "repetition.py").write_text(module, encoding="utf-8")
    insert_text(folder / "check_runner.py", "installation", "repetition, ", after="from tfdecouple.doctor import")
    insert_text(folder / "check_runner.py", "\n}", "\n" + registered, after="CHECKS = {")
    done = run_in_copy(copy, "-m", "tfdecouple", "doctor", "--only", "repetition", anew=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "repetition: the same numbers in each call" in done.stdout
    assert "0 numbers of v differ in a second call" in done.stdout
