"""Tests that a run of an earlier version still gives its numbers.

Each folder in tests/data/golden has a run, inputs (IN_...) and what the model answered (OUT_...), in numbers.npz. No
folder is made again: a test that fails says that a file which somebody has cannot be read, or has another meaning.
"""

import dataclasses
import json
import shutil

import numpy as np
import onnxruntime
import pytest
from helpers.exporting import find_endpoint
from helpers.places import DATA

import tfdecouple
from export.exported_model import ExportedModel
from export.formats.onnx import build_onnx
from tfdecouple.model.objective import map_noise_to_z

GENERATIONS = sorted((DATA / "golden").glob("[0-9]*"), key=lambda path: int(path.name))
# The largest difference, as a share of the largest value.
TOLERANCE = 1e-5

assert GENERATIONS, "there are no golden files"


@pytest.fixture(scope="module", params=GENERATIONS, ids=[path.name for path in GENERATIONS])
def generation(request):
    return request.param


@pytest.fixture(scope="module")
def numbers(generation):
    return dict(np.load(generation / "numbers.npz"))


@pytest.fixture(scope="module")
def model(generation):
    return tfdecouple.load_model(generation / "run")


def assert_same(results, numbers, names):
    """Asserts that arrays are the golden ones, given the golden name of each output."""
    assert set(names) <= set(results)
    for output, name in names.items():
        ours, theirs = np.asarray(results[output]), numbers[f"OUT_{name}"]
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        if theirs.dtype == np.uint8:
            assert np.ptp(theirs) > 50
            np.testing.assert_array_equal(ours, theirs)
        else:
            largest = np.abs(theirs.astype("float64")).max()
            assert np.abs(ours.astype("float64") - theirs).max() < TOLERANCE * largest, output


@pytest.mark.usefixtures("eager")
class TestRun:
    def test_golden_run_computes_its_golden_numbers(self, model, numbers):
        codes, posterior = model.encode(numbers["IN_images"], verify=True), model.posterior(numbers["IN_images"])
        bound = model.bound(numbers["IN_images"], noise=(numbers["IN_z_noise"], numbers["IN_u_noise"]))
        results = {
            **codes._asdict(),
            "z_log_variance": 2 * np.log(posterior.stddev()),
            "sample_z": map_noise_to_z(model, numbers["IN_z_noise"]),
            **bound._asdict(),
        }
        names = ("z", "v", "z_log_variance", "sample_z", "reconstruction", "kl", "bits_per_dim")
        assert_same(results, numbers, {name: name for name in names})

    def test_golden_run_decodes_and_samples_the_same_pixels(self, model, numbers):
        np.testing.assert_array_equal(model.decode(numbers["OUT_z"], numbers["OUT_v"]), numbers["IN_images"])
        v = numbers["IN_temperature"][:, None, None, None] * numbers["IN_v_noise"]
        x = model.flow.inverse_and_log_det(v, numbers["OUT_sample_z"])[0]
        images = model.decode(numbers["OUT_sample_z"], v)
        assert_same({"x": x, "images": images}, numbers, {"x": "sample_x", "images": "sample_images"})


@pytest.mark.slow
def test_training_resumes_from_the_golden_checkpoint(generation, tmp_path):
    """The `step` checkpoint has the optimizer, averages and counters, too."""
    from tfdecouple.runs.run_folder import RunFolder
    from tfdecouple.training import train

    run = tmp_path / "run"
    shutil.copytree(generation / "run", run)
    config = RunFolder(run).read_config()
    longer = dataclasses.replace(config, training=dataclasses.replace(config.training, steps=50))
    outcome = train(longer, run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # The last evaluation is repeated, because the golden run has no log.
    assert {row["kind"] for row in rows if row["step"] <= config.training.steps} == {"validation"}
    assert min(row["step"] for row in rows) == config.training.steps
    # Without its moments, Adam would change the weights much at the large rate of this run.
    before = json.loads((generation / "run" / "summary.json").read_text())["test"]["bits_per_dim"]
    assert outcome.summary["steps"] == 50 and abs(outcome.summary["test"]["bits_per_dim"] - before) < 0.5


# {endpoint: ({input: golden name}, {output: golden name})}.
ENDPOINTS = {
    "encode": ({"images": "IN_images"}, {"z": "z", "v": "v"}),
    "decode": ({"z": "OUT_z", "v": "OUT_v"}, {}),
    "sample": ({name: f"IN_{name}" for name in ("z_noise", "v_noise", "temperature")}, {"images": "sample_images"}),
}


def test_onnx_files_of_the_golden_run_compute_its_golden_numbers(model, numbers):
    exported = ExportedModel(model, channels_first=True)
    for endpoint, (inputs, outputs) in ENDPOINTS.items():
        file = build_onnx(exported, find_endpoint(model.config, endpoint), {}).SerializeToString()
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        given = {name: numbers[golden] for name, golden in inputs.items()}
        results = dict(zip(names, session.run(names, given), strict=True))
        assert_same(results, numbers, outputs)
        if endpoint == "decode":
            np.testing.assert_array_equal(results["images"], numbers["IN_images"])
