"""The exported arithmetic: the folded graph computes what the Keras model computes, with the model's weights."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.graphs import (
    IN_FILES,
    TOLERANCE,
    VARIANTS,
    assert_same,
    compute_expected,
    get_deployed_model,
    get_model,
    make_inputs,
)
from helpers.models import TINY, random_images
from helpers.places import ROOT
from tensorflow.core.protobuf import saved_model_pb2

from export.deployed.deployed_layers import DeployedSplit
from export.deployed.deployed_model import DeployedModel
from export.deployed.graph import Layout
from export.endpoints import find_endpoint, list_endpoints
from export.pipeline import ExportConfig, export
from export.verification.comparison import RefusedError
from export.verification.folded_weights import compare_deployed_weights
from tfdecouple.errors import InversionError, NotInitializedError
from tfdecouple.model import DecoupledModel
from tfdecouple.model.outlier_scores import outlier_scores


def call(name, endpoint_name, **given):
    """Runs an endpoint of the folded graph in the layout NHWC."""
    config = VARIANTS[name]
    one = find_endpoint(config, endpoint_name)
    everything = {**make_inputs(config), **given}
    made = one.build(
        get_deployed_model(name), {array.name: tf.constant(everything[array.name]) for array in one.inputs}
    )
    assert list(made) == [array.name for array in one.outputs]
    for array in one.outputs:
        assert made[array.name].dtype == array.dtype and made[array.name].shape[1:] == array.shape
    return {output: array.numpy() for output, array in made.items()}


# The other endpoints are made of the same parts, and differ between models no more than they do here.
EVERY_ENDPOINT = ("alpha-0.8", "base", "classes", "prior of classes")
FURTHER_ENDPOINTS = [
    (name, one.name)
    for name in EVERY_ENDPOINT
    for one in list_endpoints(VARIANTS[name])
    if one.name not in ("encode", "score")
]
PRIORS = ("alpha-0.8", "alpha-1", "additive", "normal prior", "d_z 2", "d_z 5")


@pytest.mark.usefixtures("eager")
class TestDeployedGraph:
    @pytest.mark.parametrize("name", VARIANTS)
    def test_codes_and_scores_are_the_models_and_images_come_back(self, name):
        given, model, flow = make_inputs(VARIANTS[name]), get_model(name), get_deployed_model(name).flow
        codes = call(name, "encode")
        assert_same(codes, compute_expected(name, "encode"))
        images = call(name, "decode", **codes)["images"]
        np.testing.assert_array_equal(images, model.quantize_images(given["images"]))
        assert_same(call(name, "score"), compute_expected(name, "score"))
        # Before it is rounded to pixels.
        z = tf.constant(given["z"]) if VARIANTS[name].has_latent else None
        x, (right, log_det) = flow.inverse(tf.constant(given["v"]), z), model.flow.inverse_and_log_det(given["v"], z)
        assert_same({"x": x}, {"x": right})
        found = flow.forward_and_log_det(right, z)[1]
        np.testing.assert_allclose(np.broadcast_to(found, log_det.shape), -log_det, rtol=10 * TOLERANCE)

    @pytest.mark.parametrize(("name", "of"), FURTHER_ENDPOINTS)
    def test_endpoint_is_the_model(self, name, of):
        assert_same(call(name, of), compute_expected(name, of), VARIANTS[name].n_bits)

    @pytest.mark.parametrize("name", PRIORS)
    def test_prior_is_the_models_in_both_directions(self, name):
        deployed, model, noise = (
            get_deployed_model(name),
            get_model(name),
            tf.constant(make_inputs(VARIANTS[name])["z_noise"]),
        )
        z = deployed.prior.inverse(noise)
        assert_same({"z": z}, {"z": model.z_from_noise(noise)})
        back, log_det = deployed.prior.forward_and_log_det(z)
        assert_same({"noise": back}, {"noise": noise})
        # log p(z) is that of the noise and the log-determinant, up to the Gaussian's constant.
        ours = log_det - 0.5 * tf.reduce_sum(tf.square(back), -1) - 0.5 * back.shape[1] * np.log(2 * np.pi)
        assert_same({"log_prob": ours}, {"log_prob": model.prior.log_prob(z)})

    def test_images_without_a_label_are_scored_by_the_mixture(self):
        labels = np.array([-1, 1, -1, 2, 0], np.int32)
        model, given = get_model("prior of classes"), make_inputs(VARIANTS["prior of classes"])
        right = outlier_scores(model, given["images"], given["z_noise"], given["u_noise"], labels).to_dict()
        assert_same(call("prior of classes", "score", labels=labels), right)

    def test_ends_of_an_interpolation_and_a_switch_of_an_image_with_itself_are_the_images(self):
        images = {key: make_inputs(TINY)[key] for key in ("images_a", "images_b")}
        for place, end in zip((0, 1), images.values(), strict=True):
            ends = np.full(5, place, "float32")
            np.testing.assert_array_equal(call("alpha-0.8", "interpolate", alpha=ends, beta=ends)["images"], end)
        for found in call("alpha-0.8", "switch", images_b=images["images_a"]).values():
            np.testing.assert_array_equal(found, images["images_a"])


class OffByAThousandth(DeployedModel):
    """A deployed model with a fault in one number of one weight."""

    def __init__(self, model, order="NHWC"):
        super().__init__(model, order)
        name = "flow/level_1_part_0_step_0/coupling_continuous_first/first"
        (layer,) = (one for one in self.iterate_layers() if one.name == name)
        layer.kernel[1, 1, 0, 0] += np.float32(1e-3)


class TestDeployedWeights:
    @pytest.mark.parametrize(
        ("name", "order"), [*((name, "NHWC") for name in VARIANTS), *((name, "NCHW") for name in IN_FILES)]
    )
    def test_each_is_compared_with_the_models(self, name, order):
        model, deployed = get_model(name), get_deployed_model(name, order)
        assert list(compare_deployed_weights(model, deployed)) == []
        # One number of each array, by so little that no pixel need move.
        rng = np.random.default_rng(0)

        def spoil(path, array):
            array = array.copy()
            number = rng.choice(np.flatnonzero(array)) if array.any() else 0
            array.flat[number] = array.flat[number] * np.float32(1.001) or 1e-3
            return array

        problems = list(compare_deployed_weights(model, deployed.replace_arrays(spoil)))
        named = [one.partition("deployed weight ")[2].split()[0] for one in problems]
        assert named == sorted(deployed.collect_arrays())

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("run", "formats"), [("photographs", ("savedmodel",)), (ROOT / "docs/results/conditional", ("onnx",))], ids=str
    )
    def test_export_with_a_wrong_one_is_refused(self, run, formats, tmp_path, monkeypatch):
        monkeypatch.setattr("export.pipeline.DeployedModel", OffByAThousandth)
        monkeypatch.setattr("export.pipeline.make_test_vectors", lambda model, images, report: {})
        message = "1 of [0-9]* numbers of deployed weight flow/level_1_part_0_step_0/coupling"
        with pytest.raises(RefusedError, match=message):
            export(ExportConfig(run=run, to=tmp_path / "to", formats=formats), str)
        assert not (tmp_path / "to").exists()

    def test_a_model_without_weights_is_refused(self):
        with pytest.raises(NotInitializedError):
            DeployedModel(DecoupledModel(VARIANTS["5 bits"]))

    @pytest.mark.usefixtures("eager")
    @pytest.mark.parametrize("value", [0.0, np.nan])
    def test_what_cannot_be_inverted_is_refused_by_name(self, value):
        model = DecoupledModel(VARIANTS["5 bits"])
        model.initialize(random_images(16, 4))
        model.flow.levels[1][0].steps[0].sequence[1].kernel.assign(np.full((12, 12), value))
        with pytest.raises(InversionError, match="level_1_part_0_step_0"):
            DeployedModel(model)

    @pytest.mark.parametrize("name", ["base", "classes", "prior of classes"])
    def test_each_is_read_by_an_endpoint(self, name):
        given, deployed, made = make_inputs(VARIANTS[name], 1), get_deployed_model(name), {}
        with tf.Graph().as_default():
            placed = deployed.replace_arrays(
                lambda key, array: made.setdefault(key, tf.compat.v1.placeholder("float32", array.shape))
            )
            # Of these three all others are made.
            for one in (find_endpoint(VARIANTS[name], each) for each in ("encode", "sample", "score")):
                one.build(placed, {array.name: tf.constant(given[array.name]) for array in one.inputs})
            assert [key for key, tensor in made.items() if not tensor.consumers()] == []

    @pytest.mark.parametrize("order", ["NHWC", "NCHW"])
    @pytest.mark.parametrize("kept", [[0, 1], [3, 4], [0, 2], [0, 2, 4], [1, 3, 5], [4, 1, 0], [2]])
    def test_any_split_takes_and_puts_back_the_channels_of_the_models(self, order, kept):
        channels = 6
        others = [number for number in range(channels) if number not in kept]
        layout = Layout(order)
        split = DeployedSplit(lambda x: (tf.gather(x, kept, axis=-1), tf.gather(x, others, axis=-1)), channels, layout)
        images = tf.constant(np.random.default_rng(0).standard_normal((2, 2, 3, channels)))
        x_a, x_b = split(layout.from_nhwc(images))
        np.testing.assert_array_equal(layout.to_nhwc(x_a), images.numpy()[..., kept])
        np.testing.assert_array_equal(layout.to_nhwc(x_b), images.numpy()[..., others])
        np.testing.assert_array_equal(layout.to_nhwc(split.merge_channels(x_a, x_b)), images)


def test_a_saved_model_has_each_direction_of_the_flow_once(exported, model):
    message = saved_model_pb2.SavedModel.FromString((exported / "savedmodel" / "1" / "saved_model.pb").read_bytes())
    functions = message.meta_graphs[0].graph_def.library.function
    count = sum(node.op == "Conv2D" for function in functions for node in function.node_def)
    kernels = [name for name, array in DeployedModel(model).collect_arrays().items() if array.ndim == 4]
    # The flow runs forward and backward; a linear map has a kernel for each direction.
    of_flow = [1 if "mix" in name.split("/")[-2] else 2 for name in kernels if name.startswith("flow/")]
    assert count == sum(of_flow) + len(kernels) - len(of_flow)
