"""The recipe of docs/extending.md for a preset, carried out literally in a copy of the package."""

import json

from helpers.recipes import copy_packages, read_recipe, run_in_copy


def test_a_preset_is_a_file(tmp_path):
    folder = copy_packages(tmp_path)
    (folder / "tfdecouple" / "presets" / "mine.json").write_text(read_recipe("preset"), encoding="utf-8")
    shown = run_in_copy(folder, "-m", "tfdecouple", "presets", "mine")
    assert shown.returncode == 0, shown.stderr
    values = json.loads(shown.stdout[shown.stdout.index("{") :])
    assert json.loads(read_recipe("preset"))["model"].items() <= values["model"].items()
    assert "a preset of our own" in shown.stdout
