"""What an export offers: every endpoint with its inputs, its outputs and the graph behind it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import tensorflow as tf

from export.deployed.network import Network, scope
from tfdecouple.config import ModelConfig

Tensors = Mapping[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Array:
    """One input or output.

    Attributes:
        name: as in the signature.
        dtype: "uint8" or "float32".
        shape: without the batch axis, which always comes first.
        meaning: a few words for the card.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    meaning: str

    def spec(self) -> tf.TensorSpec:
        """Returns the specification for TensorFlow, batch free."""
        return tf.TensorSpec((None, *self.shape), self.dtype, self.name)

    def plain(self) -> dict[str, object]:
        """Returns plain values for JSON; the batch axis is the word "batch"."""
        return {"name": self.name, "dtype": self.dtype, "shape": ["batch", *self.shape], "meaning": self.meaning}


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A named function of arrays.

    Attributes:
        name: of the signature.
        summary: what it does, in a sentence.
        inputs: in order; each has the batch as its first axis.
        outputs: in order.
        build: given the network and the inputs by name, returns the outputs by name.
        onnx: name of the ONNX file that offers the same, or None.
    """

    name: str
    summary: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    build: Callable[[Network, Tensors], dict[str, tf.Tensor]]
    onnx: str | None = None


def endpoints(config: ModelConfig) -> tuple[Endpoint, ...]:
    """Returns the endpoints of a model, the default one first; a model without z has fewer."""
    image = config.image_shape
    with_z = config.has_latent

    def picture(name: str, meaning: str) -> Array:
        return Array(name, "uint8", image, meaning)

    def vector(name: str, meaning: str) -> Array:
        return Array(name, "float32", (config.latent_dim,), meaning)

    def scalar(name: str, meaning: str) -> Array:
        return Array(name, "float32", (), meaning)

    z, v = vector("z", "global code"), Array("v", "float32", image, "local code")
    images = picture("images", "RGB, 0..255")
    v_noise = Array("v_noise", "float32", image, "standard normal noise")
    u_noise = Array("u_noise", "float32", image, "uniform noise in [0, 1)")
    z_noise = vector("z_noise", "standard normal noise")
    temperature = scalar("temperature", "acts on v; 1 is the model's own distribution, lower is smoother")
    only_with_z = (z,) if with_z else ()
    only_z_noise = (z_noise,) if with_z else ()
    encode = Endpoint(
        "encode",
        "Encodes images deterministically; decode gives the very same pixels back.",
        (images,),
        (*only_with_z, v),
        _encode,
        onnx="encoder",
    )
    decode = Endpoint("decode", "Decodes codes to images.", (*only_with_z, v), (images,), _decode, onnx="decoder")
    sample = Endpoint(
        "sample", "Turns noise into new images.", (*only_z_noise, v_noise, temperature), (images,), _sample, "sampler"
    )
    score = Endpoint(
        "score",
        "Bits per dimension of images, an upper bound at one draw of the noise.",
        (images, *only_z_noise, u_noise),
        (scalar("bits_per_dim", "lower is more probable"),),
        _score,
    )
    if not with_z:
        return encode, decode, sample, score
    images_a, images_b = picture("images_a", "RGB, 0..255"), picture("images_b", "RGB, 0..255")
    return (
        encode,
        Endpoint(
            "encode_global",
            "The posterior of z given images, a diagonal Gaussian.",
            (images,),
            (vector("z_mean", "the z of encode"), vector("z_log_variance", "natural logarithm of the variance")),
            _encode_global,
        ),
        decode,
        sample,
        Endpoint(
            "switch",
            "Switches the global codes of two images.",
            (images_a, images_b),
            (picture("images_ab", "z of a with v of b"), picture("images_ba", "z of b with v of a")),
            _switch,
        ),
        Endpoint(
            "interpolate",
            "Interpolates between two images in two dimensions.",
            (
                images_a,
                images_b,
                scalar("alpha", "place of z between a (0) and b (1)"),
                scalar("beta", "place of v between a (0) and b (1)"),
            ),
            (images,),
            _interpolate,
        ),
        score,
    )


def onnx_names(config: ModelConfig) -> dict[str, str]:
    """Returns the names of the ONNX files, without suffix, by the endpoints that they offer."""
    return {one.name: one.onnx for one in endpoints(config) if one.onnx}


def endpoint(config: ModelConfig, name: str) -> Endpoint:
    """Returns the endpoint of that name."""
    return next(one for one in endpoints(config) if one.name == name)


def _codes(network: Network, images: tf.Tensor) -> tuple[tf.Tensor | None, tf.Tensor]:
    """Returns z and v of images, v in the layout of the graph."""
    levels = network.levels_of(images)
    z = network.posterior(levels)[0] if network.config.has_latent else None
    return z, network.flow_forward(network.flow_input(levels, 0.5), z)[0]


def _encode(network: Network, inputs: Tensors) -> dict[str, tf.Tensor]:
    z, v = _codes(network, inputs["images"])
    return {**({} if z is None else {"z": z}), "v": network.to_outside(v)}


def _encode_global(network: Network, inputs: Tensors) -> dict[str, tf.Tensor]:
    mean, log_variance = network.posterior(network.levels_of(inputs["images"]))
    return {"z_mean": mean, "z_log_variance": log_variance}


def _decode(network: Network, inputs: Tensors) -> dict[str, tf.Tensor]:
    x = network.flow_inverse(network.to_inside(inputs["v"]), inputs.get("z"))
    return {"images": network.pixels(x)}


def _sample(network: Network, inputs: Tensors) -> dict[str, tf.Tensor]:
    z = network.prior_inverse(inputs["z_noise"]) if network.config.has_latent else None
    with scope("input"):
        v = tf.reshape(inputs["temperature"], [-1, 1, 1, 1]) * inputs["v_noise"]
    return {"images": network.pixels(network.flow_inverse(network.to_inside(v), z))}


def _both_codes(network: Network, inputs: Tensors) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Returns z and v of images_a and images_b, encoded as one batch."""
    # Stacked, not concatenated: batches of different sizes would be halved in the wrong place, and nobody would notice.
    pairs = tf.stack([inputs["images_a"], inputs["images_b"]])
    z, v = _codes(network, tf.reshape(pairs, [-1, *network.config.image_shape]))
    return tf.split(z, 2), tf.split(v, 2)


