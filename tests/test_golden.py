"""Files that an earlier version wrote mean today what they meant then. See tests/data/golden/make.py."""

import dataclasses
import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from helpers.places import DATA

import tfdecouple
from export.deployed.deployed_model import DeployedModel
from export.endpoints import endpoints, find_endpoint
from export.formats.onnx import build_onnx
from export.provenance import open_run
from tfdecouple.errors import UserError

GOLDEN = DATA / "golden"
GENERATIONS = sorted((path for path in GOLDEN.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
# Of the largest value.
TOLERANCE = 1e-5
FILES = {"encode": "encoder", "decode": "decoder", "sample": "sampler"}


def test_there_is_a_generation():
    assert [path.name for path in GENERATIONS][:1] == ["1"]


def test_golden_files_are_small():
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 1_500_000


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
    known = {name.removeprefix("IN_"): array for name, array in numbers.items() if name.startswith("IN_")}
    if of == "decode":
        return {"z": numbers["OUT_z"], "v": numbers["OUT_v"]}
    return {
        name: known[name]
        for name in {
            "encode": ["images"],
            "sample": ["z_noise", "v_noise", "temperature"],
            "score": ["images", "z_noise", "u_noise"],
        }[of]
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

    def test_origin_is_read_from_the_run_folder(self, generation):
        summary = json.loads((generation / "run" / "summary.json").read_text())
        _, origin = open_run(generation / "run")
        assert (origin.step, origin.averaged) == (40, True)
        assert origin.bits_per_dim["test"] == summary["test"]["bits_per_dim"]

    def test_other_weights_would_be_noticed(self, generation, numbers, tmp_path):
        """A hundredth of a single bias is more than the tolerance lets pass."""
        changed = tfdecouple.load_model(generation / "run")
        changed.flow.levels[1][0].steps[0].sequence[0].bias.assign_add(np.full(12, 1e-2, "float32"))
        found = changed.encode(numbers["IN_images"])._asdict()
        with pytest.raises(AssertionError):
            assert_same(found, numbers, {"v": "v"})

    def test_a_checkpoint_that_is_gone_is_a_user_error(self, generation, tmp_path):
        shutil.copytree(generation / "run", tmp_path / "run")
        for path in (tmp_path / "run" / "checkpoints").iterdir():
            path.unlink()
        with pytest.raises(UserError):
            tfdecouple.load_model(tmp_path / "run")


@pytest.mark.slow
def test_training_goes_on_from_the_golden_state(generation, tmp_path):
    """Optimiser, averages and counters too: the `step` checkpoint is read whole."""
    from tfdecouple.runs.run_folder import load_config
    from tfdecouple.training import train

    run = tmp_path / "run"
    shutil.copytree(generation / "run", run)
    config = load_config(run)
    longer = dataclasses.replace(config, training=dataclasses.replace(config.training, steps=50))
    outcome = train(longer, run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # The evaluation at its end is made again, since there is no log that has it.
    assert {row["kind"] for row in rows if row["step"] <= config.training.steps} == {"validation"}
    assert min(row["step"] for row in rows) == config.training.steps
    # Adam without its moments, at the large rate of this run, would throw the weights about.
    before = json.loads((generation / "run" / "summary.json").read_text())["test"]["bits_per_dim"]
    assert outcome.summary["steps"] == 50 and abs(outcome.summary["test"]["bits_per_dim"] - before) < 0.5


class TestSavedModel:
    @pytest.fixture(scope="class")
    def call(self, generation):
        """Runs a signature as the C++ loader has it, knowing nothing of Python objects."""
        folder = generation / "export" / "savedmodel" / "1"
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            signatures = tf.compat.v1.saved_model.load(session, ["serve"], str(folder)).signature_def

            def call(of, inputs):
                signature = signatures[of]
                feeds = {signature.inputs[name].name: array for name, array in inputs.items()}
                return session.run({name: info.name for name, info in signature.outputs.items()}, feeds)

            yield call

    def test_signatures_answer_as_they_did(self, call, numbers):
        check(call, numbers, ("encode", "decode", "score"))

    def test_default_signature_encodes(self, call, numbers):
        assert_same(call("serving_default", inputs_of(numbers, "encode")), numbers, OUTPUTS["encode"])


def onnx_call(open_session):
    sessions = {}

    def call(of, inputs):
        if of not in sessions:
            sessions[of] = open_session(of)
        names = [output.name for output in sessions[of].get_outputs()]
        return dict(zip(names, sessions[of].run(names, inputs), strict=True))

    return call


def opened(file):
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


class TestOnnx:
    def test_files_answer_as_they_did(self, generation, numbers):
        folder = generation / "export" / "onnx"
        check(onnx_call(lambda of: opened(str(folder / f"{FILES[of]}.onnx"))), numbers, FILES)


class TestFreshExport:
    """An export of today of the golden run is the golden export: clients may replace one by the other."""

    def test_deployed_graph_answers_as_the_golden_export(self, model, numbers, eager):
        deployed = DeployedModel(model)

        def call(of, inputs):
            made = find_endpoint(model.config, of).build(deployed, {n: tf.constant(a) for n, a in inputs.items()})
            return {name: array.numpy() for name, array in made.items()}

        check(call, numbers, ("encode", "decode", "sample", "score"))

    @pytest.fixture(scope="class")
    def built(self, model):
        deployed = DeployedModel(model, "NCHW")
        return {of: build_onnx(deployed, find_endpoint(model.config, of), {}) for of in FILES}

    def test_onnx_files_answer_as_the_golden_ones(self, built, numbers):
        check(onnx_call(lambda of: opened(built[of].SerializeToString())), numbers, FILES)

    def test_codes_of_today_decode_in_the_golden_files_and_the_other_way(self, built, generation, numbers):
        golden = onnx_call(lambda of: opened(str(generation / "export" / "onnx" / f"{FILES[of]}.onnx")))
        fresh = onnx_call(lambda of: opened(built[of].SerializeToString()))
        images = numbers["IN_images"]
        for one, other in ((golden, fresh), (fresh, golden)):
            codes = one("encode", {"images": images})
            np.testing.assert_array_equal(other("decode", codes)["images"], images)

    def test_inputs_and_outputs_have_their_names_types_and_order(self, built, generation):
        def promised(values):
            return [(value.name, value.type) for value in values]

        for of, name in FILES.items():
            golden = onnx.load(generation / "export" / "onnx" / f"{name}.onnx").graph
            assert promised(built[of].graph.input) == promised(golden.input)
            assert promised(built[of].graph.output) == promised(golden.output)

    def test_endpoints_of_the_golden_card_are_still_there(self, model, generation):
        """As they were; others may join them, and outputs those that they had."""
        card = json.loads((generation / "export" / "model_card.json").read_text())
        current = {one.name: one for one in endpoints(model.config)}
        assert set(card["endpoints"]) <= set(current)
        assert card["formats"]["savedmodel"]["signatures"] == ["encode", "decode", "score"]
        for name, entry in card["endpoints"].items():
            for kind in ("inputs", "outputs"):
                golden = [(array["name"], array["dtype"], array["shape"]) for array in entry[kind]]
                plain = [array.to_dict() for array in getattr(current[name], kind)]
                found = [(array["name"], array["dtype"], array["shape"]) for array in plain]
                assert found[: len(golden) if kind == "outputs" else None] == golden
