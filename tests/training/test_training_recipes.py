"""The recipes of docs/extending.md for figures of training, carried out literally in a copy of the package."""

import pytest
from helpers.recipes import append_rows, copy_packages, insert_text, read_recipe, run_in_copy
from helpers.runs import read_log, run_config

from tfdecouple.storage.files import write_json


@pytest.mark.slow
def test_figures_of_an_evaluation_and_of_a_step_are_in_the_log(image_folder, tmp_path):
    folder = copy_packages(tmp_path)
    training = folder / "tfdecouple" / "training"
    function, _, line = read_recipe("validation metric").partition("# in `DIAGNOSTICS`\n")
    insert_text(training / "evaluation.py", "DIAGNOSTICS = [", f"{function}\n")
    append_rows(training / "evaluation.py", "DIAGNOSTICS", line)
    window, field, value = read_recipe("step metric").splitlines()
    append_rows(training / "state.py", "RUNNING_MEANS", window)
    insert_text(training / "step.py", "    learning_rate: Any", f"    {field}\n")
    insert_text(training / "step.py", "            learning_rate=rate", f"            {value}\n")

    write_json(folder / "config.json", run_config(image_folder, steps=2, pictures=0).to_dict())
    trained = run_in_copy(folder, "train.py", "--config", "config.json", "--workdir", "run")
    assert trained.returncode == 0, trained.stderr
    rows = read_log(folder / "run")
    assert rows["train", 2]["size_of_weights"] > 1
    assert rows["validation", 2]["largest_v"] > rows["validation", 2]["smallest_scale"] > 0
