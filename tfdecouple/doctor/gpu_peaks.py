"""Published peaks of GPUs, and the speed of a model that a GPU can reach at most."""

from tfdecouple.config import Config
from tfdecouple.networks.architecture import count_multiply_adds

# Published peaks of GPUs (H100 SXM, A100, GeForce RTX 4090) in TFLOP/s by `training.precision`, without sparsity.
# Products of bfloat16 are summed in float32.
PEAKS = {
    "H100": {"float32": 66.9, "tf32": 494.7, "mixed_bfloat16": 989.4},
    "A100": {"float32": 19.5, "tf32": 156.0, "mixed_bfloat16": 312.0},
    "RTX 4090": {"float32": 82.6, "tf32": 82.6, "mixed_bfloat16": 165.2},
}


def compute_ceiling(config: Config, phase: str, gpu: str) -> float:
    """Returns the images/s that a GPU can reach at most in a phase: its published peak over the products of an image.

    `gpu` is a key of `PEAKS`, and `phase` is "train" or "eval". Only training has another precision than float32. A
    training step computes as many products as three forward passes: one forward, and two gradients of each product.
    """
    precision, passes = (config.training.precision, 3) if phase == "train" else ("float32", 1)
    return 1e12 * PEAKS[gpu][precision] / (2 * passes * count_multiply_adds(config.model))
