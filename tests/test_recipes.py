from __future__ import annotations

import json
import re

import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import assert_invertible
from helpers.places import run_python
from helpers.recipes import append_rows, copy_packages, insert_text, read_recipe, run_in_copy

from tfdecouple.bijectors import closed_form
from tfdecouple.loggers import LOGGERS
from tfdecouple.transforms import TRANSFORMS

(TRANSFORM,) = re.findall(r'"(.*)": Transform', read_recipe("coupling transform"))
MODEL = {"image_shape": [8, 8, 3], "latent_dim": 4, "steps": [1, 1], "hidden_channels": [4, 6], "encoder_channels": [4]}
MODEL |= {"encoder_out_channels": 2, "prior_steps": 1, "prior_hidden": 6, "alpha": 0.5, "prior_alpha": 0.5}
MODEL |= {f"{place}transform": TRANSFORM for place in ("", "multiscale_", "prior_")}
TRAINING = {"batch_size": 8, "init_images": 8, "evaluation_batch_size": 8, "pictures": 0, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = copy_packages(tmp_path_factory.mktemp("recipes"))
    package = folder / "tfdecouple"
    (package / "presets" / "mine.json").write_text(read_recipe("preset"), encoding="utf-8")
    tiny = {"description": "tiny", "model": MODEL, "data": {"source": "stripes"}, "training": TRAINING}
    (package / "presets" / "tiny.json").write_text(json.dumps(tiny), encoding="utf-8")
    for name, file, registry, before in [
        ("logger", "loggers.py", "LOGGERS", "LOGGERS: dict"),
        ("data source", "data/sources.py", "KINDS", "KINDS: tuple"),
        ("data source with a path", "data/sources.py", "KINDS", "KINDS: tuple"),
    ]:
        code, _, row = read_recipe(name).partition(f"# in `{registry}`\n")
        insert_text(package / file, before, f"{code}\n\n")
        append_rows(package / file, registry, row)
    code, _, row = read_recipe("coupling transform").partition("# in `TRANSFORMS`\n")
    (module,) = re.findall(r"# (tfdecouple/.*\.py)", code)
    (folder / module).write_text(code, encoding="utf-8")
    append_rows(package / "transforms.py", "TRANSFORMS", row)
    return folder


def run(folder, *arguments):
    done = run_in_copy(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


LOGGER = """
from tfdecouple.config import Config
from tfdecouple.errors import ConfigError
try:
    Config().override(['training.loggers=["line"]'])
except ConfigError as error:
    print(error)
"""

SOURCE = """
import os
import numpy as np
from tfdecouple.config import DataConfig
from tfdecouple.data import sources
from tfdecouple.data.batches import load_images, make_training_batches
from tfdecouple.data.sources import open_source
source = open_source(DataConfig(source="stripes"), (8, 8, 3))
batch = next(iter(make_training_batches(source, DataConfig(), batch_size=4, seed=0)))["image"].numpy()
assert batch.shape == (4, 8, 8, 3) and (batch == batch[:, :, :1, :1]).all() and batch.std() > 0
ours, theirs = (load_images(source, split, 64)[0] for split in ("train", "test"))
assert (ours != theirs).any()
print(sources.list_source_kinds())
try:
    open_source(DataConfig(source="strips"), (8, 8, 3))
except Exception as error:
    print(error)
images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
np.save("images.npy", images)
resolved = sources.resolve_image_paths(DataConfig(source="array:images.npy"))
os.chdir("/")
assert (load_images(open_source(resolved, (8, 8, 3)), "train", 10)[0] == images[:20:2]).all()
print(resolved.source, *sources.locate_images(resolved))
"""

COUPLING = f"""
import pkgutil
import numpy as np, tensorflow as tf
from tfdecouple.bijectors import with_log_det
from tfdecouple.config import preset_config
from tfdecouple.model import DecoupledModel
from tfdecouple.networks.architecture import count_parameters
from tfdecouple.transforms import TRANSFORMS

config = preset_config("tiny").model
# Functions that run once or twice are not traced, because tracing takes longer.
tf.config.run_functions_eagerly(True)
model = DecoupledModel(config)
assert model.parameter_count() == count_parameters(config)
images = np.random.default_rng(0).integers(100, 150, (16, 8, 8, 3), dtype=np.uint8)
model.initialize(images, seed=0)
for variable in model.trainable_variables:
    variable.assign_add(0.1 * np.random.default_rng(1).standard_normal(variable.shape))
np.testing.assert_array_equal(model.decode(*model.encode(images)), images)
assert np.isfinite(model.bound(images, seed=0).bits_per_dim).all()

transform = TRANSFORMS[{TRANSFORM!r}]
x, *raw = tf.unstack(tf.random.stateless_normal([1 + transform.parameters, 1, 2, 2, 3], [0, 1], dtype="float64"))
with tf.GradientTape() as tape:
    tape.watch(x)
    bijector = pkgutil.resolve_name(transform.bijector)(*raw, alpha=0.5)
    y, log_det = with_log_det(bijector).forward_and_log_det(x)
slopes = tape.gradient(y, x)
np.testing.assert_allclose(log_det, tf.reduce_sum(tf.math.log(tf.abs(slopes)), [1, 2, 3]), rtol=1e-9)
assert abs(float(log_det[0])) > 1e-3
"""


class TestRecipe:
    def test_preset_of_the_recipe_needs_one_file(self, folder):
        shown = run(folder, "-m", "tfdecouple", "presets", "mine")
        values = json.loads(shown[shown.index("{") :])
        assert json.loads(read_recipe("preset"))["model"].items() <= values["model"].items()
        assert "a preset of our own" in shown

    def test_unknown_logger_is_refused_with_the_names_of_all_loggers(self, folder):
        message = run(folder, "-c", LOGGER).strip()
        assert message.endswith(" or 'lines'") and all(repr(name) in message for name in LOGGERS)

    def test_data_sources_of_the_recipes_are_opened_from_any_folder_and_listed(self, folder):
        listed, refused, located = run(folder, "-c", SOURCE).splitlines()
        assert listed.endswith("or array:PATH") and "stripes" in listed
        parts = ("did you mean stripes?", "photographs, cifar10", ", stripes", "array:PATH")
        assert all(part in refused for part in parts)
        path = folder / "images.npy"
        assert located.split() == [f"array:{path}", "data.source", str(path)]

    def test_transform_of_the_recipe_is_exact_with_the_right_log_det_and_named_in_errors(self, folder):
        run(folder, "-c", COUPLING)
        shown = run_in_copy(folder, "train.py", "--set", "model.transform=else", "--workdir", "run")
        assert shown.returncode == 2 and all(repr(name) in shown.stderr for name in (*TRANSFORMS, TRANSFORM))

    @pytest.mark.slow
    def test_run_with_all_recipes_is_trained_resumed_evaluated_and_exported(self, folder, tmp_path):
        np.save(folder / "some.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8))
        options = ["train.py", "--preset", "tiny", "--workdir", str(tmp_path / "run")]
        options += ["--set", 'training.loggers=["lines"]', "--set", "training.log_every=2"]
        run(folder, *options, "--data", "array:some.npy", "--steps", "2")
        options[0], data = folder / "train.py", f"array:{folder / 'some.npy'}"
        done = run_python(*options, "--data", data, "--steps", 4, folder=tmp_path, PYTHONPATH=str(folder))
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8").splitlines()
        assert [line.split()[0] for line in lines if "train/bits_per_dim" in line] == ["2", "4"]
        run_folder = ["--run", str(tmp_path / "run")]
        run(folder, "-m", "tfdecouple", "evaluate", *run_folder, "--data", "stripes", "--split", "validation")
        (result,) = (tmp_path / "run").rglob("bits_per_dim-validation*.json")
        assert json.loads(result.read_text(encoding="utf-8"))["source"] == "stripes"
        # These endpoints run the transform in both directions, and use its log-determinant.
        run(folder, "-m", "export", *run_folder, "--to", "out", "--endpoints", "encode", "decode", "score")
        assert {"encoder.onnx", "decoder.onnx"} <= {file.name for file in (folder / "out" / "onnx").iterdir()}

    def test_bijector_of_the_recipe_inverts_with_the_log_det_of_its_jacobian(self):
        names = {**vars(closed_form)}
        flags = annotations.compiler_flag
        exec(compile(read_recipe("bijector"), "recipe", "exec", dont_inherit=True, flags=flags), names)
        rng = np.random.default_rng(0)
        x = tf.constant(rng.standard_normal((2, 2, 2, 3)))
        bijector = names["SignedPower"](0.3 * rng.standard_normal(3))
        assert_invertible(bijector, x)
        # TFP would take a constant Jacobian for that of all x.
        for value in (x, 2 * x):
            slopes = bijector.forward_log_det_jacobian(value, event_ndims=3)
            np.testing.assert_allclose(slopes, bijector.forward_and_log_det(value)[1], atol=1e-9)
