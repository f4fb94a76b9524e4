import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from helpers import graphs
from helpers.models import TINY, random_images
from helpers.places import ROOT
from tensorflow.core.protobuf import saved_model_pb2

from export import folding
from export.endpoints import find_endpoint, list_endpoints
from export.exported_model import ExportedModel
from export.pipeline import ExportConfig, export
from export.verification.verify import RefusedError
from tfdecouple.errors import InversionError, NotInitializedError
from tfdecouple.model import DecoupledModel
from tfdecouple.numerics.arithmetic import get_sizes
from tfdecouple.runs.opened_run import load_model


def call(name, endpoint_name, **given):
    endpoint = find_endpoint(graphs.VARIANTS[name], endpoint_name)
    made = graphs.call_endpoint(
        graphs.get_exported_model(name), endpoint, {**graphs.make_inputs(graphs.VARIANTS[name]), **given}
    )
    assert list(made) == [array.name for array in endpoint.outputs]
    for array in endpoint.outputs:
        assert made[array.name].dtype == array.dtype and made[array.name].shape[1:] == array.shape
    return made


# The other endpoints are made of the same parts, and differ between models no more than they do here.
FURTHER_ENDPOINTS = []
for variant in ("alpha-0.8", "base", "classes", "prior of classes"):
    names = (endpoint.name for endpoint in list_endpoints(graphs.VARIANTS[variant]))
    FURTHER_ENDPOINTS += [(variant, name) for name in names if name not in ("encode", "score")]


class TestEndpoints:
    @pytest.mark.parametrize("name", graphs.VARIANTS)
    def test_codes_and_scores_are_the_models_and_images_decode_exactly(self, name):
        model, exported, given = (
            graphs.get_model(name),
            graphs.get_exported_model(name),
            graphs.make_inputs(graphs.VARIANTS[name]),
        )
        codes = call(name, "encode")
        graphs.assert_same(codes, graphs.compute_expected(name, "encode"))
        images = call(name, "decode", **codes)["images"]
        np.testing.assert_array_equal(images, model.quantizer.quantize_pixels(given["images"]))
        graphs.assert_same(call(name, "score"), graphs.compute_expected(name, "score"))
        # Before it is rounded to pixels.
        inputs = {key: given[key] for key in ("v", *(["z"] if graphs.VARIANTS[name].has_latent else []))}

        def run_both(answers, placed):
            flow, z = answers.networks.flow, placed.get("z")
            (x,) = flow.inverse_and_log_det(placed["v"], z)
            return x, flow.forward_and_log_det(x, z)[1]

        x, found = graphs.run_graph(exported, run_both, inputs)
        right, log_det = model.flow.inverse_and_log_det(given["v"], inputs.get("z"))
        graphs.assert_same({"x": x}, {"x": right})
        np.testing.assert_allclose(found, -log_det, rtol=10 * graphs.TOLERANCE)

    @pytest.mark.parametrize(("name", "of"), FURTHER_ENDPOINTS)
    def test_endpoint_is_the_model(self, name, of):
        graphs.assert_same(call(name, of), graphs.compute_expected(name, of), graphs.VARIANTS[name].n_bits)

    def test_images_without_a_label_are_scored_by_the_mixture(self):
        labels = np.array([-1, 1, -1, 2, 0], np.int32)
        model, given = graphs.get_model("prior of classes"), graphs.make_inputs(graphs.VARIANTS["prior of classes"])
        right = model.outlier_scores(given["images"], labels, noise=(given["z_noise"], given["u_noise"])).to_dict()
        graphs.assert_same(call("prior of classes", "score", labels=labels), right)

    def test_ends_of_an_interpolation_and_a_switch_of_an_image_with_itself_are_the_images(self):
        images = {key: graphs.make_inputs(TINY)[key] for key in ("images_a", "images_b")}
        for place, end in zip((0, 1), images.values(), strict=True):
            ends = np.full(5, place, "float32")
            np.testing.assert_array_equal(call("alpha-0.8", "interpolate", alpha=ends, beta=ends)["images"], end)
        for found in call("alpha-0.8", "switch", images_b=images["images_a"]).values():
            np.testing.assert_array_equal(found, images["images_a"])


