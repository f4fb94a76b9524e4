import json
import os
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import tensorflow as tf
from helpers.exporting import SIGNATURES, list_onnx_names
from onnx import helper, numpy_helper
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from export import pipeline
from export.endpoints import list_endpoints
from export.formats import onnx as onnx_writer
from export.formats.runtimes import WARMUP_FILE, OnnxFiles
from export.verification import comparison
from export.verification.comparison import Answer, compare_files
from export.verification.verify import RefusedError
from tfdecouple.data.image_formats import describe_cropping
from tfdecouple.errors import EXIT_FAILED

COUNT = 21
NUMBERS = np.linspace(-2, 4, COUNT * 10, dtype=np.float32).reshape(COUNT, 10)


def make_pixels(n_bins):
    """Returns values in units of bins, none within 0.2 of the border of two bins, and the right pixels."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, n_bins, (COUNT, 8, 8, 3)) + rng.uniform(0.2, 0.8, (COUNT, 8, 8, 3))
    return values, (np.floor(values) * (256 // n_bins)).astype(np.uint8)


class TestTolerance:
    @pytest.mark.parametrize(("times", "passes"), [(0.9, True), (1.1, False)])
    def test_bound_is_a_multiple_of_the_effect_on_that_image(self, times, passes):
        effect = np.full((COUNT, 1), 1e-5, np.float32)
        effect[3:5, 0] = 0, 1e-3
        answer = Answer.from_model(NUMBERS, [NUMBERS + effect])
        # The bound of an image with a small effect is that of the median image.
        assert answer.bound[3] == pytest.approx(answer.bound[2], rel=0.1) and answer.bound[3] < answer.bound[4] / 20
        found = NUMBERS.copy()
        found[3, 7] += times * answer.bound[3]
        problem = answer.compare_file(found)[1]
        assert (problem is None) == passes
        assert passes or problem.startswith("1 values of image 3 ") and f"allowed is {answer.bound[3]:.1e}" in problem

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_value_that_is_not_finite_is_a_problem(self, value):
        found = NUMBERS.copy()
        found[-1, -1] = value
        answer = Answer.from_model(NUMBERS, [NUMBERS + np.float32(1e-4)])
        assert f"image {COUNT - 1} differ from the model" in answer.compare_file(found)[1]

    @pytest.mark.parametrize("n_bins", [256, 32, 2])
    def test_one_wrong_subpixel_far_from_a_border_is_a_problem(self, n_bins):
        values, found = make_pixels(n_bins)
        answer = Answer.from_model(values, [values + 1e-3], n_bins)
        assert answer.compare_file(found) == ({"max": 0, "mean": 0, "unstable": 0, "differing": 0}, None)
        found[20, 7, 7, 2] ^= 256 // n_bins
        assert answer.compare_file(found)[1].startswith("1 values of image 20 differ from the model")

    @pytest.mark.parametrize("n_bins", [256, 32])
    @pytest.mark.parametrize(("place", "sign"), [(0.0001, -1), (0.9999, 1)])
    def test_beside_a_border_the_neighbouring_bin_is_allowed_and_no_other_value(self, n_bins, place, sign):
        step, (values, found) = 256 // n_bins, make_pixels(n_bins)
        values[4, 1, 2, 0] = 17 + place
        answer = Answer.from_model(values, [values + 1e-3], n_bins)
        for change in (sign * step, 2 * sign * step, sign * (step // 2 or 3)):
            found[4, 1, 2, 0] = 17 * step + change
            figures, problem = answer.compare_file(found)
            assert (problem is None) == (change == sign * step) and figures["max"] == abs(change)


# Sabotages of an ONNX model.


def change_weights(model):
    """Changes a number of each weight by a thousandth; returns the count of weights."""
    floats = [array for array in model.graph.initializer if array.dims and array.data_type == onnx.TensorProto.FLOAT]
    for tensor in floats:
        array = numpy_helper.to_array(tensor).copy()
        array.flat[-1] = array.flat[-1] * np.float32(1.001) or np.float32(1e-9)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return len(floats)


def multiply_input(model, name, by):
    for node in model.graph.node:
        node.input[:] = ["changed" if given == name else given for given in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(by), "factor"))
    model.graph.node.insert(0, helper.make_node("Mul", [name, "factor"], ["changed"]))


def one_image_alone(model):
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1


def free_height(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "height"


def change_metadata(model, key, value):
    (entry,) = (entry for entry in model.metadata_props if entry.key == key)
    entry.value = value


def turned_outputs(model):
    outputs = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend(outputs[::-1])


# Beginnings of the problems that the comparison reports.
CANNOT_OPEN, METADATA = "the onnx files cannot be opened: ", "the metadata do not pass: ValueError: "
# (file, sabotage, beginning of the problem). Pixels of samples show changes that codes of images, which decode to the
# middle of a bin, hide.
EFFECTS = [
    ("encoder", change_weights, "encode: v: "),
    ("decoder", partial(multiply_input, name="v", by=1.0001), "decode: images: "),
    ("sampler", partial(multiply_input, name="temperature", by=0), "sample: images: "),
    ("sampler", one_image_alone, "sample: it fails at batch 3: "),
    ("encoder", turned_outputs, "encode: it returns v, z where the model returns z, v"),
    ("encoder", free_height, "encode: images is declared as [None, None, 8, 3] where the model has [None, 8, 8"),
    ("encoder", partial(change_metadata, key="n_bits", value="5"), f"{METADATA}encoder.onnx has n_bits = 5; expect"),
    ("decoder", partial(change_metadata, key="crop", value="centre 9"), f"{METADATA}decoder.onnx has crop = centre"),
    ("sampler", partial(change_metadata, key="endpoint", value="decode"), f"{METADATA}sampler.onnx has endpoint = d"),
]


@pytest.fixture
def onnx_problems(exported, vectors, model, tmp_path):
    """A function that compares a copy of the exported ONNX files, of which `change` edits one, or `damage` any."""

    def run(file=None, change=lambda model: None, damage=lambda folder: None):
        folder = shutil.copytree(exported / "onnx", tmp_path / "onnx")
        if file is not None:
            edited = onnx.load(folder / f"{file}.onnx")
            change(edited)
            onnx.save(edited, folder / f"{file}.onnx")
        damage(folder)
        return compare_files("onnx", folder, vectors, list_onnx_names(model.config)).problems

    return run


class TestOnnx:
    def test_image_that_the_model_keeps_must_come_back_and_another_may_be_lost(
        self, exported, vectors, model, monkeypatch
    ):
        call, names = OnnxFiles.call_endpoint, list_onnx_names(model.config)

        def lose(self, endpoint, inputs):
            outputs = call(self, endpoint, inputs)
            if endpoint == "decode" and len(outputs["images"]) not in vectors["batches"]:
                outputs["images"][1] ^= 1
            return outputs

        def compare(vectors):
            return compare_files("onnx", exported / "onnx", vectors, names)

        assert compare(vectors).problems == []
        monkeypatch.setattr(OnnxFiles, "call_endpoint", lose)
        words = "images differ (number 1) which the model itself gives back"
        assert f"decode(encode): 1 of 4 noise {words}" in compare(vectors).problems
        kept = {name: kept & (np.arange(len(kept)) % 16 != 1) for name, kept in vectors.items() if "kept/" in name}
        report = compare({**vectors, **kept})
        assert report.problems == [] and report.round_trip["noise"] == {"images": 4, "identical": 3, "model": 3}

    @pytest.mark.parametrize("file", ["encoder", "decoder", "sampler"])
    def test_any_weight_changed_by_a_thousandth_is_found(self, onnx_problems, file, monkeypatch):
        counts = []
        monkeypatch.setattr(comparison, "_compare_answers", lambda *_: ([], {}))
        (problem,) = onnx_problems(file, lambda model: counts.append(change_weights(model)))
        assert problem.startswith(f"weight {file}.onnx: ") and f" and {counts[0] - 1} more has other numbers" in problem

    @pytest.mark.parametrize(("file", "change", "message"), EFFECTS)
    def test_effect_of_one_change_is_found_without_digests(self, onnx_problems, monkeypatch, file, change, message):
        monkeypatch.setattr(comparison, "_compare_weight_digests", lambda *_: [])
        problems = onnx_problems(file, change)
        assert any(problem.startswith(message) for problem in problems), problems

    def test_crop_other_than_the_models_is_found_though_all_metadata_have_it(self, onnx_problems, vectors, monkeypatch):
        wrong = describe_cropping((8, 8, 3), 12)
        metadata = {**json.loads(str(vectors["metadata"])), "crop": wrong}
        monkeypatch.setitem(vectors, "metadata", np.array(json.dumps(metadata)))

        def change_all(folder):
            for path in folder.iterdir():
                model = onnx.load(path)
                change_metadata(model, "crop", wrong)
                onnx.save(model, path)

        problems = onnx_problems(damage=change_all)
        assert problems == [f"{METADATA}by crop = {wrong} a picture gets other pixels than by the model's own code"]

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda decoder: decoder.rename(decoder.with_stem("encoder")), CANNOT_OPEN),
            (lambda decoder: shutil.copyfile(decoder, decoder.with_stem("encoder")), "encode: it fails at batch"),
            (lambda decoder: shutil.copyfile(decoder, decoder.with_stem("more")), CANNOT_OPEN),
            (lambda decoder: os.truncate(decoder, 1000), CANNOT_OPEN),
        ],
    )
    def test_exchanged_missing_and_damaged_onnx_files_are_found(self, onnx_problems, damage, message):
        problem = onnx_problems(damage=lambda folder: damage(folder / "decoder.onnx"))[0]
        assert problem.startswith(message) and "\n" not in problem


# Sabotages of a SavedModel: functions that change its variables {key: array}, its signatures, or its warm-up requests,
# and three functions that read these from its folder and write them again.


def edit_variables(folder, change):
    prefix = str(folder / "variables" / "variables")
    reader = tf.train.load_checkpoint(prefix)
    arrays = {key: reader.get_tensor(key) for key in sorted(reader.get_variable_to_dtype_map())}
    change(arrays)
    tensors, whole = [tf.convert_to_tensor(array) for array in arrays.values()], [""] * len(arrays)
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=list(arrays), shape_and_slices=whole, tensors=tensors)


def edit_signatures(folder, change):
    message = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    change(message.meta_graphs[0].signature_def)
    (folder / "saved_model.pb").write_bytes(message.SerializeToString())


def edit_warm_up(folder, change):
    path = str(folder / WARMUP_FILE)
    records = [*tf.data.TFRecordDataset(path).as_numpy_iterator()]
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    change(logs)
    with tf.io.TFRecordWriter(path) as writer:
        for log in logs:
            writer.write(log.SerializeToString())


def next_number(arrays):
    key = next(key for key in sorted(arrays) if key.endswith("VARIABLE_VALUE") and np.ndim(arrays[key]))
    arrays[key].flat[0] = np.nextafter(arrays[key].flat[0], np.float32(9))


def rename_decode(signatures):
    signatures["decoder"].CopyFrom(signatures["decode"])
    del signatures["decode"]


def set_size(tensor, axis, size):
    tensor.tensor_shape.dim[axis].size = size


def send(log, name, value):
    log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(value))


FLOATS = np.zeros((1, 8, 8, 3), np.float32)
NOT_OPENED, WARM_UP = "the savedmodel files cannot be opened: ", "the warm-up requests do not pass: "
# {function of a folder and a change: [(change, beginning of the problem)]}.
SABOTAGES = {
    lambda folder, change: change(folder): [
        (lambda folder: shutil.rmtree(folder / "variables"), NOT_OPENED),
        (lambda folder: os.truncate(folder / WARMUP_FILE, 100), WARM_UP),
        (lambda folder: (folder / WARMUP_FILE).unlink(), f"{WARM_UP}FileNotFoundError: "),
    ],
    edit_variables: [
        (lambda arrays: arrays.pop(max(key for key in arrays if "VARIABLE" in key)), f"{NOT_OPENED}NotFoundError: "),
        (next_number, "weight "),
    ],
    edit_signatures: [
        (rename_decode, f"{NOT_OPENED}ValueError: the sign"),
        (lambda s: set_size(s["decode"].inputs["v"], 0, 1), "decode: v is declared as [1, 8, 8, 3] where "),
        (lambda s: set_size(s["encode"].inputs["images"], 1, -1), "encode: images is declared as [None, None, 8, 3] "),
        (lambda s: s["decode"].ClearField("method_name"), f"{NOT_OPENED}ValueError: the signature decode"),
        (lambda s: s["serving_default"].CopyFrom(s["decode"]), "serving_default: it "),
        (lambda s: s["serving_default"].outputs.pop("z"), "serving_default: it returns v where the model returns v, z"),
    ],
    edit_warm_up: [
        (lambda logs: send(logs[0], "images", FLOATS), f"{WARM_UP}InvalidArgumentError: "),
        (lambda logs: send(logs[-1], "more", 0), f"{WARM_UP}ValueError: "),
        (list.pop, f"{WARM_UP}ValueError: "),
    ],
}


class TestSavedModel:
    @pytest.fixture
    def problems(self, small_saved_model, vectors, tmp_path):
        def run(change=lambda folder: None):
            folder = shutil.copytree(small_saved_model, tmp_path / "savedmodel")
            change(folder)
            return compare_files("savedmodel", folder, vectors, dict.fromkeys(SIGNATURES, "")).problems

        return run

    def test_right_saved_model_passes_also_when_it_is_rewritten(self, problems):
        assert problems(partial(edit_variables, change=lambda arrays: None)) == []

    @pytest.mark.parametrize(
        ("edit", "change", "message"), [(edit, *case) for edit, cases in SABOTAGES.items() for case in cases]
    )
    def test_one_change_of_a_saved_model_is_found(self, problems, edit, change, message):
        first, *_ = problems(partial(edit, change=change))
        assert first.startswith(message) and "\n" not in first, first

    def test_graph_whose_checks_of_shapes_are_gone_is_found(self, exported, vectors, model, tmp_path):
        folder = shutil.copytree(exported / "savedmodel" / "1", tmp_path / "savedmodel")
        message = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        for function in message.meta_graphs[0].graph_def.library.function:
            for node in (inner for inner in function.node_def if inner.op == "EnsureShape"):
                node.op = "Identity"
                del node.attr["shape"]
        (folder / "saved_model.pb").write_bytes(message.SerializeToString())
        names = [endpoint.name for endpoint in list_endpoints(model.config)]
        problems = compare_files("savedmodel", folder, vectors, dict.fromkeys(names, "")).problems
        assert "encode_global: it takes images of the shape [2, 16, 8, 3]" in problems


class TestProcess:
    def test_export_with_a_changed_weight_is_refused_in_one_line(self, monkeypatch, built, refused, forked):
        build = onnx_writer.build_onnx

        def sabotaged(exported, endpoint, metadata):
            model = build(exported, endpoint, metadata)
            if endpoint.onnx == "decoder":
                change_weights(model)
            return model

        monkeypatch.setattr("export.formats.onnx.build_onnx", sabotaged)
        err = refused("--endpoints", *SIGNATURES, expected=EXIT_FAILED)
        assert err.startswith("error: not published: ") and "weight decoder.onnx: " in err and "other numbers" in err

    def test_export_whose_folded_networks_differ_from_the_model_is_refused(self, monkeypatch, quick, refused):
        wrong = SimpleNamespace(find_faults=lambda: ["flow.decode as folded is not the model's"])
        monkeypatch.setattr("export.pipeline.ExportedModel", lambda *_: wrong)
        err = refused(expected=EXIT_FAILED)
        assert err.startswith("error: not published: ") and "as folded is not the model's" in err

    def test_kill_of_the_verification_refuses_and_leaves_no_folder(self, monkeypatch, built, tiny_run, tmp_path):
        # As the kernel does where memory runs out.
        (tmp_path / "sitecustomize.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(RefusedError, match="^not published: the verification of onnx ended with status -9: no mes"):
            pipeline.export(tiny_run, tmp_path / "a" / "b", ("onnx",))
        assert not (tmp_path / "a").exists()
