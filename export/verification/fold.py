"""What every deployed weight must be, by formulas that share nothing with `export.deployed` but the names.

A fault in the fold would be in every file, and move no pixel where one weight of many is off. So each deployed weight
is compared with the variables of the checkpoint, by their paths alone; and by digests each file with what was compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from export.deployed.deployed_model import DeployedModel
from export.verification.archive import digest
from export.verification.gate import RefusedError, listed
from tfdecouple.model import DecoupledModel

Arrays = dict[str, np.ndarray]

# How far a weight may be off: relative to itself, since it is rounded to float32, and to the largest of its array.
_ROUNDING, _FLOOR = 1e-6, 1e-9
# The same floor for what the model itself computes in float32, times the condition number of a matrix.
_SINGLE = 1e-6
# Names of a block's convolutions, in the checkpoint and as they are deployed, and their normalisations.
_CONVOLUTIONS = {
    "convolution_1": ("first", "norm_1"),
    "convolution_2": ("second", "norm_2"),
    "shortcut_convolution": ("shortcut", "shortcut_norm"),
}


def weight_digests(model: DecoupledModel, layouts: Sequence[str]) -> Arrays:
    """Returns `weights/LAYOUT` of the cases: the digests of all deployed weights, in each order of axes.

    Raises:
        RefusedError: where a deployed weight is not the model's.
    """
    found: Arrays = {}
    problems: list[str] = []
    for layout in layouts:
        deployed = DeployedModel.from_model(model, layout)
        problems += weight_problems(model, deployed)
        found[f"weights/{layout}"] = np.array(sorted(map(digest, deployed.arrays().values())))
    if problems:
        raise RefusedError(f"not published: {listed(problems)}")
    return found


def weight_problems(model: DecoupledModel, deployed: DeployedModel) -> Iterator[str]:
    """Yields what is wrong with deployed weights, a line for each that is not the model's."""
    numbers = {f"{one.name}/log_det": getattr(one, "log_det", None) for one in deployed.layers()}
    found = deployed.arrays() | {name: one for name, one in numbers.items() if isinstance(one, float)}
    expected = _Fold(model, deployed.layout.order == "NCHW").weights()
    for name in sorted({*found} ^ {*expected}):
        yield f"weight {name} is deployed and not the model's" if name in found else f"weight {name} is not deployed"
    for name in sorted({*found} & {*expected}):
        right, floor = expected[name]
        array = np.asarray(found[name], np.float64)
        if array.size != right.size or (array.ndim > 1 and right.ndim > 1 and array.shape != right.shape):
            yield f"deployed weight {name} has the shape {list(array.shape)}; the model's has {list(right.shape)}"
            continue
        off = np.abs(array.ravel() - right.ravel())
        largest = np.abs(right).max(initial=0)
        wrong = ~(off <= _ROUNDING * np.abs(right.ravel()) + floor * largest)
        if wrong.any():
            yield (
                f"{wrong.sum()} of {wrong.size} numbers of deployed weight {name} are not the model's, by up to "
                f"{off[wrong].max():.1e} where the largest is {largest:.1e}"
            )