def change_weights(exported, names):
    """Changes one number of each of these weights by a thousandth, so little that no pixel need change."""
    rng = np.random.default_rng(0)
    for name in names:
        values = exported.weights[name].values.copy()
        # In a map of one pixel, only the middle of a kernel is multiplied by anything but padding.
        middle = np.zeros(values.shape, bool)
        middle[tuple(size // 2 for size in values.shape[:2]) if values.ndim == 4 else ...] = True
        number = rng.choice(np.flatnonzero(values * middle)) if values.any() else 0
        values.flat[number] = values.flat[number] * 1.001 or 1e-3
        exported.weights[name] = dataclasses.replace(exported.weights[name], values=values)


def list_named(problems):
    lists = (problem.partition(" weights ")[2].partition(" is not")[0] for problem in problems)
    return {name for listed in lists for name in listed.split(", ")}


def transpose_square(constant):
    rows, columns = constant.values.shape[-2:]
    return constant.apply(lambda array: array.swapaxes(-1, -2)) if rows == columns else constant


class OffByAThousandth(ExportedModel):
    """Folded networks with a fault in one number of one weight."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        change_weights(self, ["flow/level_1_part_0_step_0/coupling_continuous_first/net/first"])


# Models with options of `ExportedModel`.
LAYOUTS = [*((name, {}) for name in graphs.VARIANTS), *((name, {"channels_first": True}) for name in graphs.IN_FILES)]
LAYOUTS.append(("alpha-0.8", {"channels_first": True, "any_size": True}))


class TestCheck:
    @pytest.mark.parametrize(("name", "layout"), LAYOUTS)
    def test_any_weight_changed_by_a_thousandth_is_found(self, name, layout):
        exported = ExportedModel(graphs.get_model(name), **layout)
        assert list(exported.find_faults()) == []
        change_weights(exported, [*exported.weights])
        assert list_named(exported.find_faults()) == {*exported.weights}

    @pytest.mark.slow
    def test_any_weight_of_the_photographs_changed_by_a_thousandth_is_found(self):
        exported = ExportedModel(load_model("photographs"))
        change_weights(exported, [*exported.weights])
        assert list_named(exported.find_faults()) == {*exported.weights}

    @pytest.mark.parametrize("kind", ["bias added twice", "matrix transposed", "pixels exchanged"])
    def test_fault_of_the_folding_is_found(self, kind, monkeypatch):
        name, change = {
            "bias added twice": ("_write_linear", lambda y: y + y[:1, :1, :1] * 1e-6 if y.shape.rank == 4 else y),
            "matrix transposed": ("_join_earlier", lambda found: (found[0], transpose_square(found[1]), found[2])),
            "pixels exchanged": ("_write_view", lambda y: y[..., ::-1] if y.shape.rank == 4 else y),
        }[kind]
        right = getattr(folding._Folder, name)
        monkeypatch.setattr(folding._Folder, name, lambda self, *inputs: change(right(self, *inputs)))
        exported = ExportedModel(graphs.get_model("alpha-0.8"), channels_first=True)
        assert list(exported.find_faults())

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("run", "form"), [("photographs", "savedmodel"), (ROOT / "docs/results/conditional", "onnx")], ids=str
    )
    def test_export_with_a_wrong_weight_is_refused(self, run, form, tmp_path, monkeypatch):
        monkeypatch.setattr("export.pipeline.ExportedModel", OffByAThousandth)
        monkeypatch.setattr("export.pipeline.make_test_vectors", lambda model, images, report: {})
        with pytest.raises(RefusedError, match="weights flow/level_1_part_0_step_0/coupling_cont[a-z_]*/net/first"):
            export(ExportConfig(run=run, to=tmp_path / "to", formats=(form,)), str)
        assert not (tmp_path / "to").exists()


class TestFolding:
    def test_a_model_without_weights_is_refused(self):
        with pytest.raises(NotInitializedError):
            ExportedModel(DecoupledModel(graphs.VARIANTS["5 bits"]))

    @pytest.mark.usefixtures("eager")
    @pytest.mark.parametrize("value", [0.0, np.nan])
    def test_what_cannot_be_inverted_is_refused_by_name(self, value):
        model = DecoupledModel(graphs.VARIANTS["5 bits"])
        model.initialize(random_images(16, 4))
        model.flow.levels[1][0].steps[0].sequence[1].kernel.assign(np.full((12, 12), value))
        with pytest.raises(InversionError, match="level_1_part_0_step_0"):
            ExportedModel(model)

    @pytest.mark.parametrize("first", [False, True])
    def test_layer_of_any_kind_is_folded(self, first):
        """Operations for which folding has no rule, and an array of constants, are computed as they are traced."""
        matrix = np.random.default_rng(0).standard_normal((3, 3)).astype("float32")

        def method(x):
            rolled = tf.roll(tf.einsum("bhwc,cd->bhwd", x, tf.linalg.expm(matrix)), 1, 2)
            count = tf.cast(get_sizes(x)[0], tf.float32)
            return tf.sinh(rolled) * tf.constant([1.0, 2.0, 3.0]), tf.reduce_sum(rolled, [1, 2, 3]) / count

        traced = folding.trace_network(method, {}, [tf.TensorSpec([None, 4, 6, 3])])
        folded = folding.fold_graph(traced, first)
        values = {name: constant.values for name, constant in folded.weights.items()}
        x = np.random.default_rng(1).standard_normal((2, 4, 6, 3))
        found = [*folding.find_differences(traced, folded, values, [x])]
        assert found and max(difference for _, difference in found) < 1e-12

    def test_a_wrong_weight_is_found_where_the_models_result_is_zero(self):
        spec = tf.TensorSpec([None, 4])
        traced = folding.trace_network(lambda x: tf.linalg.matmul(x, tf.zeros([4, 4])), {}, [spec])
        folded = folding.fold_graph(traced)
        changed = {name: constant.values + 1e-3 for name, constant in folded.weights.items()}
        found = [*folding.find_differences(traced, folded, changed, [np.eye(4)])]
        assert max(difference for _, difference in found) > 1


def test_a_saved_model_has_each_direction_of_the_flow_once(exported, model):
    message = saved_model_pb2.SavedModel.FromString((exported / "savedmodel" / "1" / "saved_model.pb").read_bytes())
    functions = message.meta_graphs[0].graph_def.library.function
    count = sum(node.op == "Conv2D" for function in functions for node in function.node_def)
    methods = ExportedModel(model)._methods.values()
    assert count == sum(node.op == "Conv2D" for method in methods for node in method.folded.graph_def.node)
