"""Verification of an export: files that are wrong are refused, and nothing of them is published.

Files that were built right are changed in one thing and checked by the same harness, whatever the runtime.
"""

import os
import shutil

import numpy as np
import onnx
import pytest
import tensorflow as tf
from helpers.exporting import SIGNATURES
from onnx import helper, numpy_helper
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from export import pipeline
from export.endpoints import endpoints, onnx_names
from export.formats import onnx as onnx_format
from export.formats.saved_model import WARMUP_FILE, write_warmup
from export.pipeline import CLIENT
from export.verification import check as harness
from export.verification.check import check
from export.verification.gate import RefusedError, pass_gate

COUPLING = "flow/level_1_part_0_step_0/coupling_continuous_first"
MIX = "flow/level_0_part_0_step_0"


def change_weight(name, change):
    """Returns a sabotage of an ONNX model that puts `change(array)` in place of a weight."""

    def sabotage(model):
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        changed = change(numpy_helper.to_array(tensor).copy()).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(changed, name))

    return sabotage


def scaled(factor):
    return lambda array: array * np.float32(factor)


def one_entry(value):
    """Returns a change of the first number, by so much or to what is no number."""

    def change(array):
        array.flat[0] += value
        return array

    return change


def ignore(name):
    """Returns a sabotage of an ONNX model that multiplies an input by zero."""

    def sabotage(model):
        factor(name, 0)(model)

    return sabotage


def factor(name, number):
    """Returns a sabotage of an ONNX model that multiplies an input by a number."""

    def sabotage(model):
        for node in model.graph.node:
            node.input[:] = ["changed" if given == name else given for given in node.input]
        model.graph.initializer.append(numpy_helper.from_array(np.float32(number), "factor"))
        model.graph.node.insert(0, helper.make_node("Mul", [name, "factor"], ["changed"]))

    return sabotage


def first_image_alone(model):
    """Right for one image and wrong for three."""
    name = model.graph.output[0].name
    next(node for node in model.graph.node if name in node.output).output[0] = "whole"
    for number in (0, 1):
        model.graph.initializer.append(numpy_helper.from_array(np.array([number], np.int64), f"number_{number}"))
    model.graph.node.append(helper.make_node("Slice", ["whole", "number_0", "number_1", "number_0"], [name]))


def foreign_operation(model):
    """An operation that computes the same in ONNX Runtime, and that other runtimes do not know."""
    name = next(node for node in model.graph.node if node.op_type == "Conv").output[0]
    for node in model.graph.node:
        node.input[:] = ["same" if given == name else given for given in node.input]
    place = next(i for i, node in enumerate(model.graph.node) if name in node.output)
    node = helper.make_node("QuickGelu", [name], ["odd"], domain="com.microsoft", alpha=1.0)
    model.graph.node.insert(place + 1, node)
    model.graph.node.insert(place + 2, helper.make_node("Identity", [name], ["same"]))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def unknown_operation(model):
    next(node for node in model.graph.node if node.op_type == "Conv").op_type = "Convolute"


def weight_in_other_numbers(model):
    model.graph.initializer.append(helper.make_tensor("more", onnx.TensorProto.BFLOAT16, [2], [1, 2]))
    model.graph.node.append(helper.make_node("Cast", ["more"], ["wide"], to=onnx.TensorProto.FLOAT))


def one_image_alone(model):
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1


def turned_outputs(model):
    outputs = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend(outputs[::-1])


def one_output_more(model):
    model.graph.node.append(helper.make_node("Identity", ["z"], ["more"]))
    model.graph.output.append(helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["batch", 4]))


def another_run(model):
    next(entry for entry in model.metadata_props if entry.key == "config_sha256").value = "0"


@pytest.fixture
def onnx_problems(exported, cases, origin, tmp_path):
    """Checks a copy of the exported ONNX files, of which `change` edits one, and returns the problems found."""

    def run(file=None, change=lambda model: None, known=None, **options):
        folder = shutil.copytree(exported / "onnx", tmp_path / "onnx")
        if file is not None:
            model = onnx.load(folder / f"{file}.onnx")
            change(model)
            onnx.save(model, folder / f"{file}.onnx")
        given = {"names": onnx_names(origin.config.model), "metadata": {**origin.metadata(), "name": origin.name}}
        return check("onnx", folder, cases | (known or {}), **(given | options)).problems

    return run


