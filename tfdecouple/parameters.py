"""Counting the parameters of a config without building the model."""

from __future__ import annotations

from tfdecouple.config import ModelConfig
from tfdecouple.errors import ConfigError
from tfdecouple.runtime.memory import machine_memory, shown_bytes

_FLOAT_BYTES = 4


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Returns the numbers of trainable parameters: flow, encoder, prior and total.

    It equals `DecoupledModel(config).parameter_count()`, but takes no time and needs no TensorFlow.
    """
    counts = {"flow": _flow(config), "encoder": 0, "prior": 0}
    if config.has_latent:
        counts["encoder"] = _encoder(config)
        if config.prior == "flow":
            counts["prior"] = config.prior_steps * _prior_step(config)
    return {**counts, "total": sum(counts.values())}


def require_memory(config: ModelConfig, copies: int = 1) -> None:
    """Refuses a model that this machine cannot hold, before a weight of it is made.

    Args:
        config: of the model.
        copies: of the weights that are held: 1 to use a model, more to train it.

    Raises:
        ConfigError: naming the largest of its sizes, where the weights or the widest map of one image need more memory
            than the machine has.
    """
    memory = machine_memory()
    counts = count_parameters(config)
    weights, image = copies * counts["total"] * _FLOAT_BYTES, _widest_map(config) * _FLOAT_BYTES
    if max(weights, image) <= memory:
        return
    most = max(("flow", "encoder", "prior"), key=counts.__getitem__)
    what = (
        f"{shown_bytes(weights)} for {counts['total']:,} parameters, most of them of the {most}"
        if weights >= image
        else f"{shown_bytes(image)} for a single image"
    )
    sizes = {
        "model.image_size": config.image_size,
        "model.latent_dim": config.latent_dim if config.has_latent else 0,
        "an entry of model.hidden_channels": max(config.hidden_channels),
        "an entry of model.encoder_channels": max(config.encoder_channels) if config.has_latent else 0,
        "model.encoder_out_channels": config.encoder_out_channels if config.has_latent else 0,
        "model.prior_hidden": config.prior_hidden if config.has_latent and config.prior == "flow" else 0,
        "model.base_hidden": config.base_hidden if config.conditioning == "base" else 0,
    }
    name = max(sizes, key=sizes.__getitem__)
    raise ConfigError(
        f"the model is too large: it needs {what}, and this machine has {shown_bytes(memory)} of memory; "
        f"the largest of its sizes is {name}, {sizes[name]}"
    )


def _widest_map(config: ModelConfig) -> int:
    """Returns how many numbers the largest map of one image holds."""
    widths = [(config.image_size // 2**level) ** 2 * hidden for level, hidden in enumerate(config.hidden_channels)]
    encoder = config.image_size**2 * config.encoder_channels[0] if config.has_latent else 0
    return max(3 * config.image_size**2, encoder, *widths)


def _flow(config: ModelConfig) -> int:
    z = config.latent_dim if config.conditioning == "coupling" else 0
    total, channels = 0, 3
    for depth, (steps, hidden) in enumerate(zip(config.steps, config.hidden_channels, strict=True)):
        channels *= 4 if depth else 1
        if isinstance(steps, int):
            total += steps * _step(config, channels, hidden, z)
            continue
        dropped = channels // config.inner_factors[depth - 1]
        for count in steps:
            total += count * _step(config, channels, hidden, z)
            total += _linear(channels) + 2 * dropped
            total += _coupling(channels - dropped, dropped, hidden, z, config.multiscale_transform)
            channels -= dropped
    if config.conditioning == "base":
        width, outputs = config.base_hidden, 2 * 3 * config.image_size**2
        total += (config.latent_dim + 1) * width + _weight_norm(width, outputs)
    return total


def _step(config: ModelConfig, channels: int, hidden: int, z: int) -> int:
    kept = channels - channels // 2
    coupling = _coupling(kept, channels // 2, hidden, z, config.transform)
    return 4 * channels + _linear(channels) + 4 * coupling


def _coupling(kept: int, transformed: int, hidden: int, z: int, transform: str) -> int:
    outputs = transformed * (2 if transform == "affine" else 1)
    condition = (z + 1) * hidden if z else 0
    return 9 * kept * hidden + hidden**2 + condition + _weight_norm(9 * hidden, outputs)


def _weight_norm(inputs: int, outputs: int) -> int:
    """Direction, gain and bias."""
    return (inputs + 2) * outputs


def _linear(channels: int) -> int:
    # The packed factors of the "lu" form are as many numbers as the full matrix.
    return channels**2


def _encoder(config: ModelConfig) -> int:
    total, channels, side = 0, 3, config.image_size
    for planes in config.encoder_channels:
        for strides in (1, 2):
            total += 9 * channels * planes + 9 * planes**2 + 4 * planes
            if strides != 1 or channels != planes:
                total += channels * planes + 2 * planes
            channels = planes
        side //= 2
    total += (channels + 1) * config.encoder_out_channels
    return total + _weight_norm(side**2 * config.encoder_out_channels, 2 * config.latent_dim)


def _prior_step(config: ModelConfig) -> int:
    size, hidden = config.latent_dim, config.prior_hidden
    kept, transformed = size - size // 2, size // 2
    outputs = transformed * (2 if config.prior_transform == "affine" else 1)
    mlp = (kept + 1) * hidden + (hidden + 1) * hidden + _weight_norm(hidden, outputs)
    return 4 * size + _linear(size) + 4 * mlp
