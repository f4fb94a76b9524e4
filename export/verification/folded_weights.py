"""Compares the weights of an export with the model's weights, by formulas independent of `export.deployed`.

A fault in the folding of weights would be in every file, and a fault in one weight can be too small to change a pixel.
So each deployed weight, a weight of the export, is computed a second time from the model's weights and compared.
Weights in files are compared with the deployed weights by digests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from export.deployed.deployed_model import DeployedModel
from export.deployed.graph import Layout
from export.verification.comparison import RefusedError, digest_array, join_problems
from tfdecouple.layers.colour_map import get_colour_axes
from tfdecouple.model import DecoupledModel

Arrays = dict[str, np.ndarray]

# The tolerance of a value in a weight is _ROUNDING times the value, for rounding to float32, plus _FLOOR times the
# largest value in the weight.
_ROUNDING, _FLOOR = 1e-6, 1e-9
# This factor replaces _FLOOR for weights that the model itself computes in float32.
_SINGLE = 1e-6
# {convolution of a ResNet block in the model: (its name in the export, the batch normalisation after it)}
_CONVOLUTIONS = {
    "convolution_1": ("first", "norm_1"),
    "convolution_2": ("second", "norm_2"),
    "shortcut_convolution": ("shortcut", "shortcut_norm"),
}


def digest_weights(model: DecoupledModel, deployed: Mapping[str, DeployedModel]) -> Arrays:
    """Compares an export's folded weights with the model's; returns {"weights/LAYOUT": sorted SHA-256 of each weight}.

    `deployed` is {name of a layout: model with folded weights}. The digests become part of the test vectors.

    Raises:
        RefusedError: if a folded weight differs from what the model's weights give.
    """
    if problems := [problem for one in deployed.values() for problem in compare_deployed_weights(model, one)]:
        raise RefusedError(f"not published: {join_problems(problems)}")
    return {
        f"weights/{layout}": np.array(sorted(map(digest_array, one.collect_arrays().values())))
        for layout, one in deployed.items()
    }


def compare_deployed_weights(model: DecoupledModel, deployed: DeployedModel) -> Iterator[str]:
    """Computes each weight of an export again from the model's weights; yields a line for each weight that differs."""
    numbers = {f"{one.name}/log_det": getattr(one, "log_det", None) for one in deployed.iterate_layers()}
    found = deployed.collect_arrays() | {name: one for name, one in numbers.items() if isinstance(one, float)}
    expected = _ExpectedWeights(model, deployed.layout).weights
    for name in sorted({*found} ^ {*expected}):
        yield f"weight {name} is deployed and not the model's" if name in found else f"weight {name} is not deployed"
    for name in sorted({*found} & {*expected}):
        right, floor = expected[name]
        array = np.asarray(found[name], np.float64)
        if array.size != right.size or (array.ndim > 1 and right.ndim > 1 and array.shape != right.shape):
            yield f"deployed weight {name} has the shape {list(array.shape)}; the model's has {list(right.shape)}"
            continue
        off, largest = np.abs(array.ravel() - right.ravel()), np.abs(right).max(initial=0)
        wrong = ~(off <= _ROUNDING * np.abs(right.ravel()) + floor * largest)
        if wrong.any():
            yield (
                f"{wrong.sum()} of {wrong.size} numbers of deployed weight {name} are not the model's, by up to "
                f"{off[wrong].max():.1e} where the largest is {largest:.1e}"
            )


