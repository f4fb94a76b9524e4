"""The weights of a trained model, folded for inference: everything that depends on weights alone is computed here.

Weight normalisation, batch normalisation, actnorms, 1x1 convolutions, the inverses of these, and permutations of
channels are linear maps of known numbers. They are multiplied together in float64 and rounded once to float32, so that
an exported graph holds convolutions, couplings and nothing else, in both directions:

- actnorm, then 1x1 convolution: one 1x1 convolution with a bias, and its inverse;
- the actnorm between the two pairs of couplings moves backwards through the first pair: its scale into the 1x1
  convolution and the kernels that read or write scaled channels, its shift into the bias of the last coupling before
  it. Only the shift of channels that this coupling reads stays an addition of its own;
- the alternate split (paper Figure 3b) asks for even and odd channels. The 1x1 convolution before it writes, within
  each half, even channels first, and the one after it reads them in the order they come in: no channel is moved.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tfdecouple.config import ModelConfig
from tfdecouple.errors import InversionError
from tfdecouple.layers import Coupling, InvertibleConv1x1
from tfdecouple.layers.nets import WeightNorm
from tfdecouple.model import DecoupledModel
from tfdecouple.networks.encoder import Encoder
from tfdecouple.networks.flow import FactorOut, FlowStep

LAYOUTS = ("NHWC", "NCHW")


@dataclasses.dataclass(frozen=True)
class FoldedCoupling:
    """y_b = s(x_a, z) * x_b + b(x_a, z). Names of weights; the net gives b first and then the raw scale.

    Attributes:
        name: prefix of the names of its weights, `NAME/first`, `NAME/second`, `NAME/last`, `NAME/last_bias`, and for
            vectors `NAME/first_bias` and `NAME/second_bias` too.
        transformed: number of channels of x_b.
        affine: whether there is a scale.
        alpha: its bound. Below 1 the raw scale is already halved: s = 1 + alpha*tanh(raw).
        condition: place of its net among the nets that z conditions, or None.
    """

    name: str
    transformed: int
    affine: bool
    alpha: float
    condition: int | None


@dataclasses.dataclass(frozen=True)
class FoldedStep:
    """1x1 convolution, two couplings, a shift of the channels that the second left alone, two couplings.

    The channels are in blocks: low (transformed by the second of a pair of couplings), with an odd number of channels
    a middle that none transforms, and high (transformed by the first).

    Attributes:
        name: prefix of `NAME/mix`, `NAME/mix_bias`, `NAME/unmix`, `NAME/unmix_bias`, and of the shifts
            `NAME/shift_middle` (with an odd number of channels) and `NAME/shift_high`.
        sizes: channels of the blocks, low to high.
        even_low: how many channels of low are even ones; 0 where the second pair splits as the first does.
        even_high: the same of high.
        couplings: the four, in the forward direction.
        log_det: log |det| of all that is not a coupling, at one position of the image.
    """

    name: str
    sizes: tuple[int, ...]
    even_low: int
    even_high: int
    couplings: tuple[FoldedCoupling, ...]
    log_det: float

    @property
    def regroups(self) -> bool:
        """Whether the second pair of couplings splits the channels another way than the first."""
        return self.even_low > 0


@dataclasses.dataclass(frozen=True)
class FoldedFactorOut:
    """1x1 convolution and a coupling of the channels that leave, the last `coupling.transformed` ones.

    Attributes:
        name: prefix of `NAME/mix`, `NAME/mix_bias`, `NAME/unmix`, `NAME/unmix_bias`.
        kept: channels that stay.
        coupling: of those that leave.
        log_det: as in `FoldedStep`.
    """

    name: str
    kept: int
    coupling: FoldedCoupling
    log_det: float


@dataclasses.dataclass(frozen=True)
class FoldedPart:
    """Steps of one channel count and what leaves after them.

    Attributes:
        layers: in the forward direction.
        channels: of the steps.
        dropped: channels that leave at the end.
    """

    layers: tuple[FoldedStep | FoldedFactorOut, ...]
    channels: int
    dropped: int


@dataclasses.dataclass(frozen=True)
class FoldedBlock:
    """A ResNet block of the encoder: names `NAME/{first,second,shortcut}` and their biases.

    Attributes:
        name: prefix of the names.
        strides: 1 or 2.
        shortcut: whether the shortcut has a convolution.
    """

    name: str
    strides: int
    shortcut: bool


@dataclasses.dataclass(frozen=True)
class FoldedModel:
    """What an exported graph is built from.

    Attributes:
        config: the architecture.
        layout: the order of axes within the graph: the flattened weights depend on it.
        levels: the flow's parts, level by level.
        last_order: order of the channels as the last step leaves them: position -> channel; None if in order.
        prior: the steps of the prior flow, or () for a standard normal prior or no z.
        prior_order: as `last_order`, of the prior flow.
        encoder: the encoder's blocks, or () without z.
        condition_sizes: hidden widths of the nets that z conditions, in the order of `FoldedCoupling.condition`.
        whitening: whether v is whitened by z (the paper's Table 3 baseline).
        arrays: every weight by its name, float32.
    """

    config: ModelConfig
    layout: str
    levels: tuple[tuple[FoldedPart, ...], ...]
    last_order: np.ndarray | None
    prior: tuple[FoldedStep, ...]
    prior_order: np.ndarray | None
    encoder: tuple[FoldedBlock, ...]
    condition_sizes: tuple[int, ...]
    whitening: bool
    arrays: dict[str, np.ndarray]


def fold(model: DecoupledModel, layout: str = "NHWC") -> FoldedModel:
    """Folds the weights of an initialised model.

    Args:
        model: the model.
        layout: "NHWC", or "NCHW" as ONNX has it.

    Raises:
        NotInitializedError: for a model without weights.
        InversionError: where a matrix cannot be inverted.
    """
    model.require_initialized()
    return _Folding(model, layout).result()


def _values(variable: Any) -> np.ndarray:
    return np.asarray(variable, np.float64)


def _normalised(weights: WeightNorm) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of a weight-normalised layer, float64."""
    direction = _values(weights.direction)
    norm = np.sqrt(np.sum(np.square(direction), axis=tuple(range(direction.ndim - 1))))
    return direction * (_values(weights.gain) / norm), _values(weights.bias)


class _Folding:
    """One pass over a model, which collects arrays."""

    def __init__(self, model: DecoupledModel, layout: str):
        self.model = model
        self.layout = layout
        self.arrays: dict[str, np.ndarray] = {}
        self.condition_kernels: list[np.ndarray] = []
        self.condition_biases: list[np.ndarray] = []

    def result(self) -> FoldedModel:
        levels = []
        order = np.arange(3)
        for depth, level in enumerate(self.model.flow.levels):
            if depth:
                # The four sub-pixels are the slow index of the new channels, the old channel the fast one.
                order = np.concatenate([sub_pixel * len(order) + order for sub_pixel in range(4)])
            parts = []
            for part in level:
                layers: list[FoldedStep | FoldedFactorOut] = []
                for layer in part.layers:
                    name = f"flow/{layer.name}"
                    if isinstance(layer, FactorOut):
                        folded_factor_out, order = self._factor_out(name, layer, order)
                        layers.append(folded_factor_out)
                    else:
                        folded_step, order = self._step(name, layer, order)
                        layers.append(folded_step)
                parts.append(FoldedPart(tuple(layers), part.plan.channels, part.plan.dropped))
                order = order[: part.plan.kept]
            levels.append(tuple(parts))
        prior, prior_order = [], np.arange(self.model.config.latent_dim)
        if self.model.prior_flow is not None:
            for layer in self.model.prior_flow.sequence:
                step, prior_order = self._step(f"prior/{layer.name}", layer, prior_order)
                prior.append(step)
        if self.condition_kernels:
            self._put("flow/condition", np.concatenate(self.condition_kernels, 1))
            self._put("flow/condition_bias", np.concatenate(self.condition_biases))
        if self.model.flow.whitening is not None:
            self._whitening(self.model.flow.whitening)
        return FoldedModel(
            config=self.model.config,
            layout=self.layout,
            levels=tuple(levels),
            last_order=_unless_sorted(order),
            prior=tuple(prior),
            prior_order=_unless_sorted(prior_order),
            encoder=() if self.model.encoder is None else self._encoder(self.model.encoder),
            condition_sizes=tuple(len(bias) for bias in self.condition_biases),
            whitening=self.model.flow.whitening is not None,
            arrays=self.arrays,
        )

    def _put(self, name: str, value: np.ndarray) -> None:
        if not np.all(np.isfinite(value)):
            raise InversionError(f"weight {name} is not finite; the run has diverged and cannot be exported")
        self.arrays[name] = np.ascontiguousarray(value, np.float32)

    def _linear(self, name: str, matrix: np.ndarray, bias: np.ndarray, images: bool) -> None:
        """Keeps y = matrix @ x + bias and its inverse, as kernels whose inputs come first."""
        try:
            inverse = np.linalg.inv(matrix)
        except np.linalg.LinAlgError as error:
            raise InversionError(f"the matrix of {name} cannot be inverted; the run cannot be exported") from error
        place = (None, None) if images else ()
        for key, value, shift in (("mix", matrix, bias), ("unmix", inverse, -inverse @ bias)):
            self._put(f"{name}/{key}", value.T[place] if images else value.T)
            self._put(f"{name}/{key}_bias", shift)

    def _step(self, name: str, step: FlowStep, order: np.ndarray) -> tuple[FoldedStep, np.ndarray]:
        """Folds a step whose input channels come in `order`; returns the order of its output channels too."""
        actnorm_1, linear, last_1, first_1, actnorm_2, last_2, first_2 = step.sequence
        channels = len(order)
        half = channels // 2
        matrix = _values(linear.matrix())
        scale_1, shift_1 = np.exp(_values(actnorm_1.log_scale)), _values(actnorm_1.bias)
        scale_2, shift_2 = np.exp(_values(actnorm_2.log_scale)), _values(actnorm_2.bias)
        regroups = channels % 2 == 0
        blocks = [np.arange(half), np.arange(half, channels - half), np.arange(channels - half, channels)]
        even_low = even_high = 0
        if regroups:
            even_low, even_high = (int(np.sum(blocks[side] % 2 == 0)) for side in (0, 2))
            blocks = [np.concatenate([block[block % 2 == 0], block[block % 2 == 1]]) for block in blocks]
        low, middle, high = blocks
        within = np.concatenate(blocks)
        images = isinstance(linear, InvertibleConv1x1)
        effective = scale_2[:, None] * matrix * scale_1
        self._linear(name, effective[within][:, order], (scale_2 * (matrix @ shift_1))[within], images)
        kept_by_last, kept_by_first = np.concatenate([low, middle]), np.concatenate([middle, high])
        couplings = [
            self._coupling(
                f"{name}/{last_1.name}", last_1, kept_by_last, high, kept_scale=scale_2, scale=scale_2, shift=None
            ),
            self._coupling(
                f"{name}/{first_1.name}", first_1, kept_by_first, low, kept_scale=scale_2, scale=scale_2, shift=shift_2
            ),
        ]
        for block, channels_of_block in (("middle", middle), ("high", high)):
            shift = shift_2[channels_of_block]
            if len(shift):
                self._put(f"{name}/shift_{block}", shift[:, None, None] if images and self.layout == "NCHW" else shift)
        sizes: tuple[int, ...]
        if regroups:
            even, odd = np.arange(0, channels, 2), np.arange(1, channels, 2)
            couplings += [
                self._coupling(f"{name}/{last_2.name}", last_2, even, odd),
                self._coupling(f"{name}/{first_2.name}", first_2, odd, even),
            ]
            sizes, out_order = (len(low), len(high)), np.concatenate([even, odd])
        else:
            couplings += [
                self._coupling(f"{name}/{last_2.name}", last_2, kept_by_last, high),
                self._coupling(f"{name}/{first_2.name}", first_2, kept_by_first, low),
            ]
            sizes, out_order = (len(low), len(middle), len(high)), within
        log_det = (
            np.sum(_values(actnorm_1.log_scale)) + np.linalg.slogdet(matrix)[1] + np.sum(_values(actnorm_2.log_scale))
        )
        return FoldedStep(name, sizes, even_low, even_high, tuple(couplings), float(log_det)), out_order

    def _factor_out(self, name: str, layer: FactorOut, order: np.ndarray) -> tuple[FoldedFactorOut, np.ndarray]:
        channels, kept = len(order), len(order) - layer.dropped
        matrix = _values(layer.mixing.matrix())
        scale, shift = np.ones(channels), np.zeros(channels)
        scale[kept:], shift[kept:] = np.exp(_values(layer.actnorm.log_scale)), _values(layer.actnorm.bias)
        self._linear(name, (scale[:, None] * matrix)[:, order], np.zeros(channels), images=True)
        coupling = self._coupling(
            f"{name}/coupling", layer.coupling, np.arange(kept), np.arange(kept, channels), scale=scale, shift=shift
        )
        log_det = np.linalg.slogdet(matrix)[1] + np.sum(np.log(scale))
        return FoldedFactorOut(name, kept, coupling, float(log_det)), np.arange(channels)

    def _coupling(
        self,
        name: str,
        layer: Coupling,
        kept: np.ndarray,
        transformed: np.ndarray,
        *,
        kept_scale: np.ndarray | None = None,
        scale: np.ndarray | None = None,
        shift: np.ndarray | None = None,
    ) -> FoldedCoupling:
        """Folds a coupling whose parts come as the channels `kept` and `transformed`, in these orders.

        Args:
            name: prefix of the weights.
            layer: the coupling.
            kept: channels of x_a.
            transformed: channels of x_b.
            kept_scale: per channel, the factor that x_a already carries and the net must not see.
            scale: per channel, the factor that x_b already carries and b must get.
            shift: per channel, what is to be added to the result.
        """
        net = layer.net
        count = len(transformed)
        first = _values(net.first)
        # The net knows its channels in ascending order.
        first = first[..., np.argsort(np.argsort(kept)), :]
        if kept_scale is not None:
            first = first / kept_scale[kept][:, None]
        last, bias = _normalised(net.last)
        places = np.argsort(np.argsort(transformed))
        affine = layer.transform == "affine"
        b_kernel, b_bias = last[..., places], bias[places]
        if scale is not None:
            b_kernel, b_bias = b_kernel * scale[transformed], b_bias * scale[transformed]
        if shift is not None:
            b_bias = b_bias + shift[transformed]
        if affine:
            half = 1.0 if layer.alpha == 1 else 0.5
            b_kernel = np.concatenate([b_kernel, half * last[..., count + places]], -1)
            b_bias = np.concatenate([b_bias, half * bias[count + places]])
        self._put(f"{name}/first", first)
        self._put(f"{name}/second", _values(net.second))
        self._put(f"{name}/last", b_kernel)
        self._put(f"{name}/last_bias", b_bias)
        condition = None
        if hasattr(net, "first_bias"):
            self._put(f"{name}/first_bias", _values(net.first_bias))
            self._put(f"{name}/second_bias", _values(net.second_bias))
        elif net.condition_size:
            condition = len(self.condition_kernels)
            self.condition_kernels.append(_values(net.condition_kernel))
            self.condition_biases.append(_values(net.condition_bias))
        return FoldedCoupling(name, count, affine, layer.alpha, condition)

    def _whitening(self, layer: Any) -> None:
        self._put("flow/whitening/first", _values(layer.first))
        self._put("flow/whitening/first_bias", _values(layer.first_bias))
        kernel, bias = _normalised(layer.last)
        if self.layout == "NCHW":
            # For mean and for log-scale: from rows of pixels to planes of colours.
            every = np.arange(len(bias)).reshape(2, *self.model.config.image_shape).transpose(0, 3, 1, 2).ravel()
            kernel, bias = kernel[:, every], bias[every]
        self._put("flow/whitening/last", kernel)
        self._put("flow/whitening/last_bias", bias)

    def _encoder(self, encoder: Encoder) -> tuple[FoldedBlock, ...]:
        blocks = []
        for block in encoder.blocks:
            name = f"encoder/{block.name}"
            self._normalised_convolution(f"{name}/first", block.convolution_1, block.norm_1)
            self._normalised_convolution(f"{name}/second", block.convolution_2, block.norm_2)
            if block.shortcut:
                self._normalised_convolution(f"{name}/shortcut", *block.shortcut)
            blocks.append(FoldedBlock(name, block.strides, bool(block.shortcut)))
        self._put("encoder/top", _values(encoder.top.kernel))
        self._put("encoder/top_bias", _values(encoder.top.bias))
        kernel, bias = _normalised(encoder.last)
        if self.layout == "NCHW":
            side = self.model.config.image_size // 2 ** len(encoder.channels)
            every = np.arange(len(kernel)).reshape(side, side, encoder.out_channels).transpose(2, 0, 1).ravel()
            kernel = kernel[every]
        self._put("encoder/last", kernel)
        self._put("encoder/last_bias", bias)
        return tuple(blocks)

    def _normalised_convolution(self, name: str, convolution: Any, norm: Any) -> None:
        scale = _values(norm.gamma) / np.sqrt(_values(norm.moving_variance) + norm.epsilon)
        self._put(name, _values(convolution.kernel) * scale)
        self._put(f"{name}_bias", _values(norm.beta) - _values(norm.moving_mean) * scale)


def _unless_sorted(order: np.ndarray) -> np.ndarray | None:
    return None if np.array_equal(order, np.arange(len(order))) else order
