"""The recipes of docs/extending.md for endpoints, carried out in a copy of the packages."""

import json
import re
import shutil

import numpy as np
import onnx
import pytest
import tensorflow as tf
from helpers.models import TINY, random_images
from helpers.places import ROOT
from helpers.recipes import append_rows, copy_packages, insert_text, read_recipe, run_in_copy
from helpers.runs import write_run
from helpers.variants import OF_CLASSES, fresh
from tensorflow_serving.apis import prediction_log_pb2

from export.endpoints import list_endpoints
from export.exported_model import ExportedModel
from tfdecouple.cli.options import EXIT_FAILED


@pytest.fixture
def copy(tmp_path):
    """A copy of the packages in which the recipes have been followed, in their one file."""
    file = copy_packages(tmp_path / "copy") / "export" / "endpoints.py"
    for name in ("endpoint", "endpoint that returns numbers"):
        functions, _, rest = read_recipe(name).partition("\n# in `list_endpoints`\n")
        endpoint, _, line = rest.partition("\n# in `every`\n")
        insert_text(file, "def find_endpoint", functions + "\n\n\n")
        insert_text(file, "    every = (", endpoint + "\n")
        append_rows(file, "every", line)
    return file.parents[1]


def run_export(copy, run, to, *options):
    return run_in_copy(copy, "-m", "export", "--run", str(run), "--to", str(to), *options)


# Of a run whose z is a function of the label: the endpoints that it has, and whether the graph answers as the model.
USE = """
import doctest, sys
import numpy as np, tensorflow as tf
from export import endpoints as signatures
from export.exported_model import ExportedModel
from tfdecouple.cli.options import EXIT_FAILED
from export.endpoints import IMAGE
from export.provenance import open_run
from export.endpoints import find_endpoint, list_endpoints
from export.verification.vectors import KerasAnswers, draw_values
from tfdecouple.cli.options import EXIT_FAILED

model, _ = open_run(sys.argv[1])
rng, exported = np.random.default_rng(0), ExportedModel(model)
images = rng.integers(0, 256, (3, *model.config.image_shape), dtype=np.uint8)
for name, output in {"reconstruct": "decoded", "length": "length"}.items():
    endpoint = find_endpoint(model.config, name)
    given = {array.name: images if array.holds == IMAGE else draw_values(array, rng, 3) for array in endpoint.inputs}
    arrays = exported.collect_arrays()
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        read = exported.make_answers(lambda name: tf.constant(arrays[name]))
        made = session.run(endpoint.answer(read, {name: tf.constant(value) for name, value in given.items()}))
    answers = KerasAnswers(model)
    (right,) = endpoint.answer(answers, given).values()
    right = answers.to_pixels(right) if output == "decoded" else right
    np.testing.assert_allclose(made[output], right, rtol=1e-5)
assert doctest.testmod(signatures).failed == 0
print(*given, "of", *(endpoint.name for endpoint in list_endpoints(model.config)))
"""


@pytest.mark.slow
class TestEndpoint:
    def test_endpoint_of_the_recipe_is_offered_warmed_up_compared_and_described(self, copy, tiny_run, tmp_path):
        done = run_export(copy, tiny_run, tmp_path / "to", "--endpoints", "reconstruct", "length")
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

    def test_endpoint_of_the_recipe_takes_the_labels_of_a_model_of_classes(self, copy, tmp_path):
        config = OF_CLASSES["classes"]
        used = run_in_copy(copy, "-c", USE, str(write_run(tmp_path / "run", fresh(config))))
        assert used.returncode == 0, used.stderr
        inputs, _, names = used.stdout.rstrip("\n").partition(" of ")
        assert inputs == "images labels"
        assert names.split() == [*(endpoint.name for endpoint in list_endpoints(config)), "reconstruct", "length"]

    def test_endpoint_whose_graph_differs_from_the_model_is_refused(self, copy, tiny_run, tmp_path):
        file = copy / "export" / "exported_model.py"
        text = file.read_text(encoding="utf-8")
        right = "self._quantizer.round_to_pixels(self._invert_flow(z, v)[0])"
        assert right in text
        file.write_text(text.replace(right, right.replace("(z, v)", "(z, 1.01 * v)")))
        done = run_export(copy, tiny_run, tmp_path / "to", "--endpoints", "reconstruct", "length")
        assert done.returncode == EXIT_FAILED and "reconstruct: decoded: " in done.stderr
        assert not (tmp_path / "to").exists()


