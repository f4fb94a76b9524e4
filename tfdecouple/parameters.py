"""How many parameters a config's model has, and whether this machine can hold it, without building it."""

from __future__ import annotations

from tfdecouple.architecture import plan
from tfdecouple.config import ModelConfig
from tfdecouple.errors import ConfigError
from tfdecouple.runtime.memory import machine_memory, shown_bytes

_FLOAT_BYTES = 4


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Returns the numbers of trainable parameters: of each network, and in total.

    It equals `DecoupledModel(config).parameter_count()`, but takes no time and needs no TensorFlow.
    """
    return plan(config).parameters()


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
    planned = plan(config)
    counts = planned.parameters()
    weights, image = copies * counts["total"] * _FLOAT_BYTES, planned.widest_map() * _FLOAT_BYTES
    if max(weights, image) <= memory:
        return
    most = max((name for name in counts if name != "total"), key=counts.__getitem__)
    what = (
        f"{shown_bytes(weights)} for {counts['total']:,} parameters, most of them of the {most}"
        if weights >= image
        else f"{shown_bytes(image)} for a single image"
    )
    sizes = {
        "model.image_size" if config.image_size else "a side of model.image_shape": max(config.image_shape[:2]),
        "the channels of model.image_shape": config.image_shape[-1],
        "model.latent_dim": config.latent_dim if config.has_latent else 0,
        "an entry of model.hidden_channels": max(config.hidden_channels),
        "an entry of model.encoder_channels": max(config.encoder_channels) if config.has_encoder else 0,
        "model.encoder_out_channels": config.encoder_out_channels if config.has_encoder else 0,
        "model.prior_hidden": config.prior_hidden if config.has_latent and config.prior == "flow" else 0,
        "model.classes": config.classes,
        "model.base_hidden": config.base_hidden if config.conditioning == "base" else 0,
        **_dequantization_sizes(config),
    }
    name = max(sizes, key=sizes.__getitem__)
    raise ConfigError(
        f"the model is too large: it needs {what}, and this machine has {shown_bytes(memory)} of memory; "
        f"the largest of its sizes is {name}, {sizes[name]}"
    )


def _dequantization_sizes(config: ModelConfig) -> dict[str, int]:
    if not config.has_dequantizer:
        return {}
    return {
        "an entry of model.dequantization_hidden_channels": max(config.dequantization_hidden_channels),
        "an entry of model.dequantization_encoder_channels": max(config.dequantization_encoder_channels),
        "model.dequantization_map_channels": config.dequantization_map_channels,
    }
