"""The exported ONNX files: they compute what the Keras model computes, whatever their weights are held as."""

import importlib.metadata
import os
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
from helpers.graphs import (
    IN_FILES,
    VARIANTS,
    arrays_of,
    assert_same,
    expected,
    inputs_of,
    model_of,
    onnx_of,
    run,
    weights_in,
)
from helpers.models import TINY, random_images

from export.endpoints import endpoints, find_endpoint
from export.formats.onnx import OPSET, save_onnx
from export.verification.comparison import digest_array, reorder_axes

# Converted but in no file of an export: the score has the log-determinants, in whose layout sums run over other axes.
CONVERTED = [(name, one.name) for name in IN_FILES for one in endpoints(VARIANTS[name]) if one.onnx] + [
    ("alpha-0.8", "score"),
    ("base", "score"),
    ("dequantization", "score"),
    ("prior of classes", "sample"),
]


@pytest.mark.usefixtures("eager")
class TestOnnxNumbers:
    @pytest.mark.parametrize(("name", "of"), CONVERTED, ids=[f"{name}-{of}" for name, of in CONVERTED])
    def test_file_is_the_model(self, name, of):
        assert_same(run(name, of), expected(name, of), VARIANTS[name].n_bits)

    @pytest.mark.parametrize("name", IN_FILES)
    def test_images_come_back(self, name):
        right = model_of(name).quantize_images(inputs_of(VARIANTS[name])["images"])
        np.testing.assert_array_equal(run(name, "decode", **run(name, "encode"))["images"], right)


# The other variants have weights of the same kinds, in other numbers and with other values.
KINDS_OF_WEIGHTS = (*IN_FILES, "additive, normal prior")

FILES = [("alpha-0.8", "encode"), ("alpha-0.8", "decode"), ("alpha-0.8", "sample"), ("base", "encode")]


@pytest.fixture(params=FILES, ids=[f"{name}-{of}" for name, of in FILES])
def file(request):
    """(endpoint, ONNX model)."""
    name, of = request.param
    return find_endpoint(VARIANTS[name], of), onnx_of(name, of)


