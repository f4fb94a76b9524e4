"""The exported arithmetic: the folded graph computes what the Keras model computes."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.graphs import FURTHER, TOLERANCE, VARIANTS, assert_same, deployed_of, expected, inputs_of, model_of
from helpers.models import TINY, random_images
from tensorflow.core.protobuf import saved_model_pb2

from export.deployed.deployed_layers import DeployedSplit
from export.deployed.deployed_model import DeployedModel
from export.deployed.graph import Layout
from export.endpoints import endpoints, find_endpoint
from export.formats.saved_model import save_saved_model
from tfdecouple.errors import InversionError, NotInitializedError
from tfdecouple.model import DecoupledModel
from tfdecouple.model.outlier_scores import outlier_scores


def call(name, endpoint_name, **given):
    """Runs an endpoint of the folded graph in the layout NHWC."""
    config = VARIANTS[name]
    one = find_endpoint(config, endpoint_name)
    everything = {**inputs_of(config), **given}
    made = one.build(deployed_of(name), {array.name: tf.constant(everything[array.name]) for array in one.inputs})
    assert list(made) == [array.name for array in one.outputs]
    for array in one.outputs:
        assert made[array.name].dtype == array.dtype and made[array.name].shape[1:] == array.shape
    return {output: array.numpy() for output, array in made.items()}


# The others are made of the same parts, and differ from model to model no more than these do.
EVERY_ENDPOINT = ("alpha-0.8", "base", "none", "5 bits", "classes", "prior of classes")
ENDPOINTS = [
    (name, one.name)
    for name, config in VARIANTS.items()
    for one in endpoints(config)
    if name in EVERY_ENDPOINT or (one.name in ("encode", "score") and name not in FURTHER)
]


PRIORS = ("alpha-0.8", "alpha-1", "additive prior", "normal prior", "d_z 2", "d_z 5", "d_z 6")


@pytest.mark.usefixtures("eager")
class TestDeployedGraph:
    @pytest.mark.parametrize(("name", "of"), ENDPOINTS, ids=[f"{name}-{of}" for name, of in ENDPOINTS])
    def test_endpoint_is_the_model(self, name, of):
        assert_same(call(name, of), expected(name, of), VARIANTS[name].n_bits)

    @pytest.mark.parametrize("name", VARIANTS)
    def test_images_come_back(self, name):
        codes = call(name, "encode")
        right = model_of(name).quantize_images(inputs_of(VARIANTS[name])["images"])
        np.testing.assert_array_equal(call(name, "decode", **codes)["images"], right)

    @pytest.mark.parametrize("name", VARIANTS)
    def test_inverse_is_the_models_before_it_is_rounded_to_pixels(self, name):
        given, has_z = inputs_of(VARIANTS[name]), VARIANTS[name].has_latent
        z = tf.constant(given["z"]) if has_z else None
        ours = deployed_of(name).flow.inverse(tf.constant(given["v"]), z)
        theirs = model_of(name).flow.inverse_and_log_det(given["v"], z)[0]
        assert_same({"x": ours}, {"x": theirs})

    @pytest.mark.parametrize("name", PRIORS)
    def test_prior_is_the_models_in_both_directions(self, name):
        deployed, model, noise = deployed_of(name), model_of(name), tf.constant(inputs_of(VARIANTS[name])["z_noise"])
        z = deployed.prior.inverse(noise)
        assert_same({"z": z}, {"z": model.z_from_noise(noise)})
        back, log_det = deployed.prior.forward_and_log_det(z)
        assert_same({"noise": back}, {"noise": noise})
        # log p(z) is that of the noise and the log-determinant, up to the Gaussian's constant.
        ours = log_det - 0.5 * tf.reduce_sum(tf.square(back), -1) - 0.5 * back.shape[1] * np.log(2 * np.pi)
        assert_same({"log_prob": ours}, {"log_prob": model.prior.log_prob(z)})

    @pytest.mark.parametrize("name", ["alpha-0.8", "alpha-1", "additive", "none", "three parts"])
    def test_log_det_of_the_flow_is_the_models(self, name):
        given = inputs_of(VARIANTS[name])
        z = tf.constant(given["z"]) if VARIANTS[name].has_latent else None
        ours = deployed_of(name).flow.forward_and_log_det(tf.constant(given["v"]), z)[1]
        theirs = model_of(name).flow.forward_and_log_det(given["v"], z)[1]
        np.testing.assert_allclose(np.broadcast_to(ours, theirs.shape), theirs, rtol=TOLERANCE)
        assert np.all(np.abs(theirs) > 1)

    def test_images_without_a_label_are_scored_by_the_mixture(self):
        labels = np.array([-1, 1, -1, 2, 0], np.int32)
        model, given = model_of("prior of classes"), inputs_of(VARIANTS["prior of classes"])
        right = outlier_scores(model, given["images"], given["z_noise"], given["u_noise"], labels).named()
        assert_same(call("prior of classes", "score", labels=labels), right)

    @pytest.mark.parametrize("place", [0.0, 1.0])
    def test_ends_of_an_interpolation_are_the_images(self, place):
        given = inputs_of(TINY)
        ends = np.full(5, place, "float32")
        found = call("alpha-0.8", "interpolate", alpha=ends, beta=ends)["images"]
        np.testing.assert_array_equal(found, given["images_b" if place else "images_a"])

    def test_switch_of_an_image_with_itself_is_the_image(self):
        images = inputs_of(TINY)["images"]
        found = call("alpha-0.8", "switch", images_b=images)
        np.testing.assert_array_equal(found["images_ab"], images)
        np.testing.assert_array_equal(found["images_ba"], images)

    @pytest.mark.parametrize("count", [1, 3, 17, 64])
    def test_batches_of_any_size_give_the_same_codes(self, count):
        images = random_images(64, seed=7)
        every, part = call("alpha-0.8", "encode", images=images), call("alpha-0.8", "encode", images=images[:count])
        assert_same(part, {output: array[:count] for output, array in every.items()})
        np.testing.assert_array_equal(call("alpha-0.8", "decode", **part)["images"], images[:count])

    @pytest.mark.parametrize(
        "image", [np.zeros((2, 8, 8, 3)), np.full((2, 8, 8, 3), 255), np.indices((2, 8, 8, 3)).sum(0) % 2 * 255]
    )
    def test_extreme_images_come_back(self, image):
        images = image.astype("uint8")
        codes = call("alpha-0.8", "encode", images=images)
        np.testing.assert_array_equal(call("alpha-0.8", "decode", **codes)["images"], images)


class TestDeployedWeights:
    def test_a_model_without_weights_is_refused(self):
        with pytest.raises(NotInitializedError):
            DeployedModel(DecoupledModel(VARIANTS["two levels"]))

    @pytest.mark.usefixtures("eager")
    @pytest.mark.parametrize("value", [0.0, np.nan])
    def test_what_cannot_be_inverted_is_refused_by_name(self, value):
        model = DecoupledModel(VARIANTS["two levels"])
        model.initialize(random_images(16, 4))
        model.flow.levels[1][0].steps[0].sequence[1].kernel.assign(np.full((12, 12), value))
        with pytest.raises(InversionError, match="level_1_part_0_step_0"):
            DeployedModel(model)

    def test_an_endpoint_has_no_part_in_what_it_does_not_use(self):
        """A folded weight that no endpoint reads would be dead weight in every SavedModel."""
        for name in ("base", "classes", "prior of classes"):
            given, deployed = inputs_of(VARIANTS[name], 1), deployed_of(name)
            with tf.Graph().as_default():
                made = {}
                placed = deployed.with_arrays(
                    lambda key, array, made=made: made.setdefault(key, tf.compat.v1.placeholder("float32", array.shape))
                )
                for one in endpoints(VARIANTS[name]):
                    one.build(placed, {array.name: tf.constant(given[array.name]) for array in one.inputs})
                assert [key for key, tensor in made.items() if not tensor.consumers()] == []

    @pytest.mark.parametrize("order", ["NHWC", "NCHW"])
    @pytest.mark.parametrize("kept", [[0, 1], [3, 4], [0, 2], [1, 3], [0, 2, 4], [1, 3, 5], [4, 1, 0], [2]])
    def test_any_split_takes_and_puts_back_the_channels_of_the_models(self, order, kept):
        channels = 6
        others = [number for number in range(channels) if number not in kept]
        layout = Layout(order)
        split = DeployedSplit(lambda x: (tf.gather(x, kept, axis=-1), tf.gather(x, others, axis=-1)), channels, layout)
        images = tf.constant(np.random.default_rng(0).standard_normal((2, 2, 3, channels)))
        x_a, x_b = split(layout.enter(images))
        np.testing.assert_array_equal(layout.leave(x_a), images.numpy()[..., kept])
        np.testing.assert_array_equal(layout.leave(x_b), images.numpy()[..., others])
        np.testing.assert_array_equal(layout.leave(split.merge(x_a, x_b)), images)

    def test_layouts_share_all_weights_but_flattened_ones(self):
        one, two = deployed_of("base").arrays(), deployed_of("base", "NCHW").arrays()
        other = [name for name in one if one[name].shape != two[name].shape or not np.array_equal(one[name], two[name])]
        assert [name for name in other if "actnorm" not in name] == [
            "flow/whitening/last/kernel",
            "flow/whitening/last/bias",
            "encoder/last/kernel",
        ]


def test_each_direction_of_the_flow_is_in_a_saved_model_once(tmp_path):
    config, deployed = VARIANTS["alpha-0.8"], deployed_of("alpha-0.8")

    def convolutions(*names):
        folder = tmp_path / "-".join(names)
        save_saved_model(deployed, [find_endpoint(config, name) for name in names], folder)
        message = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        functions = message.meta_graphs[0].graph_def.library.function
        return sum(node.op == "Conv2D" for function in functions for node in function.node_def)

    both = convolutions("encode", "decode")
    assert both > 10
    assert convolutions("encode", "encode_global", "decode", "sample", "switch", "interpolate", "edit") == both