class TestOnnx:
    def test_right_files_pass(self, onnx_problems):
        assert onnx_problems() == []

    @pytest.mark.parametrize("file", ["encoder", "decoder", "sampler"])
    def test_any_weight_changed_by_a_thousandth_is_found(self, onnx_problems, file, monkeypatch):
        def change(model):
            floats = [one for one in model.graph.initializer if one.dims and one.data_type == onnx.TensorProto.FLOAT]
            for tensor in floats:
                array = numpy_helper.to_array(tensor).copy()
                array.flat[-1] = array.flat[-1] * np.float32(1.001) or np.float32(1e-9)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            counts.append(len(floats))

        counts = []
        monkeypatch.setattr(harness.Report, "compare", lambda *_, **__: None)
        (problem,) = onnx_problems(file, change)
        assert problem.startswith(f"weight {file}.onnx: ") and f" and {counts[0] - 1} more has other numbers" in problem

    @pytest.mark.parametrize(
        ("file", "weight", "change", "message"),
        [
            ("encoder", f"{COUPLING}/last/kernel", one_entry(0.1), "encode: v: image "),
            ("encoder", "encoder/top/kernel", one_entry(0.1), "encode: z: image "),
            ("encoder", f"{MIX}/mix/kernel", scaled(1.0001), "encode: v: image "),
            ("encoder", "encoder/last/kernel", scaled(1.0001), "encode: z: image "),
            ("encoder", "encoder/last/kernel", one_entry(np.nan), "differs from the model by nan"),
            # Of the decoder only pixels are seen; codes whose pixels lie beside borders of levels show small changes.
            ("decoder", f"{COUPLING}/last/kernel", one_entry(0.1), "decode of drawn codes: images: "),
            ("decoder", f"{MIX}/unmix/kernel", scaled(1.0001), "decode of drawn codes: images: "),
            ("sampler", f"{MIX}/unmix/kernel", scaled(1.0001), "sample: images: "),
            ("sampler", "prior/step_0/unmix/bias", one_entry(0.1), "sample: images: "),
        ],
    )
    def test_effect_of_a_change_is_found_without_knowing_the_weights(
        self, onnx_problems, monkeypatch, file, weight, change, message
    ):
        monkeypatch.setattr(harness, "_weights", lambda *_: [])
        problems = onnx_problems(file, change_weight(weight, change))
        assert any(message in one and "allowed " in one for one in problems), problems

    @pytest.mark.parametrize(
        ("file", "change", "message"),
        [
            ("decoder", factor("v", 1.0001), "decode"),
            ("sampler", factor("v_noise", 1.0001), "sample: images: "),
            ("sampler", factor("temperature", 1.0001), "sample: images: "),
            ("sampler", ignore("z_noise"), "sample: images: "),
            ("sampler", ignore("v_noise"), "sample: images: "),
            ("sampler", ignore("temperature"), "sample: images: "),
            ("decoder", first_image_alone, "decode returns images as uint8 [1, 8, 8, 3], uint8 [1, 8, 8, 3]"),
            ("decoder", foreign_operation, "decoder.onnx uses operations of com.microsoft"),
            ("decoder", unknown_operation, "the ONNX files cannot be opened: "),
            ("encoder", weight_in_other_numbers, "weight encoder.onnx: more "),
            ("sampler", one_image_alone, "sample has "),
            ("encoder", turned_outputs, "encode has {'v': "),
            ("encoder", one_output_more, "encode has {'z': "),
            ("encoder", another_run, "the file of encode says config_sha256 '0' where the run has "),
        ],
    )
    def test_one_change_of_a_graph_is_found(self, onnx_problems, file, change, message):
        problems = onnx_problems(file, change)
        assert any(problem.startswith(message) for problem in problems), problems

    @pytest.mark.parametrize("how", ["swapped", "missing", "cut off"])
    def test_files_that_are_others_or_damaged(self, exported, cases, tmp_path, how):
        folder = shutil.copytree(exported / "onnx", tmp_path / "onnx")
        if how == "swapped":
            (folder / "encoder.onnx").rename(folder / "x")
            (folder / "decoder.onnx").rename(folder / "encoder.onnx")
            (folder / "x").rename(folder / "decoder.onnx")
        elif how == "missing":
            (folder / "decoder.onnx").unlink()
        else:
            os.truncate(folder / "decoder.onnx", 1000)
        problems = check("onnx", folder, cases, names={"encode": "encoder", "decode": "decoder"}, metadata={}).problems
        message = "encode has " if how == "swapped" else "the ONNX files cannot be opened: "
        assert problems and problems[0].startswith(message) and "\n" not in problems[0]

    def test_endpoint_to_which_the_model_has_no_answers(self, exported, cases):
        names = {"encode": "encoder", "reconstruct": "decoder"}
        problems = check("onnx", exported / "onnx", cases, names=names, metadata={}).problems
        assert "reconstruct cannot be compared: there are no answers of the model to it" in problems


