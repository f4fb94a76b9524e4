"""Names and shapes of the weights of the elementary layers."""

from __future__ import annotations

Shape = tuple[int, ...]
Weights = dict[str, Shape]


def under(prefix: str, weights: Weights) -> Weights:
    """Returns the weights of a layer under its name."""
    return {f"{prefix}/{name}": shape for name, shape in weights.items()}


def actnorm(name: str, channels: int) -> Weights:
    """An actnorm of that name: scale and shift."""
    return under(name, {"log_scale": (channels,), "bias": (channels,)})


def linear(name: str, channels: int, form: str) -> Weights:
    """An invertible linear map of that name: its matrix, or the factors of one."""
    square = (channels, channels)
    return under(name, {"kernel": square} if form == "full" else {"factors": square, "permutation": (channels,)})


def weight_norm(shape: Shape) -> Weights:
    """A weight-normalised last layer: direction, gain and bias."""
    return {"last_direction": shape, "last_gain": shape[-1:], "last_bias": shape[-1:]}


def batch_norm(name: str, channels: int) -> Weights:
    """A batch normalisation of that name: scale, shift and moving statistics."""
    return under(name, dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (channels,)))