class _ExpectedWeights:
    """The weights that an export of `model` must have: `weights` is {name: (float64 array, relative tolerance)}."""

    def __init__(self, model: DecoupledModel, layout: Layout):
        self._config, self._layout = model.config, layout
        encoders = [model.encoder, model.dequantizer and model.dequantizer.encoder]
        blocks = [block for encoder in encoders if encoder is not None for block in encoder.blocks]
        self._blocks = {block.name: (block.norm_1.epsilon, block.strides) for block in blocks}
        # The weights of the model as {path of a layer: {name of a weight: array}}, in the order of the layers.
        self._layers: dict[str, Arrays] = {}
        for path, variable in model.named_variables().items():
            layer, _, name = path.replace("prior_flow/", "prior/").rpartition("/")
            if layer:
                self._layers.setdefault(layer, {})[name] = np.asarray(variable, np.float64)
        self.weights: dict[str, tuple[np.ndarray, float]] = {}
        for layer, arrays in self._layers.items():
            self._expect_layer(layer, arrays)
        nets = [arrays for layer, arrays in self._layers.items() if self._is_conditioned(layer)]
        if nets:
            kernel, bias = (np.concatenate([net[f"condition_{key}"] for net in nets], -1) for key in ("kernel", "bias"))
            self._expect_linear("flow/condition", kernel, bias)
        if model.config.has_classes:
            shares = np.asarray(model.config.label_shares, np.float64)
            self._expect("classes/log_probabilities", np.log(shares / shares.sum()), _SINGLE)

    def _expect_layer(self, layer: str, arrays: Arrays) -> None:
        parent, _, kind = layer.rpartition("/")
        if kind == "linear":
            self._expect_mix(parent, arrays)
        elif kind == "net" and not self._is_unfolded(layer):
            for name in ("first", "second"):
                self._expect_linear(f"{parent}/{name}", arrays[name], arrays.get(f"{name}_bias"))
            self._expect_linear(f"{parent}/last", *_fold_weight_norm(arrays))
            if "condition_kernel" in arrays and arrays["condition_kernel"].ndim == 4:
                self._expect_linear(f"{parent}/condition", arrays["condition_kernel"], arrays["condition_bias"])
        elif kind in _CONVOLUTIONS:
            self._expect_convolution(parent, kind, arrays)
        elif kind == "actnorm_1":
            pass  # This actnorm is folded into the linear map after it.
        elif kind.startswith("actnorm"):
            linear = self._layers[f"{parent}/linear"]
            # The actnorm leaves the first channels unchanged, so their scale is 1 and their bias is 0.
            unchanged = len(linear["kernel"]) - len(arrays["bias"])
            self._expect(f"{layer}/scale", np.exp(np.pad(arrays["log_scale"], (unchanged, 0))))
            self._expect(f"{layer}/bias", np.pad(arrays["bias"], (unchanged, 0)))
            self._expect(f"{layer}/log_det", arrays["log_scale"].sum(), _ROUNDING)
        elif layer == "flow/whitening":
            self._expect_linear(f"{layer}/first", arrays["first"], arrays["first_bias"])
            order = self._layout.order_flattened(*self._config.image_shape)
            columns = np.concatenate([order, len(order) + order])
            self._expect_linear(f"{layer}/last", *(array[..., columns] for array in _fold_weight_norm(arrays)))
        elif layer == "flow/colour_map":
            self._expect_linear(layer, arrays["kernel"], arrays["bias"])
            axes = get_colour_axes(self._config.image_shape[-1])
            self._expect(f"{layer}/rows", axes)
            self._expect(f"{layer}/columns", axes.T)
        elif layer == "encoder":
            if "colour_kernel" in arrays:
                self._expect("encoder/colour_axes", get_colour_axes(self._config.image_shape[-1]).T)
                self._expect("encoder/colour_kernel", arrays["colour_kernel"])
            kernel, bias = _fold_weight_norm(arrays)
            channels = self._layers["encoder/top"]["bias"].size
            rows = self._layout.order_flattened(len(kernel) // channels, 1, channels)
            self._expect_linear("encoder/last", kernel[rows], bias)
        elif layer == "encoder/top":
            self._expect_linear(layer, arrays["kernel"], arrays["bias"])
        elif layer in ("class_codes", "prior_affine"):
            self._expect_classes(arrays)
        elif "norm" not in kind:
            for name, array in arrays.items():
                self._expect(f"{layer}/weight_{name}", array)

    def _is_unfolded(self, net: str) -> bool:
        """Returns whether the coupling net at path `net` is of a registered type, whose weights are not folded."""
        return net.startswith("flow/") and self._config.conditioner != "convolutional"

    def _is_conditioned(self, layer: str) -> bool:
        arrays = self._layers[layer]
        return layer.startswith("flow/") and "condition_kernel" in arrays and not self._is_unfolded(layer)

    def _expect(self, name: str, array: np.ndarray, floor: float = _FLOOR) -> None:
        """Adds `array` to the expected weights; the tolerance is float32 rounding plus `floor` times its maximum."""
        self.weights[name] = (np.asarray(array), floor)

    def _expect_linear(self, name: str, kernel: np.ndarray, bias: np.ndarray | None) -> None:
        self._expect(f"{name}/kernel", kernel)
        if bias is not None:
            self._expect(f"{name}/bias", bias)

    def _expect_mix(self, step: str, arrays: Arrays) -> None:
        matrix = arrays["kernel"]
        channels = len(matrix)
        actnorm = self._layers.get(f"{step}/actnorm_1")
        log_scale, shift = (actnorm["log_scale"], actnorm["bias"]) if actnorm else np.zeros((2, channels))
        shape = (1, 1, channels, channels) if "flow/" in step else (channels, channels)
        self._expect(f"{step}/mix/kernel", np.einsum("oi,i->io", matrix, np.exp(log_scale)).reshape(shape))
        self._expect(f"{step}/mix/bias", matrix @ shift)
        inverse = np.linalg.solve(matrix.T, np.diag(np.exp(-log_scale)))
        self._expect(f"{step}/unmix/kernel", inverse.reshape(shape))
        self._expect(f"{step}/unmix/bias", -np.exp(-log_scale) * shift)
        terms = np.concatenate([np.log(np.linalg.svd(matrix)[1]), log_scale])
        # The tolerance is made relative to the sum of the terms' magnitudes, because the terms can add up to nearly 0.
        scale = (channels + np.abs(terms).sum()) / max(abs(terms.sum()), np.finfo(float).tiny)
        self._expect(f"{step}/log_det", terms.sum(), _ROUNDING * scale)

    def _expect_convolution(self, block: str, kind: str, arrays: Arrays) -> None:
        name, norm_name = _CONVOLUTIONS[kind]
        norm, block_name = self._layers[f"{block}/{norm_name}"], block.rpartition("/")[2]
        epsilon, strides = self._blocks[block_name]
        deviation = np.sqrt(norm["moving_variance"] + epsilon)
        kernel, scale = arrays["kernel"], norm["gamma"] / deviation
        bias = norm["beta"] - norm["gamma"] * norm["moving_mean"] / deviation
        if block_name.startswith("up_"):
            strides = 1 if name == "second" else strides
            kernel, scale, bias = (
                _as_plain_convolution(kernel, strides),
                np.tile(scale, strides**2),
                np.tile(bias, strides**2),
            )
        self._expect_linear(f"{block}/{name}", kernel * scale, bias)

    def _expect_classes(self, arrays: Arrays) -> None:
        if "embedding" in arrays:
            h = arrays["embedding"]
            for name in ("first", "second", "last"):
                h = h @ arrays[name] + arrays[f"{name}_bias"]
                h = h if name == "last" else np.where(h > 0, h, np.expm1(np.minimum(h, 0)))
            self._expect("classes/codes", h, _SINGLE)
        else:
            self._expect("classes/scale", np.exp(arrays["log_scale"]))
            self._expect("classes/unscale", np.exp(-arrays["log_scale"]))
            self._expect("classes/shift", arrays["shift"])
            self._expect("classes/log_det", arrays["log_scale"].sum(1))


def _fold_weight_norm(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    direction = arrays["last_direction"]
    norms = np.linalg.norm(direction.reshape(-1, direction.shape[-1]), axis=0)
    return direction / norms * arrays["last_gain"], arrays["last_bias"]


def _as_plain_convolution(kernel: np.ndarray, strides: int) -> np.ndarray:
    size, _, outputs, inputs = kernel.shape
    spread = np.zeros((inputs, 3 * strides, 3 * strides, outputs))
    place = slice(strides - size // 2, strides - size // 2 + size)
    spread[:, place, place] = kernel.transpose(3, 0, 1, 2)
    parts = spread.reshape(inputs, 3, strides, 3, strides, outputs).transpose(1, 3, 0, 2, 4, 5)[::-1, ::-1]
    return parts.reshape(3, 3, inputs, -1)