def rewrite_variables(folder, change):
    """Rewrites the variables of a SavedModel: `change` is given {key: array} to edit."""
    prefix = str(folder / "variables" / "variables")
    reader = tf.train.load_checkpoint(prefix)
    arrays = {key: reader.get_tensor(key) for key in sorted(reader.get_variable_to_dtype_map())}
    change(arrays)
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=list(arrays),
        shape_and_slices=[""] * len(arrays),
        tensors=[tf.convert_to_tensor(array) for array in arrays.values()],
    )


def variables(change):
    return lambda folder: rewrite_variables(folder, change)


def signatures(change):
    """Returns a sabotage that edits the signatures of a SavedModel."""

    def sabotage(folder):
        message = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        change(message.meta_graphs[0].signature_def)
        (folder / "saved_model.pb").write_bytes(message.SerializeToString())

    return sabotage


def lose_a_variable(arrays):
    del arrays[next(key for key in arrays if key.endswith("VARIABLE_VALUE"))]


def next_number(arrays):
    # The last bias of the sampler's prior has no part in encode and decode.
    key = next(key for key in sorted(arrays) if key.endswith("VARIABLE_VALUE"))
    arrays[key].flat[0] = np.nextafter(arrays[key].flat[0], np.float32(9))


def rename_decode(given):
    given["decoder"].CopyFrom(given["decode"])
    del given["decode"]


def fix_batch(given):
    given["decode"].inputs["v"].tensor_shape.dim[0].size = 1


def decode_by_default(given):
    given["serving_default"].CopyFrom(given["decode"])


def lose_z(given):
    del given["serving_default"].outputs["z"]


def other_method(given):
    given["decode"].method_name = "x"


def warm_up(change):
    """Returns a sabotage that puts `change(z)` in place of the z of the request for decode; None leaves it out."""

    def sabotage(folder):
        path = str(folder / WARMUP_FILE)
        logs = [PredictionLog.FromString(record) for record in tf.data.TFRecordDataset(path).as_numpy_iterator()]
        for request in (log.predict_log.request for log in logs):
            if request.model_spec.signature_name == "decode":
                z = change(tf.make_ndarray(request.inputs["z"]))
                del request.inputs["z"]
                if z is not None:
                    request.inputs["z"].CopyFrom(tf.make_tensor_proto(z))
        with tf.io.TFRecordWriter(path) as writer:
            for log in logs:
                writer.write(log.SerializeToString())

    return sabotage


def cut_warm_up(share):
    return lambda folder: os.truncate(folder / WARMUP_FILE, int(share * (folder / WARMUP_FILE).stat().st_size))


SABOTAGES = {
    "no variables": (lambda folder: shutil.rmtree(folder / "variables"), "the SavedModel files cannot be opened: "),
    "a variable less": (variables(lose_a_variable), "the SavedModel files cannot be opened: NotFoundError: "),
    "one number": (variables(next_number), "weight "),
    "a signature renamed": (signatures(rename_decode), "the SavedModel files cannot be opened: ValueError: the sign"),
    "batch of one": (signatures(fix_batch), "decode has {'v': ('float32', (1, 8, 8, 3))"),
    "another default": (signatures(decode_by_default), "serving_default has "),
    "a default without z": (signatures(lose_z), "serving_default has "),
    "another method": (signatures(other_method), "decode is of method 'x'"),
    "no warm-up": (lambda folder: (folder / WARMUP_FILE).unlink(), f"{WARMUP_FILE} is missing"),
    "warm-up empty": (cut_warm_up(0), f"{WARMUP_FILE} has requests for "),
    "warm-up cut": (cut_warm_up(0.5), f"{WARMUP_FILE} "),
    "warm-up cut at its end": (cut_warm_up(0.99), f"{WARMUP_FILE} is missing or damaged after "),
    "warm-up of two images": (warm_up(lambda z: np.concatenate([z, z])), f"{WARMUP_FILE} has a request for decode "),
    "warm-up of a shape": (warm_up(lambda z: z[:, 1:]), f"{WARMUP_FILE} has a request for decode "),
    "warm-up of no number": (warm_up(lambda z: np.full_like(z, np.nan)), f"{WARMUP_FILE} has a request for decode "),
    "warm-up without z": (warm_up(lambda z: None), f"{WARMUP_FILE} is missing or damaged after "),
}


