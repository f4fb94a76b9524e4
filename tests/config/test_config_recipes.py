"""The recipes of docs/extending.md for a preset and an option, carried out literally in a copy of the package."""

import json

from helpers.recipes import copy_packages, insert_text, read_recipe, run_in_copy


def test_preset_recipe_needs_one_file(tmp_path):
    folder = copy_packages(tmp_path)
    (folder / "tfdecouple" / "presets" / "mine.json").write_text(read_recipe("preset"), encoding="utf-8")
    shown = run_in_copy(folder, "-m", "tfdecouple", "presets", "mine")
    assert shown.returncode == 0, shown.stderr
    values = json.loads(shown.stdout[shown.stdout.index("{") :])
    assert json.loads(read_recipe("preset"))["model"].items() <= values["model"].items()
    assert "a preset of our own" in shown.stdout


USE = """
import sys
from tfdecouple.config import Config, TrainingConfig, list_option_names, override, parse_config
from tfdecouple.errors import ConfigError
config = override(Config(), ["training.patience=3"])
assert config.training.patience == 3 and Config().training.patience == 0
assert parse_config(Config, config.to_dict()) == config and '"patience": 3' in config.to_json()
assert "training.patience" in list_option_names() and "patience: evaluations" in TrainingConfig.__doc__
for assignment in ("training.patience=-1", "training.patience=many", "training.patienc=1"):
    try:
        override(Config(), [assignment])
    except ConfigError as error:
        print(error)
"""


def test_option_recipe_needs_two_lines_and_is_checked(tmp_path):
    folder = copy_packages(tmp_path)
    where, line, field = read_recipe("option").splitlines()
    assert where.startswith("# config/training.py")
    file = folder / "tfdecouple" / "config" / "training.py"
    insert_text(file, '    """\n', f"    {line}\n", after="class TrainingConfig")
    insert_text(file, "\n    def __post_init__", f"    {field}\n", after="class TrainingConfig")
    used = run_in_copy(folder, "-c", USE)
    assert used.returncode == 0, used.stderr
    assert used.stdout.splitlines() == [
        "training.patience is -1; it must be at least 0",
        "training.patience is 'many'; it must be a whole number",
        "there is no option 'training.patienc'; did you mean training.patience?",
    ]