class _Fold:
    """The deployed weights of a model in float64, each with the share of its largest number that it may be off by."""

    def __init__(self, model: DecoupledModel, channels_first: bool):
        self._model, self._channels_first = model, channels_first
        # {path of a layer: {name of a weight: array}}, in the order of the layers.
        self._layers: dict[str, Arrays] = {}
        for path, variable in model.named_variables().items():
            layer, _, name = path.replace("prior_flow/", "prior/").rpartition("/")
            if layer:
                self._layers.setdefault(layer, {})[name] = np.asarray(variable, np.float64)
        self._found: dict[str, tuple[np.ndarray, float]] = {}

    def weights(self) -> dict[str, tuple[np.ndarray, float]]:
        """Returns them by name."""
        for layer, own in self._layers.items():
            parent, _, kind = layer.rpartition("/")
            if kind == "linear":
                self._add_mix(parent, own)
            elif kind == "net" and not self._is_unfolded(layer):
                self._add_net(parent, own)
            elif kind in _CONVOLUTIONS:
                self._add_convolution(parent, kind, own)
            elif kind.startswith("actnorm"):
                self._add_actnorm(layer, own)
            elif layer == "flow/whitening":
                self._add_dense(f"{layer}/first", own["first"], own["first_bias"])
                self._add_dense(f"{layer}/last", *(self._last_first(one) for one in _normalised(own)))
            elif layer == "encoder":
                kernel, bias = _normalised(own)
                self._add_dense("encoder/last", self._rows_first(kernel), bias)
            elif layer == "encoder/top":
                self._add_dense(layer, own["kernel"], own["bias"])
            elif layer in ("class_codes", "prior_affine"):
                self._add_classes(own)
            elif "norm" not in kind:
                for name, array in own.items():
                    self._add(f"{layer}/{name}/value", array)
        self._add_conditions()
        if self._model.config.has_classes:
            shares = np.asarray(self._model.config.label_shares, np.float64)
            self._add("classes/log_probabilities", np.log(shares / shares.sum()), _SINGLE)
        return self._found

    def _add(self, name: str, array: np.ndarray, floor: float = _FLOOR) -> None:
        self._found[name] = (np.asarray(array), floor)

    def _add_dense(self, name: str, kernel: np.ndarray, bias: np.ndarray | None) -> None:
        self._add(f"{name}/kernel", kernel)
        if bias is not None:
            self._add(f"{name}/bias", bias)

    def _add_mix(self, step: str, own: Arrays) -> None:
        """W (e^s x + b) and e^-s (W^-1 y - b), of an actnorm and a linear map."""
        floor = _FLOOR
        if "kernel" in own:
            matrix = own["kernel"]
        else:
            lower, upper = np.tril(own["factors"], -1) + np.eye(len(own["factors"])), np.triu(own["factors"])
            matrix = (lower @ upper)[np.argsort(own["permutation"].astype(int))]
            floor = _SINGLE * np.linalg.cond(matrix)
        channels = len(matrix)
        actnorm = self._layers.get(f"{step}/actnorm_1")
        log_scale, shift = (actnorm["log_scale"], actnorm["bias"]) if actnorm else np.zeros((2, channels))
        shape = (1, 1, channels, channels) if "flow/" in step else (channels, channels)
        self._add(f"{step}/mix/kernel", np.einsum("oi,i->io", matrix, np.exp(log_scale)).reshape(shape), floor)
        self._add(f"{step}/mix/bias", matrix @ shift, floor)
        inverse = np.linalg.solve(matrix.T, np.diag(np.exp(-log_scale)))
        self._add(f"{step}/unmix/kernel", inverse.reshape(shape), floor)
        self._add(f"{step}/unmix/bias", -np.exp(-log_scale) * shift, floor)
        terms = np.concatenate([np.log(np.linalg.svd(matrix)[1]), log_scale])
        # The sum may come near 0; each singular value, and so each term, is off by as much as the matrix is.
        scale = (channels + np.abs(terms).sum()) / max(abs(terms.sum()), np.finfo(float).tiny)
        self._add(f"{step}/log_det", terms.sum(), max(floor, _ROUNDING) * scale)

    def _add_actnorm(self, layer: str, own: Arrays) -> None:
        step, _, kind = layer.rpartition("/")
        if kind == "actnorm_1":
            return
        # Of channels that leave: the others stay as they are.
        linear = self._layers[f"{step}/linear"]
        stay = len(linear["kernel" if "kernel" in linear else "factors"]) - len(own["bias"])
        self._add(f"{layer}/scale", np.exp(np.pad(own["log_scale"], (stay, 0))))
        self._add(f"{layer}/bias", np.pad(own["bias"], (stay, 0)))
        self._add(f"{layer}/log_det", own["log_scale"].sum(), _ROUNDING)

    def _add_net(self, coupling: str, own: Arrays) -> None:
        for name in ("first", "second"):
            self._add_dense(f"{coupling}/{name}", own[name], own.get(f"{name}_bias"))
        self._add_dense(f"{coupling}/last", *_normalised(own))
        if "condition_kernel" in own and own["condition_kernel"].ndim == 4:
            self._add_dense(f"{coupling}/condition", own["condition_kernel"], own["condition_bias"])

    def _is_unfolded(self, net: str) -> bool:
        """Returns whether a coupling net is another than the paper's, deployed with its weights as they are."""
        return net.startswith("flow/") and self._model.config.conditioner != "convolutional"

    def _add_conditions(self) -> None:
        """What z is multiplied with for all nets, one after the other."""
        nets = [
            own
            for layer, own in self._layers.items()
            if layer.startswith("flow/") and "condition_kernel" in own and not self._is_unfolded(layer)
        ]
        if nets:
            kernel, bias = (
                np.concatenate([own[f"condition_{what}"] for own in nets], -1) for what in ("kernel", "bias")
            )
            self._add_dense("flow/condition", kernel, bias)

    def _add_convolution(self, block: str, kind: str, own: Arrays) -> None:
        """A convolution and its batch normalisation by the moving statistics."""
        name, norm = _CONVOLUTIONS[kind]
        of_norm = self._layers[f"{block}/{norm}"]
        deviation = np.sqrt(of_norm["moving_variance"] + self._epsilon)
        scale = of_norm["gamma"] / deviation
        bias = of_norm["beta"] - of_norm["gamma"] * of_norm["moving_mean"] / deviation
        if block.rpartition("/")[2].startswith("up_"):
            strides = self._strides[block.rpartition("/")[2]] if name != "second" else 1
            kernel, bias = _plain(own["kernel"], strides), np.tile(bias, strides**2)
            self._add_dense(f"{block}/{name}/plain", kernel * np.tile(scale, strides**2), bias)
        else:
            self._add_dense(f"{block}/{name}", own["kernel"] * scale, bias)

    def _add_classes(self, own: Arrays) -> None:
        if "embedding" in own:
            h = own["embedding"]
            for name in ("first", "second", "last"):
                h = h @ own[name] + own[f"{name}_bias"]
                h = h if name == "last" else np.where(h > 0, h, np.expm1(np.minimum(h, 0)))
            self._add("classes/codes", h, _SINGLE)
        else:
            self._add("classes/scale", np.exp(own["log_scale"]))
            self._add("classes/unscale", np.exp(-own["log_scale"]))
            self._add("classes/shift", own["shift"])
            self._add("classes/log_det", own["log_scale"].sum(1))

    def _rows_first(self, kernel: np.ndarray) -> np.ndarray:
        """The rows of a product behind flattened maps, `[height * width * channels, ...]`, in the order of the axes."""
        if not self._channels_first:
            return kernel
        channels = self._layers["encoder/top"]["bias"].size
        return kernel.reshape(-1, channels, kernel.shape[1]).swapaxes(0, 1).reshape(kernel.shape)

    def _last_first(self, array: np.ndarray) -> np.ndarray:
        """The columns of the whitening, mean and log-scale of `[height, width, channels]`, in the order of the axes."""
        if not self._channels_first:
            return array
        shape = (*array.shape[:-1], 2, -1, self._model.config.image_shape[-1])
        return array.reshape(shape).swapaxes(-1, -2).reshape(array.shape)

    @property
    def _epsilon(self) -> float:
        dequantizer = self._model.dequantizer
        encoder = self._model.encoder or (dequantizer and dequantizer.encoder)
        assert encoder is not None
        return encoder.blocks[0].norm_1.epsilon

    @property
    def _strides(self) -> Mapping[str, int]:
        assert self._model.dequantizer is not None
        return {block.name: block.strides for block in self._model.dequantizer.encoder.blocks}


def _normalised(own: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Kernel g V / ||V|| and bias of a weight-normalised layer."""
    direction = own["last_direction"]
    outputs = direction.shape[-1]
    norms = np.linalg.norm(direction.reshape(-1, outputs), axis=0)
    return direction / norms * own["last_gain"], own["last_bias"]


def _plain(kernel: np.ndarray, strides: int) -> np.ndarray:
    """The plain convolution that is a transposed one: what that makes of the middle one of 3 x 3 pixels."""
    size, _, outputs, inputs = kernel.shape
    made = np.zeros((inputs, 3 * strides, 3 * strides, outputs))
    place = slice(strides - size // 2, strides - size // 2 + size)
    made[:, place, place] = kernel.transpose(3, 0, 1, 2)
    parts = made.reshape(inputs, 3, strides, 3, strides, outputs).transpose(1, 3, 0, 2, 4, 5)[::-1, ::-1]
    return parts.reshape(3, 3, inputs, -1)
