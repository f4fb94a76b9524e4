"""The recipes of docs/extending.md for endpoints, carried out in a copy of the packages."""

import json
import re

import onnx
import pytest
import tensorflow as tf
from helpers.models import TINY, random_images
from helpers.places import ROOT
from helpers.recipes import append_rows, copy_packages, insert_text, read_recipe, run_in_copy
from helpers.runs import write_run
from helpers.variants import OF_CLASSES, fresh
from tensorflow_serving.apis import prediction_log_pb2

from export.cli import EXIT_REFUSED
from export.endpoints import list_endpoints


@pytest.fixture
def copy(tmp_path):
    """A copy of the packages in which the recipes have been followed, in their one file."""
    file = copy_packages(tmp_path / "copy") / "export" / "endpoints.py"
    for name in ("endpoint", "endpoint that returns numbers"):
        functions, _, rest = read_recipe(name).partition("\n# in `list_endpoints`\n")
        endpoint, _, line = rest.partition("\n# in `every`\n")
        insert_text(file, "def list_onnx_names", functions + "\n\n\n")
        insert_text(file, "    every = (", endpoint + "\n")
        append_rows(file, "every", line)
    return file.parents[1]


def run_export(copy, run, to):
    """Runs the command in the copy: one signature, all ONNX files."""
    return run_in_copy(copy, "-m", "export", "--run", str(run), "--to", str(to), "--endpoints", "reconstruct", "length")


# Of a run whose z is a function of the label: the endpoints that it has, and whether the graph answers as the model.
USE = """
import doctest, sys
import numpy as np, tensorflow as tf
tf.config.run_functions_eagerly(True)
from export import endpoints as signatures
from export.deployed.deployed_model import DeployedModel
from export.endpoints import IMAGE
from export.provenance import open_run
from export.endpoints import find_endpoint, list_endpoints
from export.verification.vectors import KerasAnswers

model, _ = open_run(sys.argv[1])
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (3, *model.config.image_shape), dtype=np.uint8)
for name, output in {"reconstruct": "decoded", "length": "length"}.items():
    one = find_endpoint(model.config, name)
    given = {array.name: images if array.holds == IMAGE else array.draw_values(rng, 3) for array in one.inputs}
    made = one.build(DeployedModel(model), {name: tf.constant(value) for name, value in given.items()})
    answers = KerasAnswers(model)
    (right,) = one.answer(answers, given).values()
    right = answers.to_pixels(right) if output == "decoded" else right
    np.testing.assert_allclose(made[output].numpy(), right, rtol=1e-5)
assert doctest.testmod(signatures).failed == 0
print(*given, "of", *(one.name for one in list_endpoints(model.config)))
"""


@pytest.mark.slow
class TestEndpoint:
    def test_is_offered_warmed_up_compared_and_described_by_the_card(self, copy, tiny_run, tmp_path):
        done = run_export(copy, tiny_run, tmp_path / "to")
        assert done.returncode == 0, done.stderr
        signatures = tf.saved_model.load(str(tmp_path / "to" / "savedmodel" / "1")).signatures
        images = random_images(3)
        made = signatures["reconstruct"](images=tf.constant(images))["decoded"]
        assert made.dtype == tf.uint8 and made.shape == images.shape
        path = tmp_path / "to" / "savedmodel" / "1" / "assets.extra" / "tf_serving_warmup_requests"
        logs = [prediction_log_pb2.PredictionLog.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(path))]
        names = [log.predict_log.request.model_spec.signature_name for log in logs]
        assert names == ["serving_default", "reconstruct", "length"]
        assert onnx.load(tmp_path / "to" / "onnx" / "reconstructor.onnx").graph.name == "reconstruct"
        card = json.loads((tmp_path / "to" / "model_card.json").read_text())
        assert card["endpoints"]["reconstruct"]["onnx"] == "onnx/reconstructor.onnx"
        assert all("reconstruct" in entry["parity"] for entry in card["formats"].values())

    def test_joins_those_of_a_model_of_classes_and_takes_its_labels(self, copy, tmp_path):
        config = OF_CLASSES["classes"]
        used = run_in_copy(copy, "-c", USE, str(write_run(tmp_path / "run", fresh(config))))
        assert used.returncode == 0, used.stderr
        inputs, _, names = used.stdout.rstrip("\n").partition(" of ")
        assert inputs == "images labels"
        assert names.split() == [*(one.name for one in list_endpoints(config)), "reconstruct", "length"]

    def test_with_another_graph_than_the_model_is_refused(self, copy, tiny_run, tmp_path):
        file = copy / "export" / "endpoints.py"
        text = file.read_text(encoding="utf-8")
        right = 'deployed.encode(inputs["images"], inputs.get("labels"))'
        assert f"*{right}" in text
        file.write_text(text.replace(f"*{right}", f"*(1.01 * code for code in {right})"))
        done = run_export(copy, tiny_run, tmp_path / "to")
        assert done.returncode == EXIT_REFUSED and "reconstruct: decoded: " in done.stderr
        assert not (tmp_path / "to").exists()


def test_documentation_tells_endpoints_as_they_are_registered():
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    table = text.partition("## Endpoints")[2].partition("\nimages ")[0]
    told = {}
    for line in (line for line in table.splitlines() if line.startswith("| `")):
        name, takes, returns, file = (cell.strip() for cell in line.split("|")[1:-1])
        plain = [re.sub(r" \([^)]*\)", "", cell).split(", ") for cell in (takes, returns)]
        told[re.findall("`(.*?)`", name)[0]] = (*plain, file.strip("`"))
    registered = {
        one.name: (
            [array.name for array in one.inputs],
            [array.name for array in one.outputs],
            f"{one.onnx}.onnx" if one.onnx else "",
        )
        for one in list_endpoints(TINY)
    }
    assert len(told) >= 8 and told.items() <= registered.items()
