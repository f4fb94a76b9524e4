"""The exported arithmetic: the folded graph and the ONNX files compute what the Keras model computes."""

import collections
import dataclasses
import functools
import importlib.metadata
import os
import random
import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from helpers.models import TINY, give_effect, random_images

from export.deployed.coupling import DeployedSplit
from export.deployed.layout import Layout
from export.deployed.model import DeployedModel
from export.formats.onnx import OPSET, build_onnx, save_onnx
from export.formats.precision import PRECISIONS, with_smaller_weights
from export.signatures import endpoint, endpoints
from export.verification import check_onnx, variants
from export.verification.weights import by_name, digests
from tfdecouple.errors import InversionError, NotInitializedError
from tfdecouple.model import DecoupledModel
from tfdecouple.outliers import outlier_scores
from tfdecouple.step_layers import STEP_LAYERS

# Of the largest value. About 5e-7 is what was measured.
TOLERANCE = 1e-5


def variant_of_tiny(**options):
    return dataclasses.replace(TINY, **options)


ADDITIVE = {"transform": "additive", "multiscale_transform": "additive", "prior_transform": "additive"}
LABELLED = {
    "image_size": 4,
    "steps": (1, 1),
    "hidden_channels": (4, 6),
    "encoder_channels": (4,),
    "classes": 3,
    "class_probabilities": (1, 2, 5),
}
# TINY has odd channel counts (3, 9) and even ones (12, 24); the prior's splits go by d_z.
VARIANTS = {
    "alpha-0.8": TINY,
    "alpha-1": variant_of_tiny(alpha=1.0, prior_alpha=1.0),
    "additive": variant_of_tiny(**ADDITIVE),
    "additive flow": variant_of_tiny(transform="additive"),
    "additive multiscale": variant_of_tiny(multiscale_transform="additive"),
    "additive prior": variant_of_tiny(prior_transform="additive"),
    "lu": variant_of_tiny(linear="lu"),
    "base": variant_of_tiny(conditioning="base", base_hidden=5),
    "base additive": variant_of_tiny(conditioning="base", base_hidden=5, **ADDITIVE),
    "none": variant_of_tiny(conditioning="none"),
    "none additive": variant_of_tiny(conditioning="none", **ADDITIVE),
    "normal prior": variant_of_tiny(prior="normal"),
    "5 bits": variant_of_tiny(n_bits=5),
    "3 bits": variant_of_tiny(n_bits=3),
    "1 bit": variant_of_tiny(n_bits=1),
    "d_z 2": variant_of_tiny(latent_dim=2),
    "d_z 3": variant_of_tiny(latent_dim=3, prior_steps=2),
    "d_z 5": variant_of_tiny(latent_dim=5, prior_steps=2),
    "d_z 6": variant_of_tiny(latent_dim=6, prior_steps=3),
    # 12, 9 and 6 channels: halves of even and of odd length.
    "three parts": variant_of_tiny(steps=(1, (1, 2, 1), 1)),
    "several factors": variant_of_tiny(
        image_size=16, steps=(2, (1, 1, 2, 1), (2,), 2), hidden_channels=(4, 6, 5, 6), factors=(6, 2)
    ),
    "combined": variant_of_tiny(
        steps=(1, (1, 1, 1), 2),
        latent_dim=5,
        n_bits=5,
        alpha=1.0,
        prior_alpha=1.0,
        linear="lu",
        multiscale_transform="additive",
        step_layers=tuple(STEP_LAYERS),
    ),
    "two levels": variant_of_tiny(image_size=4, steps=(2, 3), hidden_channels=(4, 6), encoder_channels=(4,)),
    "dequantization": variant_of_tiny(
        image_size=4,
        steps=(1, 1),
        hidden_channels=(4, 6),
        encoder_channels=(4,),
        dequantization="flow",
        dequantization_steps=(1, (1,), 1),
        dequantization_hidden_channels=(3, 4, 5),
        dequantization_encoder_channels=(3, 5),
        dequantization_map_channels=2,
    ),
    "grey": variant_of_tiny(
        image_size=None,
        image_shape=(4, 8, 1),
        steps=(1, 1),
        hidden_channels=(4, 6),
        encoder_channels=(4,),
        dequantization="flow",
        dequantization_steps=(1, 1),
        dequantization_hidden_channels=(3, 4),
        dequantization_encoder_channels=(3,),
        dequantization_map_channels=2,
    ),
    "five channels": variant_of_tiny(
        image_size=None, image_shape=(8, 4, 5), conditioning="base", base_hidden=5, encoder_channels=(4,)
    ),
    "classes": variant_of_tiny(**LABELLED, prior="classes"),
    "prior of classes": variant_of_tiny(**LABELLED, linear="lu"),
}


