"""The recipes of docs/extending.md for figures of training, carried out literally in a copy of the package."""

import pytest
from helpers.recipes import copy_of_packages, insert, recipe, register, run_in
from helpers.runs import log_rows, run_config

from tfdecouple.storage.files import write_json


@pytest.mark.slow
def test_figures_of_an_evaluation_and_of_a_step_are_in_the_log(image_folder, tmp_path):
    folder = copy_of_packages(tmp_path)
    training = folder / "tfdecouple" / "training"
    function, _, line = recipe("validation metric").partition("# in `DIAGNOSTICS`\n")
    insert(training / "evaluation.py", "DIAGNOSTICS = [", f"{function}\n")
    register(training / "evaluation.py", "DIAGNOSTICS", line)
    window, field, value = recipe("step metric").splitlines()
    register(training / "state.py", "RUNNING_MEANS", window)
    insert(training / "step.py", "    learning_rate: Any", f"    {field}\n")
    insert(training / "step.py", "            learning_rate=rate", f"            {value}\n")

    write_json(folder / "config.json", run_config(image_folder, steps=2, pictures=0).to_dict())
    trained = run_in(folder, "train.py", "--config", "config.json", "--workdir", "run")
    assert trained.returncode == 0, trained.stderr
    rows = log_rows(folder / "run")
    assert rows["train", 2]["size_of_weights"] > 1
    assert rows["validation", 2]["largest_v"] > rows["validation", 2]["smallest_scale"] > 0
