import importlib.metadata
from collections import Counter

import numpy as np
import onnx
import pytest
from helpers import graphs
from helpers.refusals import message_of

from export.endpoints import find_endpoint
from export.formats.onnx import OPSET, build_onnx
from export.verification.comparison import digest_array
from tfdecouple.errors import UserError

pytestmark = pytest.mark.usefixtures("eager")


# The conversion of the others takes long.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("alpha-0.8", "classes") else pytest.mark.slow)
        for name in graphs.IN_FILES
    ],
)
def test_onnx_files_compute_what_the_model_computes_from_its_weights(name):
    # The other variants have weights of the same kinds.
    known = {*map(digest_array, graphs.get_exported_model(name, True).collect_arrays().values())}
    for of in ("encode", "decode"):
        graphs.assert_same(graphs.run_onnx(name, of), graphs.compute_expected(name, of), graphs.VARIANTS[name].n_bits)
        for tensor in graphs.get_onnx_model(name, of).graph.initializer:
            if tensor.dims and tensor.data_type == onnx.TensorProto.FLOAT:
                array = onnx.numpy_helper.to_array(tensor)
                assert digest_array(array) in known, tensor.name
    images = graphs.get_model(name).quantizer.quantize_pixels(graphs.make_inputs(graphs.VARIANTS[name])["images"])
    np.testing.assert_array_equal(graphs.run_onnx(name, "decode", **graphs.run_onnx(name, "encode"))["images"], images)


@pytest.mark.parametrize("name", ["alpha-0.8", "classes", pytest.param("prior of classes", marks=pytest.mark.slow)])
def test_sampler_file_computes_what_the_model_computes(name):
    graphs.assert_same(graphs.run_onnx(name, "sample"), graphs.compute_expected(name, "sample"))


def test_operation_that_tf2onnx_cannot_convert_is_refused_in_one_line(monkeypatch):
    def fail(*_, **__):
        raise ValueError("make_sure failure: StridedSlice\nrequires the shape of input")

    monkeypatch.setattr("tf2onnx.tfonnx.process_tf_graph", fail)
    exported = graphs.get_exported_model("alpha-0.8", True)
    message = message_of(UserError, lambda: build_onnx(exported, find_endpoint(exported.config, "decode"), {}))
    assert message.startswith("decode cannot be converted to ONNX: ")
    assert message.endswith("StridedSlice; leave the format onnx out")


FILES = [("alpha-0.8", name) for name in ("encode", "decode", "sample")]
FILES.append(pytest.param(("five channels", "encode"), marks=pytest.mark.slow))


@pytest.fixture(params=FILES, ids=str)
def file(request):
    name, of = request.param
    return find_endpoint(graphs.VARIANTS[name], of), graphs.get_onnx_model(name, of)


class TestOnnxGraph:
    def test_onnx_graph_is_valid_with_standard_operators_and_a_description(self, file):
        of, model = file
        onnx.checker.check_model(model, full_check=True)
        assert OPSET == 18 and {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET
        assert {node.domain for node in model.graph.node} == {""} and len(model.functions) == 0
        assert {entry.key for entry in model.metadata_props} == {"run"}
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
        nodes = [node for node in file[1].graph.node if node.op_type == "Transpose"]
        # Encoder and flow both read the image, and the encoder's last map becomes a vector.
        expected = [[0, 3, 1, 2], [0, 2, 3, 1]] * (2 if file[0].name == "encode" else 1)
        if any("whitening" in tensor.name for tensor in file[1].graph.initializer):
            # A net makes mean and scale of the whole image.
            expected += [[0, 3, 1, 2]] * 2
        assert not Counter(tuple(node.attribute[0].ints) for node in nodes) - Counter(map(tuple, expected))

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
