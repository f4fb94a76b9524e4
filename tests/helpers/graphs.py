"""Small models of each kind by name, as Keras models, as deployed models, and as ONNX models."""

import dataclasses
import functools
import random

import numpy as np
import onnx
import onnxruntime

from export.deployed.deployed_model import DeployedModel
from export.endpoints import IMAGE, endpoints, find_endpoint
from export.formats.onnx import build_onnx
from export.verification.vectors import KerasAnswers
from helpers.models import TINY, give_effect, random_images
from helpers.variants import ODD
from tfdecouple.config import STEP_LAYERS
from tfdecouple.model import DecoupledModel
from tfdecouple.model.outlier_scores import outlier_scores

# Largest difference of an output, over the output's largest value; measured differences are about 5e-7.
TOLERANCE = 1e-5


def variant_of_tiny(**options):
    return dataclasses.replace(TINY, **options)


# Options of the smallest models: LEVELS has two levels; STAGE has one more stage, after which channels leave.
LEVELS = {"image_shape": (4, 4, 3), "steps": (1, 1), "hidden_channels": (4, 6), "encoder_channels": (4,)}
STAGE = {"image_shape": (4, 4, 3), "steps": (1, (1,), 1), "encoder_channels": (4,)}
ADDITIVE = {"transform": "additive", "multiscale_transform": "additive", "prior_transform": "additive"}
LABELLED = {**LEVELS, "classes": 3, "class_probabilities": (1, 2, 5)}
# Configs by name; TINY has odd channel counts (3, 9) and even ones (12, 24), and the prior splits d_z entries.
VARIANTS = {
    "alpha-0.8": TINY,
    "alpha-1": variant_of_tiny(**STAGE, alpha=1.0, prior_alpha=1.0),
    "additive": variant_of_tiny(**STAGE, **ADDITIVE),
    "base": variant_of_tiny(conditioning="base", base_hidden=5),
    "none": variant_of_tiny(**STAGE, conditioning="none"),
    "normal prior": variant_of_tiny(**LEVELS, prior="normal"),
    "5 bits": variant_of_tiny(**LEVELS, n_bits=5),
    "d_z 2": variant_of_tiny(**LEVELS, latent_dim=2),
    "d_z 5": variant_of_tiny(**LEVELS, latent_dim=5, prior_steps=2),
    "another factor": variant_of_tiny(steps=(1, (1, 1, 2), 1), factors=(6,)),
    "combined": variant_of_tiny(
        steps=(1, (1, 1, 1), 2),
        latent_dim=5,
        n_bits=5,
        alpha=1.0,
        prior_alpha=1.0,
        multiscale_transform="additive",
        step_layers=tuple(STEP_LAYERS),
    ),
    "dequantization": variant_of_tiny(
        **LEVELS,
        dequantization="flow",
        dequantization_steps=(1, (1,), 1),
        dequantization_hidden_channels=(3, 4, 5),
        dequantization_encoder_channels=(3, 5),
        dequantization_map_channels=2,
    ),
    "grey": variant_of_tiny(
        **{**LEVELS, "image_shape": (4, 8, 1)},
        dequantization="flow",
        dequantization_steps=(1, 1),
        dequantization_hidden_channels=(3, 4),
        dequantization_encoder_channels=(3,),
        dequantization_map_channels=2,
    ),
    "five channels": variant_of_tiny(image_shape=(8, 4, 5), conditioning="base", base_hidden=5, encoder_channels=(4,)),
    "classes": variant_of_tiny(**LABELLED, prior="classes"),
    "prior of classes": variant_of_tiny(**LABELLED),
    "odd": ODD,
}


@functools.cache
def model_of(name):
    """Returns a shared model whose every weight changes the results; z differs between images. Do not change it."""
    config = VARIANTS[name]
    random.seed(0)
    model = DecoupledModel(config)
    model.initialize(random_images(16, config.image_shape))
    if model.encoder is not None:
        give_effect(model.encoder.blocks[-1], scale=0.5)
        model.encoder.last.gain.assign_add(np.full(model.encoder.last.gain.shape, 0.5))
        # With initial statistics of 0 and 1, folding batch normalisation into the weights would change nothing.
        move_statistics(model.encoder)
    if model.dequantizer is not None:
        give_effect(model.dequantizer, scale=0.3)
        move_statistics(model.dequantizer.encoder)
    if model.code_net is not None:
        # The initial embedding makes all class codes nearly 0.
        model.code_net.embedding.assign(20 * model.code_net.embedding)
    return give_effect(model)


def move_statistics(encoder):
    for block in encoder.blocks:
        for norm in (block.norm_1, block.norm_2, *block.shortcut[1:]):
            norm.moving_mean.assign(np.linspace(-0.3, 0.4, norm.moving_mean.shape[0]))
            norm.moving_variance.assign(np.linspace(0.5, 2.0, norm.moving_variance.shape[0]))


@functools.cache
def deployed_of(name, order="NHWC"):
    """Returns a variant's deployed model, which can run eagerly."""
    return DeployedModel(model_of(name), order)


def inputs_of(config, count=5, seed=1):
    """Returns arrays for all inputs that an endpoint may take, by name."""
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
    given = {**pictures, **labelled, **{name: values.astype("float32") for name, values in draws.items()}}
    # An endpoint that is new may have further inputs.
    for array in (array for one in endpoints(config) for array in one.inputs if array.name not in given):
        given[array.name] = images if array.holds == IMAGE else array.draw(rng, count)
    return given


def expected(name, endpoint_name):
    """Returns the Keras model's outputs of an endpoint for `inputs_of`, by name."""
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
    if endpoint_name == "interpolate":
        every = model.interpolate(a, b, list(given["alpha"]), list(given["beta"]), both)
        return {"images": np.stack([every[k, k, k] for k in range(len(a))])}
    # An endpoint that is new is compared with the answers that the verification of exports uses.
    one = find_endpoint(model.config, endpoint_name)
    answers = KerasAnswers(model)
    right = one.answer(answers, given)
    return {
        array.name: answers.to_pixels(right[array.name]) if array.dtype == "uint8" else right[array.name]
        for array in one.outputs
    }


def assert_same(found, right, n_bits=8, tolerance=TOLERANCE):
    """Asserts that floats agree within `tolerance`, and that under 1 % of the pixels differ, each by one bin."""
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


# Names of the variants whose ONNX files, in the layout NCHW, are tested: together they have each kind of part.
IN_FILES = ["alpha-0.8", "combined", "classes", "grey", "five channels"]


@functools.cache
def onnx_of(name, of):
    """Returns the shared ONNX model of an endpoint. Do not change it."""
    return build_onnx(deployed_of(name, "NCHW"), find_endpoint(VARIANTS[name], of), {"run": name})


def arrays_of(name):
    """Returns the weights in a variant's ONNX files, by name."""
    return deployed_of(name, "NCHW").arrays()


def session_of(model):
    return onnxruntime.InferenceSession(
        model if isinstance(model, str) else model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


@functools.cache
def session(name, of):
    return session_of(onnx_of(name, of))


def run(name, of, **given):
    """Returns the outputs by name of an endpoint's ONNX model for `inputs_of`, with inputs replaced by `given`."""
    opened, everything = session(name, of), {**inputs_of(VARIANTS[name]), **given}
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(None, {i.name: everything[i.name] for i in opened.get_inputs()}), strict=True))


def weights_in(model):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