def _switch(network: Network, inputs: Tensors) -> dict[str, tf.Tensor]:
    z, v = _both_codes(network, inputs)
    images = network.pixels(network.flow_inverse(tf.concat([v[1], v[0]], 0), tf.concat(z, 0)))
    images_ab, images_ba = tf.split(images, 2)
    return {"images_ab": images_ab, "images_ba": images_ba}


def _interpolate(network: Network, inputs: Tensors) -> dict[str, tf.Tensor]:
    z, v = _both_codes(network, inputs)
    alpha, beta = tf.reshape(inputs["alpha"], [-1, 1]), tf.reshape(inputs["beta"], [-1, 1, 1, 1])
    # Both ends are exact: 1 * a + 0 * b is a, to the last bit.
    mixed_z, mixed_v = (1 - alpha) * z[0] + alpha * z[1], (1 - beta) * v[0] + beta * v[1]
    return {"images": network.pixels(network.flow_inverse(mixed_v, mixed_z))}


def _score(network: Network, inputs: Tensors) -> dict[str, tf.Tensor]:
    levels = network.levels_of(inputs["images"])
    z, kl = None, None
    if network.config.has_latent:
        mean, log_variance = network.posterior(levels)
        noise = inputs["z_noise"]
        z = mean + tf.exp(log_variance / 2) * noise
        prior_noise, log_det = network.prior_forward(z)
        # log q(z|x) - log p(z); the constants of the two Gaussians cancel.
        kl = 0.5 * tf.reduce_sum(tf.square(prior_noise) - tf.square(noise) - log_variance, -1) - log_det
    u = network.to_inside(inputs["u_noise"])
    v, log_det = network.flow_forward(network.flow_input(levels, u), z, with_log_det=True)
    dimensions = math.prod(network.config.image_shape)
    nats = 0.5 * (tf.reduce_sum(tf.square(v), [1, 2, 3]) + dimensions * math.log(2 * math.pi)) - log_det
    if kl is not None:
        nats += kl
    return {"bits_per_dim": (nats / dimensions + math.log(network.config.n_bins / 2)) / math.log(2)}
