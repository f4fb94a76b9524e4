"""The recipes of docs/extending.md for training, carried out literally in a copy of the package."""

import json

import pytest
from helpers.places import TESTS
from helpers.recipes import append_rows, copy_packages, insert_text, read_recipe, run_in_copy
from helpers.runs import read_log, run_config

from tfdecouple.storage.files import write_json

# Trains in steps of the trainer, on one and on two devices, and in a step of Keras, with and without the new option.
USE = f"""
import json, sys
sys.path.append({str(TESTS)!r})
from tfdecouple.runtime.process import start_tensorflow
start_tensorflow()
import numpy as np, tensorflow as tf
from tfdecouple.training.workers import make_strategy
make_strategy(2)
from helpers.models import random_images
from helpers.trainers import SMALL, Trainer
from tfdecouple.config import TrainingConfig
from tfdecouple.model import DecoupledModel
from tfdecouple.model.step_effects import augment_images

def train(devices, **options):
    return Trainer(devices, **options).take(2).bits_per_dim

def augment(share):
    images = tf.constant(random_images(64))
    config, update = TrainingConfig(grey=share), tf.constant(0, tf.int64)
    grey = augment_images(images, config, update, tf.constant([1, 2]), slice(0, 64), 64).numpy()
    half = augment_images(images[32:], config, update, tf.constant([1, 2]), slice(32, 64), 64).numpy()
    assert np.array_equal(grey[32:], half)
    return float((grey == grey[..., :1]).all((1, 2, 3)).mean())

def fit(**options):
    model = DecoupledModel(SMALL)
    model.initialize(random_images(16), seed=0)
    model.compile("adam", **options)
    return model.train_on_batch(random_images(8), return_dict=True)["bits_per_dim"]

print(json.dumps({{
    "shares": [augment(share) for share in (0.0, 0.5, 0.999)],
    "trained": [train(1), train(1, grey=0.5), train(2, grey=0.5)],
    "fitted": [fit(), fit(grey=0.9)],
}}))
"""


def add_option(tfdecouple, recipe):
    """Adds the option of a recipe to `TrainingConfig`, and the recipe's last block to the code of a step."""
    declared, effect = read_recipe(recipe).split("\n\n")
    _, text, field, *entries = declared.splitlines()
    config = tfdecouple / "config" / "training.py"
    insert_text(config, "        init_from: run folder", f"        {text.strip()}\n")
    insert_text(config, "    init_from: str | None", f"    {field}\n")
    if entries:
        append_rows(config, "OPTIMIZER_OPTIONS", "\n".join(entries))
    place, *lines = effect.splitlines()
    file = tfdecouple / place.removeprefix("# ").partition(",")[0]
    function = place.partition("`")[2].rstrip("`")
    insert_text(file, "    return ", "\n".join(lines) + "\n", after=f"def {function}(")


@pytest.mark.slow
def test_recipes_of_training_add_metrics_an_effect_and_a_schedule(image_folder, tmp_path):
    folder = copy_packages(tmp_path)
    package = folder / "tfdecouple"
    function, _, line = read_recipe("validation metric").partition("# in `DIAGNOSTICS`\n")
    insert_text(package / "training" / "evaluation.py", "DIAGNOSTICS = [", f"{function}\n")
    append_rows(package / "training" / "evaluation.py", "DIAGNOSTICS", line)
    window, field, value = read_recipe("step metric").splitlines()
    append_rows(package / "training" / "state.py", "RUNNING_MEANS", window)
    insert_text(package / "training" / "step.py", "    learning_rate: Any", f"    {field}\n")
    insert_text(package / "training" / "step.py", "            learning_rate=rate", f"            {value}\n")
    add_option(package, "option")
    add_option(package, "learning-rate schedule")

    config = run_config(image_folder, steps=4, pictures=0, log_every=1, decay_rate=1.0, warmup_steps=0).to_dict()
    config["training"] |= {"grey": 0.5, "cosine_decay": True}
    write_json(folder / "config.json", config)
    trained = run_in_copy(folder, "train.py", "--config", "config.json", "--workdir", "run")
    assert trained.returncode == 0, trained.stderr
    rows = read_log(folder / "run")
    assert rows["train", 4]["size_of_weights"] > 1
    assert rows["validation", 4]["largest_v"] > rows["validation", 4]["smallest_scale"] > 0
    rates = [rows["train", step]["learning_rate"] / config["training"]["learning_rate"] for step in (1, 2, 3, 4)]
    assert rates == pytest.approx([1, 0.853553, 0.5, 0.146447], rel=1e-4)

    used = run_in_copy(folder, "-c", USE)
    assert used.returncode == 0, used.stderr
    results = json.loads(used.stdout.splitlines()[-1])
    assert results["shares"][0] == 0 and 0.3 < results["shares"][1] < 0.7 and results["shares"][2] == 1
    without, one_device, two_devices = results["trained"]
    assert one_device == pytest.approx(two_devices, rel=1e-5) and abs(one_device - without) > 1e-3
    assert abs(results["fitted"][0] - results["fitted"][1]) > 1e-3
