"""What an export offers: what an endpoint is, and the one registry of all.

The one file to edit for a new endpoint: the function that builds its graph, the one that asks the Keras model for the
right answer, and the `Endpoint` in `endpoints`. Signature, warm-up request, ONNX file, check, card and documentation
walk these. Nothing here needs TensorFlow before a graph is built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tfdecouple.config import ModelConfig
from tfdecouple.config.shapes import describe_channels

if TYPE_CHECKING:
    import tensorflow as tf

    from export.deployed.deployed_model import DeployedModel


Tensors = Mapping[str, "tf.Tensor"]
Arrays = dict[str, np.ndarray]
# By outputs: `Floats` or `Pixels` of `export.verification.tolerance`, as `Reference` returns them.
Answers = dict[str, Any]
# z, None without it, and v.
Codes = tuple[np.ndarray | None, np.ndarray]

# What inputs can hold, beside scalars of a range.
IMAGE, GLOBAL_CODE, LOCAL_CODE, NORMAL, UNIFORM = "image", "global code", "local code", "normal noise", "uniform noise"
LABEL = "label"
# The ends between which the temperatures lie at which samples are compared.
TEMPERATURES = (0.1, 1.0)


@dataclasses.dataclass(frozen=True)
class Array:
    """One input or output.

    Attributes:
        name: as in the signature.
        dtype: "uint8", "float32" or "int32".
        shape: without the batch axis, which always comes first.
        meaning: a few words for the card.
        holds: what an input is given: `IMAGE`, `GLOBAL_CODE`, `LOCAL_CODE`, `NORMAL`, `UNIFORM`, `LABEL`, or the two
            ends of a range for a scalar.
        example: a plain value of a scalar.
        labels: the first label and the one after the last.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    meaning: str
    holds: str | tuple[float, ...] = NORMAL
    example: float = 0.0
    labels: tuple[int, int] = (0, 0)

    def spec(self) -> tf.TensorSpec:
        """Returns the specification for TensorFlow, batch free."""
        import tensorflow as tf

        return tf.TensorSpec((None, *self.shape), self.dtype, self.name)

    def plain(self) -> dict[str, object]:
        """Returns plain values for JSON; the batch axis is the word "batch"."""
        return {"name": self.name, "dtype": self.dtype, "shape": ["batch", *self.shape], "meaning": self.meaning}

    def plausible(self, rng: np.random.Generator) -> np.ndarray:
        """Returns one plausible value, batch 1: extreme ones could take paths, or overflow, that no request would."""
        shape = (1, *self.shape)
        if not isinstance(self.holds, str):
            return np.full(shape, self.example, self.dtype)
        if self.holds == IMAGE:
            return rng.integers(96, 160, shape, dtype=np.uint8)
        return self.drawn(rng, 1)

    def drawn(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Returns noise, labels in turn, or a scalar from one end of its range to the other, for so many images."""
        if not isinstance(self.holds, str):
            first, last = self.holds
            return np.linspace(first, last, count, dtype=np.float32)
        if self.holds == LABEL:
            first, end = self.labels
            return (first + np.arange(count) % (end - first)).astype(np.int32)
        if self.holds == UNIFORM:
            return rng.random((count, *self.shape), np.float32)
        return rng.standard_normal((count, *self.shape), np.float32)


class Reference(Protocol):
    """What an endpoint's `answer` may ask of the Keras model; arrays have the batch first, z is None without it.

    Each question is asked with the inputs given and with inputs moved a little, so that an answer comes with the
    measure of what a file may differ by. What was asked before is not asked again.
    """

    def codes(self, images: np.ndarray, labels: np.ndarray | None = None) -> list[Codes]:
        """Returns z and v of images, and after them those of the images moved, in all what `decode` takes.

        They are no answers themselves. Where z is a function of the label, labels that are not given are all in turn.
        """

    def encode(self, images: np.ndarray, labels: np.ndarray | None = None) -> dict[str, Any]:
        """Returns the answers "z", "z_log_variance" (both only with z, the second with an encoder) and "v"."""

    def decode(self, codes: Codes, *moved: Codes) -> Any:
        """Returns the answer in pixels to codes; where they are computed from images, with those of moved images."""

    def score(
        self,
        images: np.ndarray,
        z_noise: np.ndarray | None,
        u_noise: np.ndarray,
        labels: np.ndarray | None = None,
    ) -> Answers:
        """Returns the answers of `OutlierScores`, "bits_per_dim" and others, by name."""

    def classify(self, images: np.ndarray) -> Any:
        """Returns the answer of log p(y|x) of each label."""

    def z_from_noise(self, noise: np.ndarray | None, labels: np.ndarray | None = None) -> np.ndarray | None:
        """Returns the z of noise of the prior, and of labels, where the model knows them."""

    def drawn(self, count: int) -> Arrays:
        """Returns "v_noise" and "temperature" of so many samples, and "z_noise" and "labels" where they have a part.

        Half of them become images whose every value lies beside the border of two levels. What decodes images hides
        errors below half a level, since codes of images lie in the middle of their bins; the rounding of these shows an
        error of a thousandth of a level.
        """


def _as_given(name: str, reference: Reference, inputs: Arrays) -> dict[str, Arrays]:
    return {name: inputs}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A named function of arrays.

    Attributes:
        name: of the signature.
        summary: what it does, in a sentence.
        inputs: in order; each has the batch as its first axis.
        outputs: in order.
        build: given the deployed model and the inputs by name, returns the outputs by name.
        answer: asks the Keras model what the outputs must be, by name; without it nothing could be published.
        onnx: name of the ONNX file that offers the same, or None.
        on_page: whether the web page runs that file.
        needs_z: whether a model without z lacks it.
        cases: given the name, the reference and plain inputs, returns the inputs of each case that is tried, by the
            name of the endpoint or "NAME of ..."; by default the plain ones alone.
    """

    name: str
    summary: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    build: Callable[[DeployedModel, Tensors], dict[str, tf.Tensor]]
    answer: Callable[[Reference, Arrays], Answers]
    onnx: str | None = None
    on_page: bool = False
    needs_z: bool = False
    cases: Callable[[str, Reference, Arrays], dict[str, Arrays]] = _as_given

    def __post_init__(self) -> None:
        """Refuses names that a file could not tell apart."""
        names = [array.name for array in (*self.inputs, *self.outputs)]
        if len({*names}) < len(names):
            raise ValueError(
                f"endpoint {self.name} names two arrays alike ({', '.join(names)}); ONNX needs them to differ"
            )


def endpoints(config: ModelConfig) -> tuple[Endpoint, ...]:
    """Returns the endpoints of a model, the default one first; a model without z has fewer.

    >>> [one.name for one in endpoints(ModelConfig(conditioning="none"))][:4]
    ['encode', 'decode', 'sample', 'score']
    """
    image, with_z = config.image_shape, config.has_latent

    def picture(name: str, meaning: str) -> Array:
        return Array(name, "uint8", image, meaning, IMAGE)

    def vector(name: str, meaning: str, holds: str = NORMAL) -> Array:
        return Array(name, "float32", (config.latent_dim,), meaning, holds)

    def scalar(name: str, meaning: str, *ends: float, example: float = 0.0) -> Array:
        return Array(name, "float32", (), meaning, ends, example)

    def label(name: str, needed: bool = True) -> Array:
        last = config.classes - 1
        meaning = f"label, 0 to {last}" if needed else f"label, 0 to {last}, or -1 for none"
        return Array(name, "int32", (), meaning, LABEL, labels=(0 if needed else -1, config.classes))

    v = Array("v", "float32", image, "local code", LOCAL_CODE)
    # z is coded by the label, or only its prior knows the label, or nothing does.
    coded, known = config.has_class_codes, config.has_classes
    labels = (label("labels"),) if coded else ()
    values = f"{describe_channels(image[-1])}, 0..255"
    images = picture("images", values)
    labels_a, labels_b = ((label(f"labels_{one}"),) if coded else () for one in "ab")
    images_a, images_b = picture("images_a", values), picture("images_b", values)
    v_noise = Array("v_noise", "float32", image, "standard normal noise", NORMAL)
    u_noise = Array("u_noise", "float32", image, "uniform noise in [0, 1)", UNIFORM)
    if config.has_dequantizer:
        u_noise = Array("u_noise", "float32", image, "standard normal noise, of which q(u|x) makes u", NORMAL)
    z = (vector("z", "global code", GLOBAL_CODE),) if with_z else ()
    z_noise = (vector("z_noise", "standard normal noise"),) if config.has_encoder else ()
    temperature = scalar(
        "temperature", "acts on v; 1 is the model's own distribution, lower is smoother", *TEMPERATURES, example=0.7
    )
    encode = Endpoint(
        name="encode",
        summary="Encodes images deterministically; decode gives the very same pixels back.",
        inputs=(images, *labels),
        outputs=(*z, v),
        build=_encode,
        answer=lambda reference, given: _only(reference.encode(given["images"], given.get("labels")), *z, v),
        onnx="encoder",
        on_page=True,
    )
    encode_global = Endpoint(
        name="encode_global",
        summary="The posterior of z given images, a diagonal Gaussian.",
        inputs=(images,),
        outputs=(vector("z_mean", "the z of encode"), vector("z_log_variance", "natural logarithm of the variance")),
        build=_encode_global,
        answer=_answer_encode_global,
        needs_z=True,
    )
    decode = Endpoint(
        name="decode",
        summary="Decodes codes to images.",
        inputs=(*z, v),
        outputs=(images,),
        build=_decode,
        answer=lambda reference, given: {"images": reference.decode((given.get("z"), given["v"]))},
        onnx="decoder",
        on_page=True,
        cases=_cases_of_decode,
    )
    sample = Endpoint(
        name="sample",
        summary="Turns noise into new images.",
        inputs=(*([label("labels")] if known else []), *z_noise, v_noise, temperature),
        outputs=(images,),
        build=_sample,
        answer=_answer_sample,
        onnx="sampler",
        on_page=True,
        cases=_cases_of_sample,
    )
    switch = Endpoint(
        name="switch",
        summary="Switches the global codes of two images.",
        inputs=(images_a, *labels_a, images_b, *labels_b),
        outputs=(picture("images_ab", "z of a with v of b"), picture("images_ba", "z of b with v of a")),
        build=_switch,
        answer=_answer_switch,
        needs_z=True,
    )
    interpolate = Endpoint(
        name="interpolate",
        summary="Interpolates between two images in two dimensions.",
        inputs=(
            images_a,
            *labels_a,
            images_b,
            *labels_b,
            scalar("alpha", "place of z between a (0) and b (1)", 0.0, 1.0, example=0.5),
            scalar("beta", "place of v between a (0) and b (1)", 1.0, 0.0, example=0.5),
        ),
        outputs=(images,),
        build=_interpolate,
        answer=_answer_interpolate,
        needs_z=True,
    )
    edit = Endpoint(
        name="edit",
        summary="Moves z of images along a direction; at 0 the very same pixels come back.",
        inputs=(
            images,
            *labels,
            vector("direction", "of directions.json, or any"),
            scalar("amount", "multiples of the direction", 0.0, 2.0, example=1.0),
        ),
        outputs=(picture("edited", "the image with the other z, its v as it was"),),
        build=_edit,
        answer=_answer_edit,
        needs_z=True,
    )
    prior_nats: tuple[Array, ...] = ()
    if config.has_encoder:
        prior_nats = (scalar("prior_nats", "-log p(z, y) in nats, y the label" if known else "-log p(z) in nats"),)
    score = Endpoint(
        name="score",
        summary="Bits per dimension of images, an upper bound at one draw of the noise; and how usual its latents are.",
        inputs=(images, *([label("labels", needed=coded)] if known else []), *z_noise, u_noise),
        outputs=(
            scalar("bits_per_dim", "lower is more probable"),
            *prior_nats,
            scalar("shell", "standard deviations of |v| from its mean under the model"),
            scalar("typicality", "root mean square of the same, by parts of the latents; about 1 under the model"),
        ),
        build=_score,
        answer=lambda reference, given: reference.score(
            given["images"], given.get("z_noise"), given["u_noise"], given.get("labels")
        ),
    )
    classify = Endpoint(
        name="classify",
        summary="How probable each label is of images, by Bayes' rule.",
        inputs=(images,),
        outputs=(Array("log_probabilities", "float32", (config.classes,), "log p(y|x) of each label y"),),
        build=_classify,
        answer=lambda reference, given: {"log_probabilities": reference.classify(given["images"])},
    )
    every = (
        encode,
        encode_global,
        decode,
        sample,
        switch,
        interpolate,
        edit,
        score,
        classify,
    )
    lacking = {"encode_global"} if coded else set()
    lacking |= set() if known else {"classify"}
    return tuple(one for one in every if (with_z or not one.needs_z) and one.name not in lacking)


def onnx_names(config: ModelConfig) -> dict[str, str]:
    """Returns the names of the ONNX files, without suffix, by the endpoints that they offer."""
    return {one.name: one.onnx for one in endpoints(config) if one.onnx}


def page_names(config: ModelConfig) -> dict[str, str]:
    """Returns, of the names of the ONNX files, those that the web page runs."""
    return {one.name: one.onnx for one in endpoints(config) if one.onnx and one.on_page}


def endpoint(config: ModelConfig, name: str) -> Endpoint:
    """Returns the endpoint of that name."""
    return next(one for one in endpoints(config) if one.name == name)


# --- graphs ---


def _codes(
    deployed: DeployedModel, images: tf.Tensor, labels: tf.Tensor | None = None
) -> tuple[tf.Tensor | None, tf.Tensor]:
    """Returns z and v of images, v in the layout of the graph."""
    levels = deployed.levels_of(images)
    z = deployed.code(levels, labels)
    return z, deployed.flow.forward(deployed.flow_input(levels), z)


def _encode(deployed: DeployedModel, inputs: Tensors) -> dict[str, tf.Tensor]:
    z, v = _codes(deployed, inputs["images"], inputs.get("labels"))
    return {**({} if z is None else {"z": z}), "v": deployed.to_outside(v)}


def _encode_global(deployed: DeployedModel, inputs: Tensors) -> dict[str, tf.Tensor]:
    mean, log_variance = deployed.posterior(deployed.levels_of(inputs["images"]))
    return {"z_mean": mean, "z_log_variance": log_variance}


def _decode(deployed: DeployedModel, inputs: Tensors) -> dict[str, tf.Tensor]:
    x = deployed.flow.inverse(deployed.to_inside(inputs["v"]), inputs.get("z"))
    return {"images": deployed.pixels(x)}


def _sample(deployed: DeployedModel, inputs: Tensors) -> dict[str, tf.Tensor]:
    import tensorflow as tf

    z = deployed.z_from_noise(inputs.get("z_noise"), inputs.get("labels"))
    with tf.name_scope("input/"):
        v = tf.reshape(inputs["temperature"], [-1, 1, 1, 1]) * inputs["v_noise"]
    return {"images": deployed.pixels(deployed.flow.inverse(deployed.to_inside(v), z))}


def _both_codes(deployed: DeployedModel, inputs: Tensors) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Returns z and v of images_a and images_b, encoded as one batch."""
    import tensorflow as tf

    # Stacked, not concatenated: batches of different sizes would be halved in the wrong place, and nobody would notice.
    pairs, labels = tf.stack([inputs["images_a"], inputs["images_b"]]), None
    if "labels_a" in inputs:
        labels = tf.reshape(tf.stack([inputs["labels_a"], inputs["labels_b"]]), [-1])
    z, v = _codes(deployed, tf.reshape(pairs, [-1, *deployed.config.image_shape]), labels)
    return tf.split(z, 2), tf.split(v, 2)


def _switch(deployed: DeployedModel, inputs: Tensors) -> dict[str, tf.Tensor]:
    import tensorflow as tf

    z, v = _both_codes(deployed, inputs)
    images = deployed.pixels(deployed.flow.inverse(tf.concat([v[1], v[0]], 0), tf.concat(z, 0)))
    images_ab, images_ba = tf.split(images, 2)
    return {"images_ab": images_ab, "images_ba": images_ba}


def _interpolate(deployed: DeployedModel, inputs: Tensors) -> dict[str, tf.Tensor]:
    import tensorflow as tf

    z, v = _both_codes(deployed, inputs)
    alpha, beta = tf.reshape(inputs["alpha"], [-1, 1]), tf.reshape(inputs["beta"], [-1, 1, 1, 1])
    # Both ends are exact: 1 * a + 0 * b is a, to the last bit.
    mixed_z, mixed_v = (1 - alpha) * z[0] + alpha * z[1], (1 - beta) * v[0] + beta * v[1]
    return {"images": deployed.pixels(deployed.flow.inverse(mixed_v, mixed_z))}


def _edit(deployed: DeployedModel, inputs: Tensors) -> dict[str, tf.Tensor]:
    import tensorflow as tf

    z, v = _codes(deployed, inputs["images"], inputs.get("labels"))
    step = tf.reshape(inputs["amount"], [-1, 1]) * inputs["direction"]
    return {"edited": deployed.pixels(deployed.flow.inverse(v, z + step))}


def _score(deployed: DeployedModel, inputs: Tensors) -> dict[str, tf.Tensor]:
    from export.deployed.deployed_model import score

    return score(deployed, inputs)


def _classify(deployed: DeployedModel, inputs: Tensors) -> dict[str, tf.Tensor]:
    from export.deployed.deployed_model import label_log_probabilities

    return {"log_probabilities": label_log_probabilities(deployed, inputs["images"])}


# --- what the Keras model answers ---


def _only(answers: Answers, *outputs: Array) -> Answers:
    return {output.name: answers[output.name] for output in outputs}


def _answer_encode_global(reference: Reference, given: Arrays) -> Answers:
    answers = reference.encode(given["images"])
    return {"z_mean": answers["z"], "z_log_variance": answers["z_log_variance"]}


def _cases_of_decode(name: str, reference: Reference, given: Arrays) -> dict[str, Arrays]:
    """Codes of images; and the codes of samples, which are asked for once with these."""
    z, v = _codes_of_sample(reference, reference.drawn(len(given["v"])))
    drawn = {"v": v} if z is None else {"z": z, "v": v}
    return {name: given, f"{name} of drawn codes": drawn}


def _cases_of_sample(name: str, reference: Reference, given: Arrays) -> dict[str, Arrays]:
    """The noise that the reference draws, in place of any."""
    drawn = reference.drawn(len(given["v_noise"]))
    return {name: {key: drawn[key] for key in given}}


def _answer_sample(reference: Reference, given: Arrays) -> Answers:
    return {"images": reference.decode(_codes_of_sample(reference, given))}


def _codes_of_sample(reference: Reference, given: Arrays) -> Codes:
    z = reference.z_from_noise(given.get("z_noise"), given.get("labels"))
    return z, given["temperature"][:, None, None, None] * given["v_noise"]


def _pairs_of_codes(reference: Reference, given: Arrays) -> list[tuple[Codes, Codes]]:
    """The codes of images_a and of images_b, then those of both moved."""
    a, b = (reference.codes(given[f"images_{one}"], given.get(f"labels_{one}")) for one in "ab")
    return list(zip(a, b, strict=True))


def _answer_switch(reference: Reference, given: Arrays) -> Answers:
    pairs = _pairs_of_codes(reference, given)
    return {
        "images_ab": reference.decode(*((z_a, v_b) for (z_a, _), (_, v_b) in pairs)),
        "images_ba": reference.decode(*((z_b, v_a) for (_, v_a), (z_b, _) in pairs)),
    }


def _answer_edit(reference: Reference, given: Arrays) -> Answers:
    change = given["amount"][:, None] * given["direction"]
    codes = reference.codes(given["images"], given.get("labels"))
    return {"edited": reference.decode(*((z + change, v) for z, v in codes))}


def _answer_interpolate(reference: Reference, given: Arrays) -> Answers:
    alpha, beta = given["alpha"][:, None], given["beta"][:, None, None, None]

    def between(a: Codes, b: Codes) -> Codes:
        (z_a, v_a), (z_b, v_b) = a, b
        return (1 - alpha) * z_a + alpha * z_b, (1 - beta) * v_a + beta * v_b

    return {"images": reference.decode(*(between(*pair) for pair in _pairs_of_codes(reference, given)))}
