import dataclasses
import importlib.metadata

import onnx
import pytest
from helpers.exporting import find_endpoint
from helpers.models import LEAST, SMALL, random_images, strengthen_z
from helpers.refusals import message_of
from helpers.variants import OF_CLASSES, fresh, variant

from export.endpoints import list_endpoints
from export.exported_model import ExportedModel
from export.formats.onnx import OPSET, build_onnx
from export.verification import vectors
from export.verification.vectors import make_test_vectors
from export.verification.verify import RefusedError
from tfdecouple.errors import UserError

pytestmark = pytest.mark.usefixtures("eager")


def test_operation_that_tf2onnx_cannot_convert_is_refused_in_one_line(monkeypatch):
    def fail(*_, **__):
        raise ValueError("make_sure failure: StridedSlice\nrequires the shape of input")

    monkeypatch.setattr("tf2onnx.tfonnx.process_tf_graph", fail)
    exported = ExportedModel(fresh(LEAST), True)
    message = message_of(UserError, lambda: build_onnx(exported, find_endpoint(LEAST, "decode"), {}))
    assert message.startswith("decode cannot be converted to ONNX: ")
    assert message.endswith("StridedSlice; leave the format onnx out")


@pytest.fixture(params=["encode", "decode", "sample"])
def file(request, exported):
    endpoint = find_endpoint(SMALL, request.param)
    return endpoint, onnx.load(exported / "onnx" / f"{endpoint.onnx}.onnx")


class TestOnnxGraph:
    def test_onnx_graph_is_valid_with_standard_operators_and_a_description(self, file):
        of, model = file
        onnx.checker.check_model(model, full_check=True)
        assert OPSET == 18 and {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET
        assert {node.domain for node in model.graph.node} == {""} and len(model.functions) == 0
        assert (model.producer_name, model.graph.name, model.doc_string) == ("tfdecouple", of.name, of.summary)
        # tf2onnx would give its own.
        assert model.producer_version == importlib.metadata.version("tfdecouple")

    def test_onnx_inputs_and_outputs_are_the_endpoints_in_order_with_the_batch_free(self, file):
        of, model = file
        for values, arrays in ((model.graph.input, of.inputs), (model.graph.output, of.outputs)):
            assert [value.name for value in values] == [array.name for array in arrays]
            assert [value.doc_string for value in values] == [array.meaning for array in arrays]
            for value, array in zip(values, arrays, strict=True):
                kind = value.type.tensor_type
                assert onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) == array.dtype
                assert [axis.dim_param or axis.dim_value for axis in kind.shape.dim] == ["batch", *array.shape]

    def test_onnx_graph_computes_nothing_from_weights_alone_and_has_operations_of_every_runtime(self, file):
        nodes, from_inputs = file[1].graph.node, {value.name for value in file[1].graph.input}
        # Encoder and flow both read the image, and maps of the encoder become a vector; else no axes move.
        kinds = [node.op_type for node in nodes]
        assert kinds.count("Transpose") <= 6 < kinds.count("Conv")
        for node in nodes:
            assert from_inputs & set(node.input), f"{node.op_type} {node.name} has the same result every time"
            from_inputs.update(node.output)
            # WebGPU gives 8 buffers, of which one holds what is split.
            assert node.op_type != "Split" or len(node.output) <= 7
        assert not {*kinds} & {
            "BatchNormalization", "InstanceNormalization", "ReduceL2", "ReduceSumSquare", "Sqrt", "Det", "Pad", "Loop",
            "If", "Scan", "Constant", "Shape",
        }  # fmt: skip


# {fault of an endpoint: (endpoint, output that is wrong, {input: function of the right inputs}, the same of outputs)}.
FAULTS = {
    "v of encode is too long": ("encode", "v", {}, {"v": lambda out: 1.0001 * out["v"]}),
    "deviation instead of variance": (
        "encode_global", "z_log_variance", {}, {"z_log_variance": lambda out: out["z_log_variance"] / 2}
    ),
    "decode of a longer v": ("decode", "images", {"v": lambda given: 1.01 * given["v"]}, {}),
    "temperature times 1.2": ("sample", "images", {"temperature": lambda given: 1.2 * given["temperature"]}, {}),
    "temperature of z": (
        "sample", "images", {"z_noise": lambda given: given["temperature"][:, None] * given["z_noise"]}, {}
    ),
    "z and v exchanged": ("switch", "images_ab", {}, {"images_ab": lambda out: out["images_ba"]}),
    "alpha and beta exchanged": (
        "interpolate", "images", {"alpha": lambda given: given["beta"], "beta": lambda given: given["alpha"]}, {}
    ),
    "edit of twice the amount": ("edit", "edited", {"amount": lambda given: 2 * given["amount"]}, {}),
    "score of other noise": ("score", "bits_per_dim", {"z_noise": lambda given: -given["z_noise"]}, {}),
    "reversed labels": ("classify", "log_", {}, {"log_probabilities": lambda out: -out["log_probabilities"]}),
    "labels of the other image": ("switch", "images_ab", {"labels_a": lambda given: given["labels_b"]}, {}),
    "samples of another label": ("sample", "images", {"labels": lambda given: 0 * given["labels"]}, {}),
}  # fmt: skip
LABELS = {"reversed labels", "labels of the other image", "samples of another label"}


@pytest.fixture(scope="module")
def models():
    kinds = {False: SMALL, True: dataclasses.replace(OF_CLASSES["classes"], image_shape=(8, 8, 3))}
    return {of_labels: strengthen_z(fresh(config)) for of_labels, config in kinds.items()}


@pytest.fixture
def make_vectors(monkeypatch):
    """A function that makes the test vectors of a few images, of all endpoints or of one."""
    monkeypatch.setattr(vectors, "choose_batch_sizes", lambda side: (1, 2, 2))
    monkeypatch.setattr(vectors, "_HARD", {})

    def make(model, name=None, sabotage=lambda right: right):
        chosen = [
            dataclasses.replace(one, answer=sabotage(one.answer))
            for one in list_endpoints(model.config)
            if name in (None, one.name)
        ]
        monkeypatch.setattr(vectors, "list_endpoints", lambda *given: chosen)
        return make_test_vectors(model, random_images(5, model.config.image_shape, seed=3))

    return make


@pytest.mark.parametrize("name", FAULTS)
def test_endpoint_that_differs_from_the_method_of_the_model_is_refused(name, models, make_vectors):
    endpoint, output, inputs, outputs = FAULTS[name]

    def sabotage(answer):
        def answer_wrongly(model, given):
            made = answer(model, {**given, **{key: change(given) for key, change in inputs.items()}})
            return {**made, **{key: change(made) for key, change in outputs.items()}}

        return answer_wrongly

    with pytest.raises(RefusedError, match=f"endpoint {endpoint} differs from the model's own method: {output}"):
        make_vectors(models[name in LABELS], endpoint, sabotage)


@pytest.mark.parametrize("kind", ["none", "dequantization", "classes"])
def test_right_endpoints_of_each_kind_of_model_pass(kind, make_vectors):
    model = variant(kind)
    made = {key.split("/")[1] for key in make_vectors(model) if key.startswith("out/")}
    assert made == {endpoint.name for endpoint in list_endpoints(model.config)}