@functools.cache
def model_of(name):
    """A model whose every weight has an effect, z differing from image to image. Do not change it."""
    config = VARIANTS[name]
    random.seed(0)
    model = DecoupledModel(config)
    model.initialize(random_images(16, config.image_shape))
    if model.encoder is not None:
        give_effect(model.encoder.blocks[-1], scale=0.5)
        model.encoder.last.gain.assign_add(np.full(model.encoder.last.gain.shape, 0.5))
        # Training moves them; at 0 and 1 their folding would be a step that changes nothing.
        move_statistics(model.encoder)
    if model.dequantizer is not None:
        give_effect(model.dequantizer, scale=0.3)
        move_statistics(model.dequantizer.encoder)
    if model.code_net is not None:
        # At their start all codes are nearly 0.
        model.code_net.embedding.assign(20 * model.code_net.embedding)
    return give_effect(model)


def move_statistics(encoder):
    for block in encoder.blocks:
        for norm in (block.norm_1, block.norm_2, *block.shortcut[1:]):
            norm.moving_mean.assign(np.linspace(-0.3, 0.4, norm.moving_mean.shape[0]))
            norm.moving_variance.assign(np.linspace(0.5, 2.0, norm.moving_variance.shape[0]))


@functools.cache
def deployed_of(name, order="NHWC"):
    """A variant as it is deployed, whose arithmetic can be run eagerly."""
    return DeployedModel.from_model(model_of(name), order)


def inputs_of(config, count=5, seed=1):
    """Every input that an endpoint may take, by name."""
    rng = np.random.default_rng(seed)
    images = random_images(count, config.image_shape, seed)
    draws = {
        "z": rng.standard_normal((count, config.latent_dim)),
        "v": rng.standard_normal((count, *config.image_shape)),
        "z_noise": rng.standard_normal((count, config.latent_dim)),
        "v_noise": rng.standard_normal((count, *config.image_shape)),
        "u_noise": (rng.standard_normal if config.has_dequantizer else rng.random)((count, *config.image_shape)),
        "direction": rng.standard_normal((count, config.latent_dim)),
        "temperature": np.linspace(0.3, 1.0, count),
        "amount": np.linspace(0.0, 2.0, count),
        "alpha": np.linspace(0.0, 1.0, count),
        "beta": np.linspace(0.9, 0.2, count),
    }
    pictures = {"images": images, "images_a": images, "images_b": images[::-1].copy()}
    labels = np.arange(count, dtype=np.int32) % max(config.classes, 1)
    labelled = {"labels": labels, "labels_a": labels, "labels_b": labels[::-1].copy()}
    return {**pictures, **labelled, **{name: values.astype("float32") for name, values in draws.items()}}


def call(name, endpoint_name, **given):
    """Runs an endpoint of the folded graph in the layout NHWC."""
    config = VARIANTS[name]
    one = endpoint(config, endpoint_name)
    everything = {**inputs_of(config), **given}
    made = one.build(deployed_of(name), {array.name: tf.constant(everything[array.name]) for array in one.inputs})
    assert list(made) == [array.name for array in one.outputs]
    for array in one.outputs:
        assert made[array.name].dtype == array.dtype and made[array.name].shape[1:] == array.shape
    return {output: array.numpy() for output, array in made.items()}


