"""A run that an earlier version wrote means today what it meant then. See tests/data/golden/make.py."""

import dataclasses
import json
import shutil

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from helpers.places import DATA

import tfdecouple
from export.deployed.deployed_model import DeployedModel
from export.endpoints import find_endpoint
from export.formats.onnx import build_onnx

GOLDEN = DATA / "golden"
GENERATIONS = sorted((path for path in GOLDEN.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
# Of the largest value.
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


def assert_same(found, numbers, names):
    """Asserts that arrays are the golden ones, given the golden name of each output."""
    assert set(names) <= set(found)
    for output, name in names.items():
        ours, theirs = np.asarray(found[output]), numbers[f"OUT_{name}"]
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        if theirs.dtype == np.uint8:
            assert np.ptp(theirs) > 50
            np.testing.assert_array_equal(ours, theirs)
        else:
            largest = np.abs(theirs.astype("float64")).max()
            assert np.abs(ours.astype("float64") - theirs).max() < TOLERANCE * largest, output


def inputs_of(numbers, of):
    """The golden inputs of an endpoint; those of decode are the golden codes."""
    if of == "decode":
        return {"z": numbers["OUT_z"], "v": numbers["OUT_v"]}
    return {name: numbers[f"IN_{name}"] for name in INPUTS[of]}


INPUTS = {
    "encode": ["images"],
    "sample": ["z_noise", "v_noise", "temperature"],
    "score": ["images", "z_noise", "u_noise"],
}
OUTPUTS = {
    "encode": {"z": "z", "v": "v"},
    "sample": {"images": "sample_images"},
    "score": {"bits_per_dim": "bits_per_dim"},
}


def check(call, numbers, endpoints_to_try):
    """Asserts that calls answer with the golden numbers, and that images come back."""
    for of in endpoints_to_try:
        found = call(of, inputs_of(numbers, of))
        if of == "decode":
            np.testing.assert_array_equal(found["images"], numbers["IN_images"])
        else:
            assert_same(found, numbers, OUTPUTS[of])


@pytest.mark.usefixtures("eager")
class TestRun:
    def test_model_has_the_same_weights_in_effect(self, model, numbers):
        codes, posterior = model.encode(numbers["IN_images"], verify=True), model.posterior(numbers["IN_images"])
        elbo = model.elbo_from_noise(numbers["IN_images"], numbers["IN_z_noise"], numbers["IN_u_noise"])
        found = {
            **codes._asdict(),
            "z_log_variance": 2 * np.log(posterior.stddev()),
            "sample_z": model.z_from_noise(numbers["IN_z_noise"]),
            **elbo._asdict(),
        }
        names = ("z", "v", "z_log_variance", "sample_z", "reconstruction", "kl", "bits_per_dim")
        assert_same(found, numbers, {name: name for name in names})

    def test_images_and_samples_are_the_same_pixels(self, model, numbers):
        np.testing.assert_array_equal(model.decode(numbers["OUT_z"], numbers["OUT_v"]), numbers["IN_images"])
        v = numbers["IN_temperature"][:, None, None, None] * numbers["IN_v_noise"]
        x = model.flow.inverse_and_log_det(v, numbers["OUT_sample_z"])[0]
        images = model.decode(numbers["OUT_sample_z"], v)
        assert_same({"x": x, "images": images}, numbers, {"x": "sample_x", "images": "sample_images"})

    def test_other_weights_would_be_noticed(self, generation, numbers, tmp_path):
        """A hundredth of a single bias is more than the tolerance lets pass."""
        changed = tfdecouple.load_model(generation / "run")
        changed.flow.levels[1][0].steps[0].sequence[0].bias.assign_add(np.full(12, 1e-2, "float32"))
        found = changed.encode(numbers["IN_images"])._asdict()
        with pytest.raises(AssertionError):
            assert_same(found, numbers, {"v": "v"})


@pytest.mark.slow
def test_training_goes_on_from_the_golden_state(generation, tmp_path):
    """Optimiser, averages and counters too: the `step` checkpoint is read whole."""
    from tfdecouple.runs.run_folder import RunFolder
    from tfdecouple.training import train

    run = tmp_path / "run"
    shutil.copytree(generation / "run", run)
    config = RunFolder(run).read_config()
    longer = dataclasses.replace(config, training=dataclasses.replace(config.training, steps=50))
    outcome = train(longer, run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # The evaluation at its end is made again, since there is no log that has it.
    assert {row["kind"] for row in rows if row["step"] <= config.training.steps} == {"validation"}
    assert min(row["step"] for row in rows) == config.training.steps
    # Adam without its moments, at the large rate of this run, would throw the weights about.
    before = json.loads((generation / "run" / "summary.json").read_text())["test"]["bits_per_dim"]
    assert outcome.summary["steps"] == 50 and abs(outcome.summary["test"]["bits_per_dim"] - before) < 0.5


class TestExport:
    def test_deployed_graph_answers_with_the_golden_numbers(self, model, numbers, eager):
        deployed = DeployedModel(model)

        def call(of, inputs):
            made = find_endpoint(model.config, of).build(deployed, {n: tf.constant(a) for n, a in inputs.items()})
            return {name: array.numpy() for name, array in made.items()}

        check(call, numbers, ("encode", "decode", "sample", "score"))

    def test_onnx_files_answer_with_the_golden_numbers(self, model, numbers):
        deployed = DeployedModel(model, "NCHW")

        def call(of, inputs):
            file = build_onnx(deployed, find_endpoint(model.config, of), {}).SerializeToString()
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            names = [output.name for output in session.get_outputs()]
            return dict(zip(names, session.run(names, inputs), strict=True))

        check(call, numbers, ("encode", "decode", "sample"))
