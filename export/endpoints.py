"""The endpoints of an export, functions that users call by name such as "encode": their class, and all endpoints.

Graphs, files, model card and verification follow from an `Endpoint`. TensorFlow is imported only when a graph is built,
because the import takes seconds.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from tfdecouple.config import ModelConfig
from tfdecouple.data.image_formats import describe_channels
from tfdecouple.registry import ENDPOINTS

if TYPE_CHECKING:
    import tensorflow as tf

    from export.endpoint_functions import EndpointFunctions
    from tfdecouple.model import DecoupledModel


# {name: array}, or {name: tensor} where a graph is built.
Arrays: TypeAlias = "dict[str, tf.Tensor]"

# The values of `Array.holds`, which says what an endpoint's input contains if the input is no scalar.
IMAGE, GLOBAL_CODE, LOCAL_CODE, NORMAL, UNIFORM = "image", "global code", "local code", "normal noise", "uniform noise"
LABEL = "label"
# The verification compares samples at temperatures (factors of the noise v) from the first to the second of these; the
# slider of the web page ends at the second.
TEMPERATURES = (0.1, 1.2)
# Names of the axes of padded images, whose sides the flow can halve.
_PADDED = ("padded_height", "padded_width")


@dataclasses.dataclass(frozen=True)
class Array:
    """The specification of one input or output of an endpoint.

    Attributes:
        dtype: "uint8", "float32" or "int32".
        shape: the shape without the batch axis, which always comes first.
        meaning: a description in a few words for the model card.
        holds: the content of an input: `IMAGE`, `GLOBAL_CODE`, `LOCAL_CODE`, `NORMAL`, `UNIFORM` or `LABEL`; for a
            scalar, a pair of the first and the last value that the verification tries.
        labels: for `LABEL`, the smallest label and the largest label plus one.
        scale: for an output of floats, the magnitude of the terms whose sum it is; its tolerance is in proportion.
        free: the names of the axes height and width, for files that take images of any size; else (). `shape` has the
            sizes of the model's images in both cases.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    meaning: str
    holds: str | tuple[float, ...] = NORMAL
    labels: tuple[int, int] = (0, 0)
    scale: float = 1.0
    free: tuple[str, ...] = ()

    @property
    def axes(self) -> tuple[int | str, ...]:
        """The size of each axis of this input or output, as a tuple; the batch and axes of any size have names."""
        return ("batch", *self.free, *self.shape[len(self.free) :])

    def make_tensor_spec(self) -> tf.TensorSpec:
        """Returns the `tf.TensorSpec` of this input or output; the batch axis and axes of free size are None."""
        import tensorflow as tf

        return tf.TensorSpec([None if isinstance(size, str) else size for size in self.axes], self.dtype, self.name)

    def to_dict(self) -> dict[str, object]:
        """Returns name, dtype, shape and meaning as a dict; in "shape", free axes are names such as "height"."""
        return {"name": self.name, "dtype": self.dtype, "shape": [*self.axes], "meaning": self.meaning}


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A function of an exported model that users can call by name, such as "encode".

    Attributes:
        summary: a sentence that describes the endpoint.
        inputs, outputs: the inputs and outputs in the order of the signature.
        answer: `answer(EndpointFunctions, {input name: tensor})` returns `{output name: tensor}`. With the functions of
            an exported model it builds the graph of the endpoint. With `KerasAnswers`, inputs and outputs are NumPy
            arrays, and images are values before they are rounded to pixels.
        reference: `reference(model, {input name: array})` returns `{output name: array}` by the public methods of the
            Keras model, independently of `answer`, whose faults it shows. It is the same function if it calls one
            method. Input "seed" has for each image the seed with which `DecoupledModel.sample` draws its noise.
        onnx: the name of the endpoint's ONNX file, without suffix; None for an endpoint without a file.
    """

    name: str
    summary: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    answer: Callable[[EndpointFunctions, Arrays], Arrays]
    reference: Callable[[DecoupledModel, Arrays], Arrays]
    onnx: str | None = None


def list_endpoints(config: ModelConfig, any_size: bool = False) -> tuple[Endpoint, ...]:
    """Returns the endpoints of a model with this config; the first is also the signature `serving_default`.

    With `any_size` there are only `encode` and `decode`, for images of any height and width. Then v and decoded images
    have the height and width of the padded image (`tfdecouple.model.any_size`).

    >>> [endpoint.name for endpoint in list_endpoints(ModelConfig(conditioning="none"))][:4]
    ['encode', 'decode', 'sample', 'score']
    """
    image, with_z = config.image_shape, config.has_latent
    has_labels, by_label = config.has_labels, config.has_label_codes
    dimensions, last_label = math.prod(image), config.classes - 1

    def picture(name: str, meaning: str) -> Array:
        return Array(name, "uint8", image, meaning, IMAGE)

    def vector(name: str, meaning: str, holds: str = NORMAL) -> Array:
        return Array(name, "float32", (config.latent_dim,), meaning, holds)

    def scalar(name: str, meaning: str, *ends: float, scale: float = 1.0) -> Array:
        return Array(name, "float32", (), meaning, ends, scale=scale)

    def label(name: str, needed: bool = True) -> Array:
        meaning = f"label, 0 to {last_label}" + ("" if needed else ", or -1 for none")
        return Array(name, "int32", (), meaning, LABEL, labels=(0 if needed else -1, config.classes))

    values = f"{describe_channels(image[-1])}, 0..255"
    images, images_a, images_b = (picture(name, values) for name in ("images", "images_a", "images_b"))
    labels, labels_a, labels_b = ((label(name),) if by_label else () for name in ("labels", "labels_a", "labels_b"))
    z = (vector("z", "global code", GLOBAL_CODE),) if with_z else ()
    v = Array("v", "float32", image, "local code", LOCAL_CODE)
    z_noise = (vector("z_noise", "standard normal noise"),) if config.has_encoder else ()
    v_noise = Array("v_noise", "float32", image, "standard normal noise", NORMAL)
    u_noise = Array("u_noise", "float32", image, "uniform noise in [0, 1)", UNIFORM)
    if config.has_dequantizer:
        u_noise = Array("u_noise", "float32", image, "standard normal noise, of which q(u|x) makes u", NORMAL)
    temperature = scalar(
        "temperature", "acts on v; 1 is the model's own distribution, lower is smoother", *TEMPERATURES
    )
    nats = scalar("prior_nats", "-log p(z, y) in nats, y the label" if has_labels else "-log p(z) in nats")
    alpha = scalar("alpha", "place of z between a (0) and b (1)", 0.0, 1.0)
    beta = scalar("beta", "place of v between a (0) and b (1)", 1.0, 0.0)
    amount = scalar("amount", "multiples of the direction", 0.0, 2.0)
    # Rounding a weight can scale all of v, whose norm is about dimensions**0.5, so that the tolerance is wide.
    scale = 4 * dimensions**0.5
    shell = scalar("shell", "standard deviations of |v| from its mean under the model", scale=scale)
    meaning = "root mean square of the same, by parts of the latents; about 1 under the model"
    typicality = scalar("typicality", meaning, scale=scale)
    # The tolerance is wide, because an output is the difference of log densities of several nats per dimension.
    meaning, scale = "log p(y|x) of each label y", 4 * dimensions
    log_probabilities = Array("log_probabilities", "float32", (config.classes,), meaning, scale=scale)
    sample_labels = (label("labels"),) if has_labels else ()
    score_labels = (label("labels", needed=by_label),) if has_labels else ()
    # Each endpoint has name, summary, inputs, outputs, function, reference and perhaps the name of its file.
    # fmt: off
    encode = Endpoint(
        "encode", "Encodes images deterministically; decode gives the very same pixels back.",
        (images, *labels), (*z, v), _encode, _encode, "encoder",
    )
    encode_global = Endpoint(
        "encode_global", "The posterior of z given images, a diagonal Gaussian.", (images,),
        (vector("z_mean", "the z of encode"), vector("z_log_variance", "natural logarithm of the variance")),
        _encode_global, _call_posterior,
    )
    decode = Endpoint("decode", "Decodes codes to images.", (*z, v), (images,), _decode, _decode, "decoder")
    sample = Endpoint(
        "sample", "Turns noise into new images.",
        (*sample_labels, *z_noise, v_noise, temperature), (images,), _sample, _call_sample, "sampler",
    )
    switch = Endpoint(
        "switch", "Switches the global codes of two images.", (images_a, *labels_a, images_b, *labels_b),
        (picture("images_ab", "z of a with v of b"), picture("images_ba", "z of b with v of a")), _switch, _call_switch,
    )
    interpolate = Endpoint(
        "interpolate", "Interpolates between two images in two dimensions.",
        (images_a, *labels_a, images_b, *labels_b, alpha, beta), (images,), _interpolate, _call_interpolate,
    )
    edit = Endpoint(
        "edit", "Moves z of images along a direction; at 0 the very same pixels come back.",
        (images, *labels, vector("direction", "of directions.json, or any"), amount),
        (picture("edited", "the image with the other z, its v as it was"),), _edit, _call_edit,
    )
    score = Endpoint(
        "score",
        "Bits per dimension of images, an upper bound at one draw of the noise; and how usual its latents are.",
        (images, *score_labels, *z_noise, u_noise),
        (scalar("bits_per_dim", "lower is more probable"), *([nats] if config.has_encoder else []), shell, typicality),
        _score, _score,
    )
    classify = Endpoint(
        "classify", "How probable each label is of images, by Bayes' rule.", (images,), (log_probabilities,),
        _classify, _classify,
    )
    # fmt: on
    if any_size:
        return _free_sides(encode, image, ("height", "width")), _free_sides(decode, image, _PADDED)
    lacking = {"encode_global", "switch", "interpolate", "edit"} if not with_z else set()
    lacking |= {"encode_global"} if by_label else set()
    lacking |= set() if has_labels else {"classify"}
    own = encode, encode_global, decode, sample, switch, interpolate, edit, score, classify
    more = (make_endpoint(config) for make_endpoint in ENDPOINTS.values())
    return tuple(endpoint for endpoint in (*own, *more) if endpoint.name not in lacking)


def _free_sides(endpoint: Endpoint, image: tuple[int, ...], sides: tuple[str, str]) -> Endpoint:
    def free(arrays: tuple[Array, ...], names: tuple[str, str]) -> tuple[Array, ...]:
        return tuple(dataclasses.replace(array, free=names) if array.shape == image else array for array in arrays)

    return dataclasses.replace(endpoint, inputs=free(endpoint.inputs, sides), outputs=free(endpoint.outputs, _PADDED))


def _encode(model: EndpointFunctions | DecoupledModel, inputs: Arrays) -> Arrays:
    z, v = model.encode(inputs["images"], inputs.get("labels"))
    return {"v": v} if z is None else {"z": z, "v": v}


def _encode_global(model: EndpointFunctions, inputs: Arrays) -> Arrays:
    z, z_log_variance = model.infer_posterior(inputs["images"])
    return {"z_mean": z, "z_log_variance": z_log_variance}


def _call_posterior(model: DecoupledModel, inputs: Arrays) -> Arrays:
    posterior = model.posterior(inputs["images"])
    return {"z_mean": posterior.mean(), "z_log_variance": 2 * np.log(posterior.stddev())}


def _decode(model: EndpointFunctions | DecoupledModel, inputs: Arrays) -> Arrays:
    return {"images": model.decode(inputs.get("z"), inputs["v"])}


def _sample(model: EndpointFunctions, inputs: Arrays) -> Arrays:
    z = model.z_from_noise(inputs.get("z_noise"), inputs.get("labels"))
    return {"images": model.decode(z, inputs["temperature"][:, None, None, None] * inputs["v_noise"])}


def _call_sample(model: DecoupledModel, inputs: Arrays) -> Arrays:
    rows = zip(inputs["temperature"], inputs["seed"], inputs.get("labels", itertools.repeat(None)), strict=False)
    return {"images": np.concatenate([model.sample(1, *row) for row in rows])}


def _encode_both(model: EndpointFunctions, inputs: Arrays) -> Iterator[tf.Tensor]:
    return (model.encode(inputs[f"images_{which}"], inputs.get(f"labels_{which}")) for which in "ab")


def _switch(model: EndpointFunctions, inputs: Arrays) -> Arrays:
    a, b = _encode_both(model, inputs)
    return {"images_ab": model.decode(a.z, b.v), "images_ba": model.decode(b.z, a.v)}


def _call_switch(model: DecoupledModel, inputs: Arrays) -> Arrays:
    images = model.switch(inputs["images_a"], inputs["images_b"], _pair_labels(inputs))
    return dict(zip(("images_ab", "images_ba"), images, strict=True))


def _pair_labels(inputs: Arrays) -> tuple | None:
    return (inputs["labels_a"], inputs["labels_b"]) if "labels_a" in inputs else None


def _interpolate(model: EndpointFunctions, inputs: Arrays) -> Arrays:
    a, b = _encode_both(model, inputs)
    alpha, beta = inputs["alpha"][:, None], inputs["beta"][:, None, None, None]
    # This formula is exact at both ends: 1 * a + 0 * b is a, to the last bit.
    return {"images": model.decode((1 - alpha) * a.z + alpha * b.z, (1 - beta) * a.v + beta * b.v)}


def _call_interpolate(model: DecoupledModel, inputs: Arrays) -> Arrays:
    pairs = _pair_labels(inputs)
    labels = zip(*pairs, strict=True) if pairs else itertools.repeat(None)
    rows = zip(*(inputs[name] for name in ("images_a", "images_b", "alpha", "beta")), labels, strict=False)
    # The method would compute each pair of images at all positions of a batch, so each call has one pair.
    grids = [model.interpolate(a[None], b[None], *rest) for a, b, *rest in rows]
    return {"images": np.concatenate(grids)[:, 0, 0]}


def _edit(model: EndpointFunctions, inputs: Arrays) -> Arrays:
    z, v = model.encode(inputs["images"], inputs.get("labels"))
    return {"edited": model.decode(z + inputs["amount"][:, None] * inputs["direction"], v)}


def _call_edit(model: DecoupledModel, inputs: Arrays) -> Arrays:
    return {"edited": model.edit(inputs["images"], inputs["direction"], inputs["amount"], inputs.get("labels"))}


def _score(model: EndpointFunctions | DecoupledModel, inputs: Arrays) -> Arrays:
    noise = inputs.get("z_noise"), inputs["u_noise"]
    return model.outlier_scores(inputs["images"], inputs.get("labels"), noise=noise).to_dict()


def _classify(model: EndpointFunctions | DecoupledModel, inputs: Arrays) -> Arrays:
    return {"log_probabilities": model.classify(inputs["images"])}
