"""The recipes of docs/extending.md for a metric, a picture and a command, carried out in a copy of the packages."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.recipes import append_rows, copy_packages, insert_text, read_recipe, run_in_copy
from PIL import Image

# Uses all three in one process, and traces nothing, which takes its time.
USE = """
import sys
import numpy as np, tensorflow as tf
tf.config.run_functions_eagerly(True)
from tfdecouple import load_model
from tfdecouple.cli import main
from tfdecouple.runs.run_folder import RunFolder
from tfdecouple.visualization.pictures import PictureInputs, draw_pictures

run, out = sys.argv[1:]
assert main(["evaluate", "--run", run, "--split", "validation", "--images", "2", "--brightness", "--out", out]) == 0
assert main(["brightness", "--run", run, "--count", "16"]) == 0
images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
pictures, exact = draw_pictures(PictureInputs(load_model(run), images))
RunFolder(out, is_written=True).write_pictures(7, pictures)
print("exact", exact)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = copy_packages(tmp_path_factory.mktemp("copy"))
    package = folder / "tfdecouple"
    (package / "metrics" / "brightness.py").write_text(read_recipe("evaluation metric"), encoding="utf-8")
    evaluate = package / "cli" / "evaluate.py"
    append_rows(evaluate, "METRICS", "Brightness,")
    insert_text(evaluate, "from tfdecouple.metrics.metric", "from tfdecouple.metrics.brightness import Brightness\n")
    module, _, row = read_recipe("command").partition("# in `COMMANDS`\n")
    (package / "cli" / "brightness.py").write_text(module, encoding="utf-8")
    commands = package / "cli" / "__init__.py"
    append_rows(commands, "COMMANDS", row)
    insert_text(commands, "from tfdecouple.cli.directions", "from tfdecouple.cli.brightness import brightness\n")
    with (package / "visualization" / "pictures.py").open("a", encoding="utf-8") as file:
        file.write("\n\n" + read_recipe("picture") + "\n")
    return folder


def test_help_shows_metric_and_command_of_the_recipes_without_tensorflow(copy):
    code = "import sys; from tfdecouple.cli import main; main(sys.argv[1:])\n"
    code += "print([name for name in ('tensorflow', 'keras', 'sklearn') if name in sys.modules])"
    shown = run_in_copy(copy, "-c", code, "evaluate", "--help", anew=True)
    assert "--brightness" in shown.stdout and "also how bright samples are" in shown.stdout
    assert shown.stdout.splitlines()[-1] == "[]"
    assert "Say how bright samples are" in run_in_copy(copy, "-m", "tfdecouple", "--help").stdout


def test_metric_command_and_picture_of_the_recipes_are_used(copy, tiny_run, tmp_path):
    done = run_in_copy(copy, "-c", USE, str(tiny_run), str(tmp_path))
    assert done.returncode == 0, done.stderr
    values = json.loads((tmp_path / "brightness-validation.json").read_text(encoding="utf-8"))
    assert 0 < values["brightness"] < 255
    assert (values["command"], values["split"], values["seed"]) == ("evaluate", "validation", 0)
    lines = done.stdout.splitlines()
    (measured,) = [line for line in lines if line.startswith("brightness of samples")]
    (said,) = [line for line in lines if line.startswith("16 samples of brightness")]
    # The same samples: both draw sixteen with seed 0.
    assert measured.split()[3] == said.split()[-1] == f"{values['brightness']:.1f}"
    # After the ELBO, which is always measured.
    assert lines.index(measured) > next(n for n, line in enumerate(lines) if "bits/dim: ELBO" in line)
    exact = int(lines[-1].removeprefix("exact "))
    with Image.open(tmp_path / "images" / "step-000000007-differences.png") as picture:
        assert (np.asarray(picture) == 0).any()
    assert exact == 4
    names = {path.name.removeprefix("step-000000007-") for path in tmp_path.glob("images/*.png")}
    assert names >= {"differences.png", "reconstructions.png", "samples.png", "interpolation.png"}