def expected(name, endpoint_name):
    """What the Keras model answers to `inputs_of`."""
    model, given = model_of(name), inputs_of(VARIANTS[name])
    a, b = given["images_a"], given["images_b"]
    labels = model.wanted_labels(given["labels"])
    coded = labels if model.config.has_class_codes else None
    both = None if coded is None else (given["labels_a"], given["labels_b"])
    if endpoint_name == "classify":
        return {"log_probabilities": model.classify(a)}
    if endpoint_name == "encode":
        codes = model.encode(a, coded)
        return {"v": codes.v} if codes.z is None else codes._asdict()
    if endpoint_name == "encode_global":
        posterior = model.posterior(a)
        return {"z_mean": posterior.mean(), "z_log_variance": 2 * np.log(posterior.stddev())}
    if endpoint_name == "decode":
        return {"images": model.decode(given["z"] if model.config.has_latent else None, given["v"])}
    if endpoint_name == "sample":
        z = model.z_from_noise(given["z_noise"], labels) if model.config.has_latent else None
        return {"images": model.decode(z, given["temperature"][:, None, None, None] * given["v_noise"])}
    if endpoint_name == "score":
        return outlier_scores(model, a, given["z_noise"], given["u_noise"], labels).named()
    if endpoint_name == "edit":
        edited = model.edit(a, given["direction"], given["amount"], coded)
        np.testing.assert_array_equal(edited[0], model.quantize_images(a)[0])
        return {"edited": edited}
    if endpoint_name == "switch":
        return dict(zip(("images_ab", "images_ba"), model.switch(a, b, both), strict=True))
    every = model.interpolate(a, b, list(given["alpha"]), list(given["beta"]), both)
    return {"images": np.stack([every[k, k, k] for k in range(len(a))])}


def assert_same(found, right, n_bits=8, tolerance=TOLERANCE):
    """Floats agree; pixels agree but for a few values on the border of two levels, which may fall to either side."""
    assert set(found) == set(right)
    for output, values in right.items():
        ours, theirs = np.asarray(found[output], "float64"), np.asarray(values, "float64")
        assert ours.shape == theirs.shape, output
        assert np.ptp(theirs) > 0, f"{output} is the same everywhere, which shows nothing"
        difference = np.abs(ours - theirs)
        if np.asarray(values).dtype == np.uint8:
            assert difference.max() <= 256 // 2**n_bits and np.mean(difference > 0) < 0.01, output
        else:
            assert difference.max() < tolerance * np.abs(theirs).max(), output


# The others are made of the same parts, and differ from model to model no more than these do.
EVERY_ENDPOINT = ("alpha-0.8", "base", "none", "5 bits", "classes", "prior of classes")
ENDPOINTS = [
    (name, one.name)
    for name, config in VARIANTS.items()
    for one in endpoints(config)
    if name in EVERY_ENDPOINT or one.name in ("encode", "score")
]


