"""The gate of an export: files that are wrong are refused, and nothing of them is published.

The checks run as always, in processes of their own that know nothing of the tests. What is sabotaged are the builders:
they hand over files that were built right, with one thing changed.
"""

import dataclasses
import os
import shutil

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export import pipeline
from export.endpoints import Endpoint, endpoints, onnx_names
from export.formats import onnx as onnx_format
from export.formats.onnx import OPSET
from export.verification import check_onnx
from export.verification.cases import make_cases, real_images
from export.verification.run import RefusedError
from tfdecouple.config import Config, DataConfig


@pytest.fixture
def sabotage_onnx(monkeypatch, refusal):
    """Changes one of the ONNX models after its conversion, and returns what the refused export says."""

    def run(name, change, *arguments):
        build = onnx_format.build_onnx

        def sabotaged(deployed, endpoint, metadata):
            model = build(deployed, endpoint, metadata)
            if endpoint.onnx == name:
                change(model)
            return model

        monkeypatch.setattr(onnx_format, "build_onnx", sabotaged)
        return refusal("--format", "onnx", *arguments)

    return run


def change_weight(name, change):
    """Returns a sabotage that puts `change(array)` in place of a weight."""

    def sabotage(model):
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        changed = change(numpy_helper.to_array(tensor)).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(changed, name))

    return sabotage


def scaled(factor):
    return lambda array: array * factor


def one_entry_moved(array):
    array = array.copy()
    array.flat[0] += 0.1
    return array


def one_entry_not_a_number(array):
    array = array.copy()
    array.flat[0] = np.nan
    return array


COUPLING = "flow/level_1_part_0_step_0/coupling_continuous_first"


@pytest.fixture
def onnx_problems(exported, cases, origin, tmp_path):
    """Checks a copy of the exported ONNX files, in this process, and returns the problems found.

    `change(folder)` may do to the files what it likes; `known` replaces arrays of the cases.
    """

    def check(change=lambda folder: None, known=None, **options):
        folder = shutil.copytree(exported / "onnx", tmp_path / "onnx")
        change(folder)
        given = {
            "names": onnx_names(origin.config.model),
            "metadata": {**origin.metadata(), "name": origin.name},
        } | options
        return check_onnx.check(folder, cases | (known or {}), tell=str, **given).problems

    return check


def edit(name, change):
    """Returns a sabotage of a folder that changes one model: `change` is given it to edit."""

    def sabotage(folder):
        path = folder / f"{name}.onnx"
        model = onnx.load(path)
        change(model)
        onnx.save(model, path)

    return sabotage


MIX = "flow/level_0_part_0_step_0"