@pytest.mark.slow
class TestFormat:
    @pytest.fixture
    def formats(self, tmp_path):
        file = copy_packages(tmp_path / "copy") / "export" / "formats" / "__init__.py"
        before = "# {name of a format"
        weights, _, row = read_recipe("export format").partition("\n# in `FORMATS`\n")
        insert_text(file, before, weights + "\n\n\n")
        append_rows(file, "FORMATS", row)
        graphs, _, row = read_recipe("export format with a runtime").partition("\n# in `FORMATS`\n")
        shutil.copy(ROOT / "tests" / "helpers" / "graph_files.py", file.parent)
        insert_text(file, before, graphs + "\n\n\n")
        append_rows(file, "FORMATS", row)
        return file.parents[2]

    def test_formats_of_the_recipes_are_written_verified_and_described(self, formats, tiny_run, opened, tmp_path):
        to = tmp_path / "to"
        done = run_export(formats, tiny_run, to, "--format", "graphs", "weights")
        assert done.returncode == 0, done.stderr
        right = ExportedModel(opened[0]).collect_arrays()
        with np.load(to / "weights" / "weights.npz") as archive:
            assert set(archive) == set(right)
            assert all(np.array_equal(archive[name], array) for name, array in right.items())
        entries = json.loads((to / "model_card.json").read_text())["formats"]
        assert set(entries["graphs"]["parity"]) == {"encode", "decode", "sample"} and "checked" in entries["weights"]
        assert "### weights" in (to / "MODEL_CARD.md").read_text()
        verified = run_in_copy(formats, "-m", "export", "--verify", str(to))
        assert verified.returncode == 0 and "outputs were not checked of weights" in verified.stdout, verified.stderr
        (to / "graphs" / "encoder.pb").write_bytes((to / "graphs" / "decoder.pb").read_bytes())
        assert run_in_copy(formats, "-m", "export", "--verify", str(to)).returncode == EXIT_FAILED

    def test_format_whose_files_answer_wrongly_is_not_published(self, formats, tiny_run, tmp_path):
        file = formats / "export" / "formats" / "graph_files.py"
        file.write_text(file.read_text().replace("inputs[name] for name", "inputs[name] * 0 for name"))
        done = run_export(formats, tiny_run, tmp_path / "to", "--format", "graphs")
        assert done.returncode == EXIT_FAILED and "encode: " in done.stderr
        assert not (tmp_path / "to").exists()


def test_documentation_tells_endpoints_as_they_are_registered():
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    table = text.partition("## Endpoints")[2].partition("\nimages ")[0]
    told = {}
    for line in (line for line in table.splitlines() if line.startswith("| `")):
        name, takes, returns, file = (cell.strip() for cell in line.split("|")[1:-1])
        plain = [re.sub(r" \([^)]*\)", "", cell).split(", ") for cell in (takes, returns)]
        told[re.findall("`(.*?)`", name)[0]] = (*plain, file.strip("`"))
    registered = {}
    for endpoint in list_endpoints(TINY):
        takes, returns = ([array.name for array in arrays] for arrays in (endpoint.inputs, endpoint.outputs))
        registered[endpoint.name] = (takes, returns, f"{endpoint.onnx}.onnx" if endpoint.onnx else "")
    assert len(told) >= 8 and told.items() <= registered.items()
