"""Names and shapes of the weights of the elementary layers, in the order of their creation.

The plan counts by them, and the layers of `tfdecouple/layers/` are built by them.
"""

from __future__ import annotations

Shape = tuple[int, ...]
Weights = dict[str, Shape]


def under(prefix: str, weights: Weights) -> Weights:
    """Returns the weights of a layer under its name."""
    return {f"{prefix}/{name}": shape for name, shape in weights.items()}


def actnorm(channels: int) -> Weights:
    """An actnorm: scale and shift."""
    return {"log_scale": (channels,), "bias": (channels,)}


def linear(channels: int, form: str) -> Weights:
    """An invertible linear map of the channels: its matrix, or the factors of one."""
    square = (channels, channels)
    return {"kernel": square} if form == "full" else {"factors": square, "permutation": (channels,)}


def convolutional_net(
    channels: int, hidden: int, outputs: int, condition_size: int = 0, *, local: bool = False
) -> Weights:
    """The net of a coupling of images; its condition is a vector, or a map beside the image."""
    weights: Weights = {"first": (3, 3, channels, hidden), "second": (1, 1, hidden, hidden)}
    if condition_size:
        around = (3, 3) if local else ()
        weights |= {"condition_kernel": (*around, condition_size, hidden), "condition_bias": (hidden,)}
    return weights | weight_norm((3, 3, hidden, outputs))


def dense_net(channels: int, hidden: int, outputs: int) -> Weights:
    """The net of a coupling of vectors."""
    weights: Weights = {"first": (channels, hidden), "first_bias": (hidden,), "second": (hidden, hidden)}
    return {**weights, "second_bias": (hidden,), **weight_norm((hidden, outputs))}


def whitening_net(condition_size: int, hidden: int, entries: int) -> Weights:
    """The net from z to mean and scale of so many entries of v."""
    first: Weights = {"first": (condition_size, hidden), "first_bias": (hidden,)}
    return {**first, **weight_norm((hidden, 2 * entries))}


def weight_norm(shape: Shape) -> Weights:
    """A weight-normalised last layer: direction, gain and bias."""
    return {"last_direction": shape, "last_gain": shape[-1:], "last_bias": shape[-1:]}


def batch_norm(name: str, channels: int) -> Weights:
    """A batch normalisation of that name: scale, shift and moving statistics."""
    return under(name, dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (channels,)))
