"""The model of an export: the model's own computations, on networks whose weights are folded."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from export.endpoint_functions import EndpointFunctions
from export.endpoints import list_endpoints
from export.folding import Constant, ExportKernels, ExportMode, TracedNetwork, find_difference, trace_network
from tfdecouple.model import DecoupledModel
from tfdecouple.model.base_model import require_initialized
from tfdecouple.numerics.kernels import Kernels
from tfdecouple.storage.files import Facts

# The attributes of a `DecoupledModel` that are networks.
_NETWORKS = ("flow", "encoder", "prior_flow", "prior_affine", "code_net", "dequantizer")
# In float64 a folded method may differ from the model's by 1000 times as much as the model's own result changes when
# all weights become larger by 2^-50. These are the least and the largest allowed difference, relative to the norm.
_LEAST_TOLERANCE, _MOST_TOLERANCE = 1e-12, 1e-9


class _Method(NamedTuple):
    """A method of a network, traced and folded; `names` is {constant of `folded`: name of its weight}."""

    traced: TracedNetwork
    folded: TracedNetwork
    names: Mapping[str, str]


class _ExportedNetwork(types.SimpleNamespace):
    """A network of an export: its methods are the folded methods of a network of the model."""

    def __call__(self, *inputs: tf.Tensor) -> Any:
        return self.call(*inputs)


class ExportedModel:
    """The folded networks of a model, from which the graphs of all endpoints (such as "encode") are made.

    With `channels_first` the graphs are for ONNX files, in which maps have their channels first; with `any_size` the
    flow takes images of any height and width. The traces of `other`, an export with the other layout, are used again.
    InversionError is raised if the matrix of a 1x1 convolution cannot be inverted, or a weight is not finite.

    Attributes:
        endpoints: the endpoints of the model.
        weights: {name: constant in float64}; equal constants of several methods have one name.
    """

    def __init__(
        self,
        model: DecoupledModel,
        channels_first: bool = False,
        any_size: bool = False,
        other: ExportedModel | None = None,
    ):
        require_initialized(model)
        self.endpoints = list_endpoints(model.config, any_size)
        self.weights: dict[str, Constant] = {}
        self._model = model
        self._names: dict[bytes, str] = {}
        self._methods: dict[tuple[str, str], _Method] = {}
        self._sizes = {path: math.prod(variable.shape) for path, variable in model.named_variables().items()}
        traced = {key: m.traced for key, m in other._methods.items()} if other else _trace(model, any_size, Kernels())
        for key, folded in _trace(model, any_size, ExportKernels(channels_first)).items():
            weights = {tensor: constant for tensor, constant in folded.constants.items() if constant.is_weight}
            names = {tensor: self._name_weight(constant) for tensor, constant in weights.items()}
            self._methods[key] = _Method(traced[key], folded, names)

    def _name_weight(self, constant: Constant) -> str:
        key = repr(constant.values.shape).encode() + constant.values.tobytes()
        if key not in self._names:
            paths = sorted(constant.sources) or ["constant"]
            name = next((path for path in paths if self._sizes.get(path) == constant.values.size), paths[0])
            number = sum(other.partition("#")[0] == name for other in self.weights)
            self._names[key] = f"{name}#{number}" if number else name
            self.weights[self._names[key]] = constant
        return self._names[key]

    def collect_arrays(self) -> dict[str, np.ndarray]:
        """Returns {name: array} of the weights, rounded to float32."""
        return {name: np.asarray(constant.values, np.float32) for name, constant in self.weights.items()}

    def find_faults(self) -> Iterator[str]:
        """Compares each folded method of a network with the model's; yields a line for each that differs.

        Both run in float64 on the same random inputs, and may differ by at most 1e-9 of the norm of a result.
        """
        rng, image_shape = np.random.default_rng(0), self._model.config.image_shape
        for (network, method), (traced, folded, names) in self._methods.items():
            # With labels as inputs, there is an image of each label.
            count = self._model.config.classes if any(tensor.dtype == tf.int32 for tensor in traced.inputs) else 2
            inputs = [
                np.arange(count, dtype=np.int32)
                if tensor.dtype == tf.int32
                else rng.standard_normal((count, *(image_shape if tensor.shape.rank == 4 else tensor.shape[1:])))
                for tensor in traced.inputs
            ]
            weights = {tensor: self.weights[name].values for tensor, name in names.items()}
            difference = find_difference(traced, folded, weights, inputs)
            rounded = {tensor.name: values * (1 + 2**-50) for tensor, values in traced.weights.values()}
            rounding = find_difference(traced, traced, rounded, inputs)
            if not difference <= np.clip(1000 * rounding, _LEAST_TOLERANCE, _MOST_TOLERANCE):
                yield f"{network}.{method} as folded is not the model's: it differs by {difference:.1e} of the norm"

    def make_answers(self, read: Callable[[str], tf.Tensor], shared: bool = False) -> EndpointFunctions:
        """Returns the functions of which endpoints are made, for code that builds a graph.

        `read` returns the tensor of the weight of a name, in the caller's graph. If `shared`, a graph that calls a
        method of a network several times contains it once, as a `tf.function`.
        """
        networks: dict[str, Facts] = {}
        for (network, name), method in self._methods.items():

            def read_weight(tensor: str, names: Mapping[str, str] = method.names) -> tf.Tensor:
                return read(names[tensor])

            call = functools.partial(method.folded.call, read_weight)
            run = tf.function(call, autograph=False) if shared else call
            # Other arguments, such as None for a condition or a runner, would make another trace of a function.
            networks.setdefault(network, {})[name] = lambda *inputs, run=run: run(*filter(tf.is_tensor, inputs))
        made = {name: _ExportedNetwork(**methods) for name, methods in networks.items()}
        # Parts of v are split without weights.
        made["flow"].split_v = self._model.flow.split_v
        same = {name: getattr(self._model, name) for name in ("config", "quantizer", "any_size")}
        return EndpointFunctions(types.SimpleNamespace(**{**dict.fromkeys(_NETWORKS), **made, **same}))


def _trace(model: DecoupledModel, any_size: bool, kernels: Kernels) -> dict[tuple[str, str], TracedNetwork]:
    """Returns {(network, method): trace} of all methods that endpoints call."""
    paths = {id(variable): path for path, variable in model.named_variables().items()}
    runner, traced = functools.partial(model.flow.runner, mode=ExportMode(kernels)), {}
    for network, method, specs in _list_methods(model, any_size):
        layer = getattr(model, network)
        variables = {paths[id(variable)]: variable for variable in layer.variables}
        options = {"runner": runner} if network in ("flow", "prior_flow", "encoder", "dequantizer") else {}
        run = functools.partial(getattr(layer, method), **options)
        traced[network, method] = trace_network(functools.partial(_run_method, run, method), variables, specs, kernels)
    return traced


def _run_method(run: Callable, method: str, *inputs: tf.Tensor) -> Any:
    """Returns the results of a method that endpoints read: of an inverse, all but the log-determinant."""
    results = run(*inputs)
    return results[:1] if method == "inverse_and_log_det" else results


def _list_methods(model: DecoupledModel, any_size: bool) -> Iterator[tuple[str, str, list[tf.TensorSpec]]]:
    """Yields (network, method, specifications of the method's inputs) for all methods that endpoints call."""
    config = model.config
    image, labels = tf.TensorSpec([None, *config.image_shape]), tf.TensorSpec([None], tf.int32)
    z = [tf.TensorSpec([None, config.latent_dim])]
    x = tf.TensorSpec([None, None, None, config.image_shape[-1]]) if any_size else image
    for method in ("forward_and_log_det", "inverse_and_log_det"):
        yield "flow", method, [x, *(z if config.has_latent else [])]
        if model.prior_flow is not None:
            yield "prior_flow", method, z
    if model.encoder is not None:
        yield "encoder", "run_inference", [image]
    if model.prior_affine is not None:
        yield "prior_affine", "call", z
        yield "prior_affine", "invert_for_labels", [*z, labels]
    if model.code_net is not None:
        yield "code_net", "call", [labels]
        yield "code_net", "compute_codes", []
    if model.dequantizer is not None:
        yield "dequantizer", "call", [image, image]