PRIORS = ("alpha-0.8", "alpha-1", "additive prior", "lu", "normal prior", "d_z 2", "d_z 3", "d_z 5", "d_z 6")


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
        back, log_det = deployed.prior_forward_and_log_det(z)
        assert_same({"noise": back}, {"noise": noise})
        # log p(z) is that of the noise and the log-determinant, up to the Gaussian's constant.
        ours = log_det - 0.5 * tf.reduce_sum(tf.square(back), -1) - 0.5 * back.shape[1] * np.log(2 * np.pi)
        assert_same({"log_prob": ours}, {"log_prob": model.prior.log_prob(z)})

    @pytest.mark.parametrize("name", ["alpha-0.8", "alpha-1", "additive", "none", "three parts"])
    def test_log_det_of_the_flow_is_the_models(self, name):
        given = inputs_of(VARIANTS[name])
        z = tf.constant(given["z"]) if VARIANTS[name].has_latent else None
        ours = deployed_of(name).flow_forward_and_log_det(tf.constant(given["v"]), z)[1]
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
            DeployedModel.from_model(DecoupledModel(VARIANTS["two levels"]))

    @pytest.mark.usefixtures("eager")
    @pytest.mark.parametrize("value", [0.0, np.nan])
    def test_what_cannot_be_inverted_is_refused_by_name(self, value):
        model = DecoupledModel(VARIANTS["two levels"])
        model.initialize(random_images(16, 4))
        model.flow.levels[1][0].steps[0].sequence[1].kernel.assign(np.full((12, 12), value))
        with pytest.raises(InversionError, match="level_1_part_0_step_0"):
            DeployedModel.from_model(model)

    def test_an_endpoint_has_no_part_in_what_it_does_not_use(self):
        """A folded weight that no endpoint reads would be dead weight in every SavedModel."""
        for name in ("alpha-0.8", "base", "none", "several factors", "classes", "prior of classes"):
            given, deployed = inputs_of(VARIANTS[name], 1), deployed_of(name)
            with tf.Graph().as_default():
                made = {}
                placed = deployed.replaced(
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
        split = DeployedSplit.from_split(
            lambda x: (tf.gather(x, kept, axis=-1), tf.gather(x, others, axis=-1)), channels, layout
        )
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


# The layout NCHW, in files: one model of each kind of part.
IN_FILES = ["alpha-0.8", "base", "none", "combined", "classes"]
# Converted but in no file of an export: the score has the log-determinants, in whose layout sums run over other axes.
CONVERTED = [(name, one.name) for name in IN_FILES for one in endpoints(VARIANTS[name]) if one.onnx] + [
    ("alpha-0.8", "score"),
    ("base", "score"),
    ("dequantization", "score"),
    ("prior of classes", "sample"),
]


@functools.cache
def onnx_of(name, of):
    """The ONNX model of an endpoint. Do not change it."""
    return build_onnx(deployed_of(name, "NCHW"), endpoint(VARIANTS[name], of), {"run": name})


def arrays_of(name):
    """The weights of a variant's ONNX files."""
    return deployed_of(name, "NCHW").arrays()


def smaller_of(name, model, precision):
    """An ONNX model of a variant with smaller weights."""
    return with_smaller_weights(model, precision, deployed_of(name, "NCHW").may_be_rounded())


def session_of(model):
    return onnxruntime.InferenceSession(
        model if isinstance(model, str) else model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


@functools.cache
def session(name, of, precision=None):
    model = onnx_of(name, of)
    return session_of(smaller_of(name, model, precision) if precision else model)


def run(name, of, precision=None, **given):
    """Runs an endpoint as ONNX."""
    opened, everything = session(name, of, precision), {**inputs_of(VARIANTS[name]), **given}
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(None, {i.name: everything[i.name] for i in opened.get_inputs()}), strict=True))


@pytest.mark.usefixtures("eager")
class TestOnnxNumbers:
    @pytest.mark.parametrize(("name", "of"), CONVERTED, ids=[f"{name}-{of}" for name, of in CONVERTED])
    def test_file_is_the_model(self, name, of):
        assert_same(run(name, of), expected(name, of), VARIANTS[name].n_bits)

    @pytest.mark.parametrize("name", IN_FILES)
    def test_images_come_back(self, name):
        right = model_of(name).quantize_images(inputs_of(VARIANTS[name])["images"])
        np.testing.assert_array_equal(run(name, "decode", **run(name, "encode"))["images"], right)

    @pytest.mark.parametrize("count", [1, 3, 17, 64])
    def test_batches_of_any_size_give_the_same_codes(self, count):
        images = random_images(64, seed=7)
        every = run("alpha-0.8", "encode", images=images)
        part = run("alpha-0.8", "encode", images=images[:count])
        assert_same(part, {output: array[:count] for output, array in every.items()})
        np.testing.assert_array_equal(run("alpha-0.8", "decode", **part)["images"], images[:count])