@pytest.mark.usefixtures("eager")
class TestOnnxGraph:
    def test_file_is_valid_of_opset_18_and_of_standard_operators(self, file):
        _, model = file
        onnx.checker.check_model(model, full_check=True)
        assert OPSET == 18 and {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET
        assert {node.domain for node in model.graph.node} == {""} and len(model.functions) == 0

    def test_inputs_and_outputs_are_the_endpoints_in_order_with_the_batch_free(self, file):
        of, model = file
        for values, arrays in ((model.graph.input, of.inputs), (model.graph.output, of.outputs)):
            assert [value.name for value in values] == [array.name for array in arrays]
            assert [value.doc_string for value in values] == [array.meaning for array in arrays]
            for value, array in zip(values, arrays, strict=True):
                kind = value.type.tensor_type
                assert onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) == array.dtype
                axes = [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
                assert axes == ["batch", *array.shape]

    def test_no_split_needs_more_buffers_than_webgpu_gives(self, file):
        # 8, of which one holds what is split.
        assert all(len(node.output) <= 7 for node in file[1].graph.node if node.op_type == "Split")

    def test_axes_are_moved_for_images_and_local_codes_alone(self, file):
        _, model = file
        moved = [node for node in model.graph.node if node.op_type == "Transpose"]
        orders = [list(attribute.ints) for node in moved for attribute in node.attribute]
        to_planes, to_pixels = [0, 3, 1, 2], [0, 2, 3, 1]
        assert orders == [to_planes, to_pixels]

    def test_nothing_is_computed_that_depends_on_weights_alone(self, file):
        _, model = file
        from_inputs = {value.name for value in model.graph.input}
        for node in model.graph.node:
            assert from_inputs & set(node.input), f"{node.op_type} {node.name} has the same result every time"
            from_inputs.update(node.output)

    def test_biases_are_inside_the_convolutions(self, file):
        _, model = file
        convolved = {node.output[0] for node in model.graph.node if node.op_type == "Conv"}
        weights = set(weights_in(model))
        for node in model.graph.node:
            if node.op_type in ("Add", "Sub", "Mul", "Div") and convolved & set(node.input):
                other = [name for name in node.input if name in weights]
                # A number, as the 1 of (x + 1) * n_bins/2, is no bias.
                assert not other or weights_in(model)[other[0]].size == 1, f"{other} beside a convolution"
        with_bias = [
            n
            for n in model.graph.node
            if n.op_type == "Conv" and re.search("mix/kernel$|/last/kernel$|^encoder", n.input[1])
        ]
        assert with_bias and all(len(node.input) == 3 for node in with_bias)

    def test_normalisations_are_folded_away(self, file):
        _, model = file
        kinds = {node.op_type for node in model.graph.node}
        assert "Conv" in kinds
        assert not kinds & {
            "BatchNormalization", "InstanceNormalization", "ReduceL2", "ReduceSumSquare", "Sqrt", "Det", "Pad", "Loop",
            "If", "Scan", "Constant", "Shape",
        }  # fmt: skip

    def test_weights_go_by_the_names_of_their_layers(self, file):
        _, model = file
        arrays = arrays_of("alpha-0.8") | arrays_of("base")
        named = weights_in(model)
        foreign = {name: array for name, array in named.items() if re.sub(r"/\d+$", "", name) not in arrays}
        # Left are the numbers of the graph itself: sizes of splits, bounds.
        assert max(array.size for array in foreign.values()) <= 24
        assert len(named) - len(foreign) > 40

    @pytest.mark.parametrize("name", KINDS_OF_WEIGHTS)
    def test_digests_know_every_weight_of_every_kind_of_model(self, name):
        known = {*map(digest_array, arrays_of(name).values())}
        for of in ("encode", "decode", "sample"):
            for tensor in onnx_of(name, of).graph.initializer:
                if tensor.dims and tensor.data_type == onnx.TensorProto.FLOAT:
                    array = onnx.numpy_helper.to_array(tensor)
                    assert any(digest_array(form) in known for form in reorder_axes(array)), tensor.name

    def test_no_weight_is_there_twice_or_for_nothing(self, file):
        _, model = file
        names = [tensor.name for tensor in model.graph.initializer]
        assert len(set(names)) == len(names)
        assert set(names) <= {name for node in model.graph.node for name in node.input}

    def test_matrices_are_applied_in_one_direction_only(self):
        of_direction = {
            of: {n for n in weights_in(onnx_of("alpha-0.8", of)) if "mix" in n} for of in ("encode", "decode")
        }
        assert of_direction["encode"] and all(re.search("/mix", name) for name in of_direction["encode"])
        assert of_direction["decode"] and all(re.search("/unmix", name) for name in of_direction["decode"])

    def test_metadata_and_summary_are_in_the_file(self, file):
        of, model = file
        assert {entry.key for entry in model.metadata_props} == {"run"}
        assert (model.producer_name, model.graph.name, model.doc_string) == ("tfdecouple", of.name, of.summary)
        # tf2onnx would give its own.
        assert model.producer_version == importlib.metadata.version("tfdecouple")


OPENING = """
import sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
z, v = session.run(["z", "v"], {"images": np.load(sys.argv[2])})
np.savez(sys.argv[3], z=z, v=v)
"""


@pytest.mark.usefixtures("eager")
class TestFilesOfWeights:
    @pytest.fixture
    def large(self, tmp_path):
        """An encoder written as if one file could hold no more than 10,000 bytes."""
        path = tmp_path / "export" / "encoder.onnx"
        path.parent.mkdir()
        copy = onnx.ModelProto()
        copy.CopyFrom(onnx_of("alpha-0.8", "encode"))
        save_onnx(copy, path, inline_limit=10_000)
        return path

    def test_below_the_limit_there_is_one_file(self, tmp_path):
        save_onnx(onnx_of("alpha-0.8", "encode"), tmp_path / "encoder.onnx")
        assert [path.name for path in tmp_path.iterdir()] == ["encoder.onnx"]

    def test_beyond_the_limit_weights_lie_beside_the_model(self, large):
        assert sorted(path.name for path in large.parent.iterdir()) == ["encoder.onnx", "encoder.onnx.data"]
        small = onnx.load(large, load_external_data=False).graph.initializer
        outside = [{entry.key: entry.value for entry in tensor.external_data} for tensor in small]
        assert {entries["location"] for entries in outside if entries} == {"encoder.onnx.data"}
        assert sum(len(tensor.raw_data) for tensor in small) < 40_000
        onnx.checker.check_model(str(large), full_check=True)
        whole, read = weights_in(onnx_of("alpha-0.8", "encode")), weights_in(onnx.load(large))
        assert set(read) == set(whole) and all(np.array_equal(read[name], whole[name]) for name in whole)

    def test_model_opens_from_another_working_directory_after_a_move(self, large, tmp_path):
        moved = large.parent.rename(tmp_path / "moved elsewhere")
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        np.save(tmp_path / "images.npy", random_images(3, seed=4))
        relative = os.path.relpath(moved / "encoder.onnx", elsewhere)
        subprocess.run(
            [sys.executable, "-c", OPENING, relative, str(tmp_path / "images.npy"), str(tmp_path / "codes.npz")],
            cwd=elsewhere,
            check=True,
        )
        whole = run("alpha-0.8", "encode", images=random_images(3, seed=4))
        assert_same(dict(np.load(tmp_path / "codes.npz")), whole, tolerance=1e-6)


def test_names_of_files_are_those_of_the_endpoints():
    """By which clients find them; others may join them."""
    known = {"encode": "encoder", "decode": "decoder", "sample": "sampler"}
    assert known.items() <= {one.name: one.onnx for one in endpoints(TINY) if one.onnx}.items()
