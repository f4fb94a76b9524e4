import importlib.metadata

import onnx
import pytest
from helpers.exporting import find_endpoint
from helpers.models import LEAST, SMALL
from helpers.refusals import message_of
from helpers.variants import fresh

from export.exported_model import ExportedModel
from export.formats.onnx import OPSET, build_onnx
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

    def test_onnx_graph_moves_axes_at_its_ends_alone(self, file):
        # Encoder and flow both read the image, and maps of the encoder become a vector.
        kinds = [node.op_type for node in file[1].graph.node]
        assert kinds.count("Transpose") <= 6 < kinds.count("Conv")

    def test_onnx_graph_computes_nothing_from_weights_alone_and_has_operations_of_every_runtime(self, file):
        nodes, from_inputs = file[1].graph.node, {value.name for value in file[1].graph.input}
        for node in nodes:
            assert from_inputs & set(node.input), f"{node.op_type} {node.name} has the same result every time"
            from_inputs.update(node.output)
            # WebGPU gives 8 buffers, of which one holds what is split.
            assert node.op_type != "Split" or len(node.output) <= 7
        assert not {node.op_type for node in nodes} & {
            "BatchNormalization", "InstanceNormalization", "ReduceL2", "ReduceSumSquare", "Sqrt", "Det", "Pad", "Loop",
            "If", "Scan", "Constant", "Shape",
        }  # fmt: skip