# The other variants have weights of the same kinds, in other numbers and with other values.
VARIANTS["additive, normal prior"] = variant_of_tiny(prior="normal", **ADDITIVE)
KINDS_OF_WEIGHTS = (*IN_FILES, "additive, normal prior")

FILES = [("alpha-0.8", "encode"), ("alpha-0.8", "decode"), ("alpha-0.8", "sample"), ("base", "encode")]


@pytest.fixture(params=FILES, ids=[f"{name}-{of}" for name, of in FILES])
def file(request):
    """(endpoint, ONNX model)."""
    name, of = request.param
    return endpoint(VARIANTS[name], of), onnx_of(name, of)


def weights_in(model):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.usefixtures("eager")
class TestOnnxGraph:
    def test_file_is_valid_of_opset_18(self, file):
        _, model = file
        onnx.checker.check_model(model, full_check=True)
        assert OPSET == 18 and {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET

    def test_operators_are_the_standard_ones(self, file):
        _, model = file
        assert {node.domain for node in model.graph.node} == {""}
        assert len(model.functions) == 0

    def test_inputs_and_outputs_are_the_endpoints_in_order_with_the_batch_free(self, file):
        of, model = file
        for values, arrays in ((model.graph.input, of.inputs), (model.graph.output, of.outputs)):
            assert [value.name for value in values] == [array.name for array in arrays]
            for value, array in zip(values, arrays, strict=True):
                kind = value.type.tensor_type
                assert onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) == array.dtype
                axes = [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
                assert axes == ["batch", *array.shape]

    def test_runtime_sees_the_same_signature(self, file):
        of, model = file
        opened = session_of(model)
        assert [(i.name, i.shape) for i in opened.get_inputs()] == [(a.name, ["batch", *a.shape]) for a in of.inputs]
        assert [(o.name, o.shape) for o in opened.get_outputs()] == [(a.name, ["batch", *a.shape]) for a in of.outputs]

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
            "BatchNormalization",
            "InstanceNormalization",
            "ReduceL2",
            "ReduceSumSquare",
            "Sqrt",
            "Det",
            "Pad",
            "Loop",
            "If",
            "Scan",
            "Constant",
            "Shape",
        }

    def test_weights_go_by_the_names_of_their_layers(self, file):
        _, model = file
        arrays = arrays_of("alpha-0.8") | arrays_of("base")
        named = weights_in(model)
        foreign = {name: array for name, array in named.items() if re.sub(r"/\d+$", "", name) not in arrays}
        # Left are the numbers of the graph itself: sizes of splits, bounds.
        assert max(array.size for array in foreign.values()) <= 24
        assert len(named) - len(foreign) > 40

    @pytest.mark.parametrize("name", KINDS_OF_WEIGHTS)
    def test_gate_knows_every_weight_of_every_kind_of_model(self, name):
        known = by_name(digests(arrays_of(name)))
        for of in ("encode", "decode", "sample"):
            model = onnx_of(name, of)
            assert list(check_onnx._weights(model, known)) == []
            for precision in PRECISIONS:
                assert list(variants.weights(smaller_of(name, model, precision), model, precision)) == []

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

    @pytest.mark.parametrize("precision", [None, *PRECISIONS])
    def test_every_node_says_in_which_layer_it_is(self, file, precision):
        _, model = file
        model = smaller_of("base", model, precision) if precision else model
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names)
        places = re.compile(
            r"input/|output/|encoder/|prior/|flow/(condition|whitening|level_\d+|level_\d+_part_\d+_(step_\d+|factor_out))/"
        )
        assert [name for name in names if not places.match(name)] == []
        # What multiplies by a weight goes by that weight's name.
        multiplying = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Cast", "Mul")]
        weights = {name for name in arrays_of("alpha-0.8") | arrays_of("base")}
        named = [
            (node.name, re.sub(r"/(\d+|wide|wide_\d)$", "", read)) for node in multiplying for read in node.input[:2]
        ]
        of_weights = [(name, weight) for name, weight in named if weight in weights]
        assert len(of_weights) > 30 and all(
            name.startswith(f"{weight.rpartition('/')[0]}/") for name, weight in of_weights
        )

    @pytest.mark.parametrize("precision", [None, "int8"])
    def test_inputs_and_outputs_say_what_they_are(self, file, precision):
        of, model = file
        model = smaller_of("base", model, precision) if precision else model
        for values, arrays in ((model.graph.input, of.inputs), (model.graph.output, of.outputs)):
            assert [value.doc_string for value in values] == [array.meaning for array in arrays]
            assert all(array.meaning for array in arrays)


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
        outside = [t for t in onnx.load(large, load_external_data=False).graph.initializer if t.external_data]
        assert len(outside) > 10
        for tensor in outside:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert entries["location"] == "encoder.onnx.data"
        small = onnx.load(large, load_external_data=False)
        assert sum(len(tensor.raw_data) for tensor in small.graph.initializer) < 40_000
        onnx.checker.check_model(str(large), full_check=True)

    def test_weights_outside_are_the_weights(self, large):
        whole = weights_in(onnx_of("alpha-0.8", "encode"))
        read = weights_in(onnx.load(large))
        assert set(read) == set(whole)
        for name, array in whole.items():
            np.testing.assert_array_equal(read[name], array)

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

    def test_smaller_variant_beyond_the_limit_opens(self, tmp_path):
        path = tmp_path / "encoder.int8.onnx"
        save_onnx(smaller_of("alpha-0.8", onnx_of("alpha-0.8", "encode"), "int8"), path, inline_limit=10_000)
        assert (tmp_path / "encoder.int8.onnx.data").stat().st_size > 0
        images = random_images(3, seed=4)
        names = ("z", "v")
        found = dict(zip(names, session_of(str(path)).run(names, {"images": images}), strict=True))
        assert_same(found, run("alpha-0.8", "encode", "int8", images=images), tolerance=1e-6)