@pytest.mark.usefixtures("forked")
class TestOnnx:
    def test_right_files_pass(self, onnx_problems):
        assert onnx_problems() == []

    def test_changed_weight_is_refused_in_one_line_and_nothing_is_published(self, sabotage_onnx):
        line = sabotage_onnx("decoder", change_weight(f"{COUPLING}/last/kernel", one_entry_moved))
        assert f"decoder.onnx has other numbers in weight {COUPLING}/last/kernel than the run" in line

    @pytest.mark.parametrize("file", ["encoder", "decoder", "sampler"])
    def test_any_weight_changed_by_a_thousandth_is_found(self, onnx_problems, exported, file):
        # Even where it moves no pixel and no code of any image that is tried.
        def change(model):
            for tensor in model.graph.initializer:
                if tensor.dims and tensor.data_type == onnx.TensorProto.FLOAT:
                    array = numpy_helper.to_array(tensor).copy()
                    array.flat[-1] = array.flat[-1] * np.float32(1.001) or np.float32(1e-9)
                    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

        problems = onnx_problems(edit(file, change))
        model = onnx.load(exported / "onnx" / f"{file}.onnx")
        floats = [t.name for t in model.graph.initializer if t.dims and t.data_type == onnx.TensorProto.FLOAT]
        assert problems == [f"{file}.onnx has other numbers in weight {name} than the run" for name in floats]
        assert len(floats) > 30

    @pytest.mark.parametrize(
        ("file", "weight", "change", "message"),
        [
            ("encoder", f"{COUPLING}/last/kernel", one_entry_moved, "encode: v: image "),
            ("encoder", "encoder/top/kernel", one_entry_moved, "encode: z: image "),
            ("encoder", f"{MIX}/mix/kernel", scaled(1.0001), "encode: v: image "),
            ("encoder", "encoder/last/kernel", scaled(1.0001), "encode: z: image "),
            ("encoder", "encoder/last/kernel", one_entry_not_a_number, "differs from the model by nan"),
            # Of the decoder only pixels are seen; codes whose pixels lie beside borders of levels show small changes.
            ("decoder", f"{COUPLING}/last/kernel", one_entry_moved, "decode of drawn codes: images: "),
            ("decoder", f"{MIX}/unmix/kernel", scaled(1.0001), "decode of drawn codes: images: "),
            ("sampler", f"{MIX}/unmix/kernel", scaled(1.0001), "sample: images: "),
            ("sampler", "prior/step_0/unmix/bias", one_entry_moved, "sample: images: "),
        ],
    )
    def test_effect_of_a_change_is_found_without_knowing_the_weights(
        self, onnx_problems, monkeypatch, file, weight, change, message
    ):
        monkeypatch.setattr(check_onnx, "wrong_weights", lambda model, expected: [])
        problems = onnx_problems(edit(file, change_weight(weight, change)))
        assert any(message in problem for problem in problems), problems
        assert any("; allowed " in problem for problem in problems), problems

    @pytest.mark.parametrize(
        ("file", "tensor", "message"),
        [("decoder", "v", "decode"), ("sampler", "v_noise", "sample"), ("sampler", "temperature", "sample")],
    )
    def test_factor_in_the_graph_is_found(self, onnx_problems, file, tensor, message):
        def change(model):
            for node in model.graph.node:
                node.input[:] = ["changed" if name == tensor else name for name in node.input]
            model.graph.initializer.append(numpy_helper.from_array(np.float32(1.0001), "factor"))
            model.graph.node.insert(0, helper.make_node("Mul", [tensor, "factor"], ["changed"]))

        problems = onnx_problems(edit(file, change))
        assert any(problem.startswith(message) for problem in problems), problems

    @pytest.mark.parametrize("ignored", ["z_noise", "v_noise", "temperature"])
    def test_input_that_is_ignored_is_found(self, onnx_problems, ignored):
        def change(model):
            for node in model.graph.node:
                node.input[:] = ["nothing" if name == ignored else name for name in node.input]
            zero = numpy_helper.from_array(np.float32(0), "zero")
            model.graph.initializer.append(zero)
            model.graph.node.insert(0, helper.make_node("Mul", [ignored, "zero"], ["nothing"]))

        assert any(problem.startswith("sample: images: ") for problem in onnx_problems(edit("sampler", change)))

    def test_files_in_each_others_place_are_found(self, onnx_problems):
        def swap(folder):
            (folder / "encoder.onnx").rename(folder / "x")
            (folder / "decoder.onnx").rename(folder / "encoder.onnx")
            (folder / "x").rename(folder / "decoder.onnx")

        assert any("encoder.onnx has ['z', 'v'] where encode has ['images']" in one for one in onnx_problems(swap))

    @pytest.mark.parametrize("domain", ["", "somewhere.else"])
    def test_operation_that_the_runtime_lacks_is_found(self, sabotage_onnx, domain):
        def plant(model):
            # The checker knows all operations of ONNX itself, and lets those of other domains pass to the runtime.
            node = next(node for node in model.graph.node if node.op_type == "Conv")
            node.op_type, node.domain = "Convolute", domain
            if domain:
                model.opset_import.append(helper.make_opsetid(domain, 1))

        line = sabotage_onnx("decoder", plant)
        assert "decoder.onnx" in line and (domain or "Convolute") in line

    def test_operation_of_the_runtimes_own_is_found(self, onnx_problems):
        # It computes the same in ONNX Runtime, and other runtimes know nothing of it.
        def plant(model):
            name = next(node for node in model.graph.node if node.op_type == "Conv").output[0]
            for node in model.graph.node:
                node.input[:] = ["same" if given == name else given for given in node.input]
            place = next(i for i, node in enumerate(model.graph.node) if name in node.output)
            node = helper.make_node("QuickGelu", [name], ["odd"], domain="com.microsoft", alpha=1.0)
            model.graph.node.insert(place + 1, node)
            model.graph.node.insert(place + 2, helper.make_node("Identity", [name], ["same"]))
            model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

        assert "uses operations of com.microsoft" in onnx_problems(edit("decoder", plant))[0]

    def test_operation_that_draws_numbers_is_found(self, onnx_problems):
        # So small that no pixel and no code differs by more than it may.
        def plant(model):
            node = next(node for node in model.graph.node if node.op_type == "Conv")
            node.input[0], given = "noisy", node.input[0]
            place = list(model.graph.node).index(node)
            noise = helper.make_node("RandomNormalLike", [given], ["noise"], mean=0.0, scale=1e-12)
            model.graph.node.insert(place, noise)
            model.graph.node.insert(place + 1, helper.make_node("Add", [given, "noise"], ["noisy"]))

        (problem,) = onnx_problems(edit("encoder", plant))
        assert problem.startswith("encoder.onnx has RandomNormalLike, so that its answers need not be the same")

    @pytest.mark.parametrize(
        ("kind", "said"),
        [
            ("value_floats", "has a weight more of a Constant that the run does not have"),
            ("int8", "has a weight more that the run does not have"),
            ("bfloat16", "has a weight more that the run does not have"),
            ("int64", "has a weight more that the run does not have"),
            ("sparse", "has sparse weights, which are compared with nothing"),
        ],
    )
    def test_weight_that_is_kept_as_something_else_is_found(self, onnx_problems, kind, said):
        def plant(model):
            types = {"int8": onnx.TensorProto.INT8, "bfloat16": onnx.TensorProto.BFLOAT16, "int64": 7}
            if kind == "value_floats":
                model.graph.node.append(helper.make_node("Constant", [], ["more"], value_floats=[1.0, 2.0]))
            elif kind == "sparse":
                values = helper.make_tensor("more", onnx.TensorProto.FLOAT, [1], [1.0])
                places = helper.make_tensor("places", onnx.TensorProto.INT64, [1], [1])
                model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2]))
            else:
                model.graph.initializer.append(helper.make_tensor("more", types[kind], [2], [1, 2]))
            if kind == "int8":
                model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "scale"))
                model.graph.node.append(helper.make_node("DequantizeLinear", ["more", "scale"], ["wide"]))
            elif kind != "sparse":
                model.graph.node.append(helper.make_node("Cast", ["more"], ["wide"], to=onnx.TensorProto.FLOAT))

        assert onnx_problems(edit("encoder", plant)) == [f"encoder.onnx {said}"]

    def test_newer_opset_and_format_are_found(self, onnx_problems):
        def newer(model):
            model.opset_import[0].version, model.ir_version = 19, 10

        (problem,) = onnx_problems(edit("sampler", newer))
        assert problem == "sampler.onnx is of opset [19], format 10; expected opset 18, format 8 at most"
        assert check_onnx._OPSET == OPSET

    def test_batch_axis_of_one_size_is_found(self, onnx_problems):
        def fix(model):
            for value in [*model.graph.input, *model.graph.output]:
                value.type.tensor_type.shape.dim[0].dim_value = 1

        assert "sampler.onnx has z_noise as float32 [1, 4]" in onnx_problems(edit("sampler", fix))

    def test_batch_axis_that_is_free_in_name_only_is_found(self, onnx_problems):
        def fix(model):
            # A reshape to one image somewhere in the middle: right for one image, wrong for three.
            name = model.graph.output[0].name
            producer = next(node for node in model.graph.node if name in node.output)
            producer.output[0] = "whole"
            model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
            model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "zero"))
            model.graph.node.append(helper.make_node("Slice", ["whole", "zero", "one", "zero"], [name]))

        problem = onnx_problems(edit("decoder", fix))[0]
        assert problem == "decode returns images as uint8 [3, 8, 8, 3] where the model has uint8 [21, 8, 8, 3]"

    def test_missing_output_and_outputs_in_another_order_are_found(self, onnx_problems):
        def turn(model):
            # Who asks for all outputs gets them by their places.
            outputs = list(model.graph.output)
            del model.graph.output[:]
            model.graph.output.extend(outputs[::-1])

        assert onnx_problems(edit("encoder", turn)) == ["encoder.onnx has ['v', 'z'] where encode has ['z', 'v']"]

    def test_output_that_is_one_too_many_is_found(self, onnx_problems):
        def add(model):
            model.graph.node.append(helper.make_node("Identity", ["z"], ["more"]))
            model.graph.output.append(helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["batch", 4]))

        assert onnx_problems(edit("encoder", add))[0].startswith("encoder.onnx has ['z', 'v', 'more'] where encode has")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("d_z", "5"), ("n_bits", "5"), ("image_size", "16"), ("run", "another"), ("step", "2"),
            ("config_sha256", "0" * 64), ("endpoint", "decode"), ("name", "another"), ("value_range", "0..1"),
            ("averaged", "true"), ("precision", "float16"), ("versions", "tensorflow 1.0"),
        ],
    )  # fmt: skip
    def test_metadata_that_do_not_belong_to_the_run_are_found(self, onnx_problems, key, value):
        def change(model):
            entries = {entry.key: entry.value for entry in model.metadata_props}
            helper.set_model_props(model, {**entries, key: value})

        (problem,) = onnx_problems(edit("encoder", change))
        assert problem.startswith(f"encoder.onnx says {key} {value!r} where the run has ")

    def test_missing_metadata_are_found(self, onnx_problems):
        def drop(model):
            del model.metadata_props[:]

        assert "decoder.onnx says run None where the run has 'tiny'" in onnx_problems(edit("decoder", drop))

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
    def test_file_that_is_cut_off_is_found(self, onnx_problems, share):
        def cut(folder):
            os.truncate(folder / "sampler.onnx", int(share * (folder / "sampler.onnx").stat().st_size))

        assert any("sampler.onnx" in problem for problem in onnx_problems(cut))

    def test_missing_file_is_found(self, monkeypatch, refusal):
        save = onnx_format.save_onnx
        monkeypatch.setattr(onnx_format, "save_onnx", lambda m, path: path.stem == "sampler" or save(m, path))
        assert "sampler.onnx" in refusal("--format", "onnx")

    def test_file_that_nothing_is_compared_with_is_found(self, onnx_problems):
        problems = onnx_problems(lambda folder: shutil.copy(folder / "encoder.onnx", folder / "copy.onnx"))
        assert problems == ["copy.onnx is compared with nothing"]

    def test_endpoint_with_a_file_that_is_compared_nowhere_is_refused(self, onnx_problems, origin):
        names = {**onnx_names(origin.config.model), "reconstruct": "reconstructor"}

        def add(folder):
            model = onnx.load(folder / "decoder.onnx")
            entries = {entry.key: entry.value for entry in model.metadata_props}
            helper.set_model_props(model, {**entries, "endpoint": "reconstruct"})
            onnx.save(model, folder / "reconstructor.onnx")

        assert onnx_problems(add, names=names) == [
            "reconstructor.onnx has ['z', 'v'] where reconstruct has []",
            "reconstructor.onnx has ['images'] where reconstruct has []",
        ]

    def test_endpoint_that_the_model_does_not_answer_is_refused(self, monkeypatch, model):
        one = endpoints(model.config)[0]
        with pytest.raises(TypeError, match="answer"):
            Endpoint(name="x", summary="", inputs=one.inputs, outputs=one.outputs, build=one.build, onnx="x")
        with pytest.raises(ValueError, match="endpoint encode names two arrays alike"):
            dataclasses.replace(one, outputs=one.inputs)
        more = dataclasses.replace(one, name="reconstruct", onnx="reconstructor", answer=lambda reference, given: {})
        # Alone: what the others answer takes its time.
        monkeypatch.setattr("export.endpoints.endpoints", lambda config: (more,))
        monkeypatch.setattr("export.verification.cases.endpoints", lambda config: (more,))
        assert onnx_names(model.config)["reconstruct"] == "reconstructor"
        images, _ = real_images(Config(name="x", model=model.config, data=DataConfig(source="photographs")))
        with pytest.raises(RefusedError, match="endpoint reconstruct cannot be compared"):
            make_cases(model, images)


class TestProcess:
    def test_that_crashes_refuses_in_one_line(self, monkeypatch, refusal):
        monkeypatch.setattr(pipeline, "save_cases", lambda cases, path: path.write_bytes(b"no archive"))
        line = refusal("--format", "onnx")
        assert "check_onnx ended with status 1: " in line

    def test_that_is_killed_refuses_in_one_line(self, monkeypatch, refusal, tmp_path):
        # As the kernel does where memory runs out.
        (tmp_path / "sitecustomize.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
        monkeypatch.syspath_prepend(tmp_path)
        assert "check_onnx ended with status -9: no message" in refusal("--format", "onnx")

    def test_that_is_refused_leaves_no_folder_where_there_was_none(self, monkeypatch, built, tiny_run, tmp_path):
        (tmp_path / "sitecustomize.py").write_text("import sys\nsys.exit(9)\n")
        monkeypatch.syspath_prepend(tmp_path)
        request = pipeline.Request(run=tiny_run, to=tmp_path / "a" / "b", formats=("onnx",))
        with pytest.raises(RefusedError, match="^not published: check_onnx ended with status "):
            pipeline.export(request, say=lambda text: None)
        assert not (tmp_path / "a").exists()