class TestSavedModel:
    @pytest.fixture
    def problems(self, small_saved_model, cases, tmp_path):
        def run(change=lambda folder: None):
            folder = shutil.copytree(small_saved_model, tmp_path / "savedmodel")
            change(folder)
            return check("savedmodel", folder, cases, names=dict.fromkeys(SIGNATURES, ""), metadata={}).problems

        return run

    def test_right_one_passes_also_when_it_is_rewritten(self, problems):
        assert problems(variables(lambda arrays: None)) == []

    @pytest.mark.parametrize("name", SABOTAGES)
    def test_one_change_is_found(self, problems, name):
        change, message = SABOTAGES[name]
        found = problems(change)
        assert found and found[0].startswith(message) and "\n" not in found[0], found

    def test_warm_up_file_without_a_signature(self, problems, model):
        chosen = [endpoint for endpoint in endpoints(model.config) if endpoint.name in SIGNATURES]
        found = problems(lambda folder: write_warmup(folder, "tiny", chosen[:1]))
        assert "has requests for serving_default, encode; expected one for each" in found[0]

    def test_graph_that_needs_the_python_it_was_made_by_is_found(self, cases, tmp_path, forked):
        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.uint8, "images")])
        def encode(images):
            v = tf.numpy_function(lambda images: images.astype(np.float32), [images], tf.float32)
            return {"z": tf.zeros([tf.shape(images)[0], 4]), "v": tf.ensure_shape(v, [None, 8, 8, 3])}

        folder = tmp_path / "savedmodel"
        tf.saved_model.save(tf.Module(), str(folder), signatures={"encode": encode, "serving_default": encode})
        pipeline.save_cases(cases, tmp_path / "cases.npz")
        with pytest.raises(RefusedError, match="encode fails at batch 1: "):
            options = {"names": {"encode": "encode"}, "metadata": {}}
            pass_gate("savedmodel", folder, tmp_path / "cases.npz", str, options)


# In the published client: what is there, and what stands in its place.
CLIENTS = {
    "says so and does nothing": (CLIENT.read_text(), "print('16 of 16 known images come back exactly')\n", "cannot be"),
    "cannot be imported": ("import json\n", "import nothing_of_the_kind\n", "nothing_of_the_kind"),
    "turns one image over": (
        'return self._run(self.decoder, codes)["images"]',
        'return ~self._run(self.decoder, codes)["images"]',
        "decode: images: ",
    ),
    "switches nothing": ('self.decode(z=a["z"], v=b["v"])', 'self.decode(z=b["z"], v=b["v"])', "switch: images_ab: "),
    "gives other codes": ("return self._run(self.encoder, given)", "return {k: 1.001 * a for k, a in "
        "self._run(self.encoder, given).items()}", "encode: "),
}  # fmt: skip


@pytest.mark.parametrize("name", CLIENTS)
def test_client_is_judged_by_what_it_gives_back(name, monkeypatch, refusal, tmp_path):
    right, wrong, message = CLIENTS[name]
    assert right in CLIENT.read_text()
    (tmp_path / "client.py").write_text(CLIENT.read_text().replace(right, wrong))
    monkeypatch.setattr(pipeline, "CLIENT", tmp_path / "client.py")
    gate = pipeline.pass_gate

    def client_alone(runtime, *arguments):
        return gate(runtime, *arguments) if runtime == "client" else harness.Report()

    monkeypatch.setattr(pipeline, "pass_gate", client_alone)
    assert message in refusal("--format", "onnx")


class TestProcess:
    def test_that_finds_a_changed_weight_refuses_in_one_line_and_nothing_is_published(self, monkeypatch, refusal):
        build = onnx_format.build_onnx

        def sabotaged(deployed, endpoint, metadata):
            model = build(deployed, endpoint, metadata)
            if endpoint.onnx == "decoder":
                change_weight(f"{COUPLING}/last/kernel", one_entry(0.1))(model)
            return model

        monkeypatch.setattr(onnx_format, "build_onnx", sabotaged)
        assert f"weight decoder.onnx: {COUPLING}/last/kernel has other numbers" in refusal("--format", "onnx")

    def test_that_crashes_refuses_in_one_line(self, monkeypatch, refusal):
        monkeypatch.setattr(pipeline, "save_cases", lambda cases, path: path.write_bytes(b"no archive"))
        assert "the verification of onnx ended with status 1: " in refusal("--format", "onnx")

    def test_that_is_killed_refuses_in_one_line_and_leaves_no_folder(self, monkeypatch, built, tiny_run, tmp_path):
        # As the kernel does where memory runs out.
        (tmp_path / "sitecustomize.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
        monkeypatch.syspath_prepend(tmp_path)
        request = pipeline.Request(run=tiny_run, to=tmp_path / "a" / "b", formats=("onnx",))
        with pytest.raises(RefusedError, match="^not published: the verification of onnx ended with status -9: no mes"):
            pipeline.export(request, say=str)
        assert not (tmp_path / "a").exists()