# Nets wide enough for weights, not the graph, to be most of a file.
VARIANTS["wide"] = variant_of_tiny(hidden_channels=(32, 48, 48), encoder_channels=(16, 32), prior_hidden=48)


@pytest.mark.usefixtures("eager")
class TestPrecision:
    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("name", ["alpha-0.8", "base", "wide"])
    def test_pair_gives_back_every_image(self, name, precision):
        """Both directions round the nets alike, and a coupling is undone exactly whatever its net computes."""
        config = VARIANTS[name]
        images = np.concatenate([inputs_of(config, 9)["images"], np.zeros((1, *config.image_shape), "uint8")])
        images = np.concatenate([images, np.full((1, *config.image_shape), 255, "uint8")])
        codes = run(name, "encode", precision, images=images)
        right = model_of(name).quantize_images(images)
        np.testing.assert_array_equal(run(name, "decode", precision, **codes)["images"], right)

    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("count", [1, 3, 17, 64])
    def test_pair_takes_any_batch(self, precision, count):
        images = random_images(count, seed=5)
        codes = run("alpha-0.8", "encode", precision, images=images)
        np.testing.assert_array_equal(run("alpha-0.8", "decode", precision, **codes)["images"], images)

    @pytest.mark.parametrize(("precision", "bound"), [("float16", 3e-3), ("int8", 0.1)])
    def test_codes_are_near_those_of_float32(self, precision, bound):
        whole, smaller = run("wide", "encode"), run("wide", "encode", precision)
        for output, array in whole.items():
            difference = np.abs(smaller[output] - array).max() / np.abs(array).max()
            assert 0 < difference < bound, output

    def test_files_shrink(self, tmp_path):
        sizes = {}
        for of in ("encode", "decode", "sample"):
            model = onnx_of("wide", of)
            for precision in (None, *PRECISIONS):
                path = tmp_path / f"{of}.{precision}.onnx"
                save_onnx(smaller_of("wide", model, precision) if precision else model, path)
                sizes[of, precision] = path.stat().st_size
            # A half or a quarter of the weights, and the graph, whose nodes are named after their layers.
            assert sizes[of, "float16"] < 0.62 * sizes[of, None]
            assert sizes[of, "int8"] < 0.45 * sizes[of, None]

    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("of", ["encode", "decode", "sample"])
    def test_what_is_inverted_keeps_its_digits(self, precision, of):
        smaller, whole = (
            weights_in(smaller_of("wide", onnx_of("wide", of), precision)),
            weights_in(onnx_of("wide", of)),
        )
        kept = [name for name in whole if name in smaller]
        for name in kept:
            np.testing.assert_array_equal(smaller[name], whole[name])
        named = arrays_of("wide")
        rounded = {name for name in whole if name in named} - set(kept)
        assert {name.split("/")[-2] for name in rounded} <= {
            "first",
            "second",
            "last",
            "top",
            "shortcut",
            "condition",
        }
        assert [
            name for name in whole if re.search("mix|bias|actnorm", name) and name in named and name not in kept
        ] == []
        # All kernels of nets are rounded: one that is forgotten would be in float32 by its own name.
        left = [n for n in kept if whole[n].ndim >= 2 and n in named and not re.search("mix|actnorm", n)]
        assert left == []
        kinds = collections.Counter(str(array.dtype) for array in smaller.values())
        assert kinds[precision] == len(rounded) > 40

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_smaller_model_is_valid_says_its_precision_and_leaves_the_whole_one_alone(self, precision):
        whole = onnx_of("alpha-0.8", "encode")
        before = whole.SerializeToString(deterministic=True)
        smaller = smaller_of("alpha-0.8", whole, precision)
        onnx.checker.check_model(smaller, full_check=True)
        assert {entry.key: entry.value for entry in smaller.metadata_props} == {
            "run": "alpha-0.8",
            "precision": precision,
        }
        assert {node.domain for node in smaller.graph.node} == {""}
        assert whole.SerializeToString(deterministic=True) == before

    def test_int8_error_is_at_most_half_a_step_of_each_output_channel(self):
        whole = weights_in(onnx_of("wide", "encode"))
        smaller = weights_in(smaller_of("wide", onnx_of("wide", "encode"), "int8"))
        name = "flow/level_1_part_0_step_0/coupling_alternate_last/first/kernel"
        stored, scale = smaller[f"{name}/int8"], smaller[f"{name}/scale"]
        # ONNX has the outputs of a convolution first.
        assert scale.shape == (48, 1, 1, 1) and np.abs(stored).max() == 127
        assert np.all(np.abs(stored * scale - whole[name]) <= 0.5001 * scale)
        condition = smaller["flow/condition/kernel/scale"]
        assert condition.shape == (1, whole["flow/condition/kernel"].shape[1])

    def test_a_channel_of_zeros_stays_zero(self):
        model = onnx.ModelProto()
        model.CopyFrom(onnx_of("alpha-0.8", "encode"))
        (tensor,) = (
            t
            for t in model.graph.initializer
            if t.name.endswith("level_0_part_0_step_0/coupling_alternate_last/first/kernel")
        )
        array = onnx.numpy_helper.to_array(tensor).copy()
        array[0] = 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        smaller = weights_in(smaller_of("alpha-0.8", model, "int8"))
        assert np.all(smaller[f"{tensor.name}/int8"][0] == 0) and np.all(smaller[f"{tensor.name}/scale"] > 0)


def test_names_of_files_are_those_of_the_endpoints():
    assert {one.name: one.onnx for one in endpoints(TINY) if one.onnx} == {
        "encode": "encoder",
        "decode": "decoder",
        "sample": "sampler",
    }
