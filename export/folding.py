"""Folding: the graph of a network of the model, with everything that depends on weights alone computed in advance.

`trace_network` records the operations with which the model itself computes a method of a network, such as the flow's
`forward_and_log_det`. With `ExportKernels` these are the operations that runtimes compute fastest. The tensors that
depend on weights alone are evaluated in float64; they are the weights of an export.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdecouple.errors import InversionError
from tfdecouple.execution.run_mode import RunMode
from tfdecouple.execution.runner import run_functions_eagerly
from tfdecouple.numerics.arithmetic import get_sizes
from tfdecouple.numerics.kernels import Kernels, use_kernels
from tfdecouple.tensorflow_internals import replace_input

Array = np.ndarray


class ExportKernels(Kernels):
    """The operations of exports: convolutions with biases, into which scales, shifts and orders of channels are merged.

    What is merged becomes part of a kernel or a bias, which depends on weights alone and is computed in advance. With
    `channels_first`, channels are selected, reordered and scaled in maps whose channels come first, as in ONNX files;
    tf2onnx removes the transpositions between such operations.
    """

    def __init__(self, channels_first: bool):
        self._channels_first = channels_first
        # {result: (input, kernel, bias, step)}, {result: (input, scale, shift)}, {interleaved map: (even, odd)}
        self._linear: dict[object, tuple[tf.Tensor, tf.Tensor, tf.Tensor | None, int]] = {}
        self._affine: dict[object, tuple[tf.Tensor, tf.Tensor, tf.Tensor]] = {}
        self._pairs: dict[object, tuple[tf.Tensor, tf.Tensor]] = {}

    def convolve(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return self._map_linearly(x, kernel)

    def convolve_padded(self, x: tf.Tensor, kernel: tf.Tensor, step: int) -> tf.Tensor:
        if kernel.shape[0] > 1:
            return self._map_linearly(x, kernel, None, step)
        x, scale, shift = self._affine.get(x.ref(), (x, None, None))
        bias = None if shift is None else tf.tensordot(shift, kernel[0, 0], 1)
        kernel = kernel if scale is None else kernel * scale[:, None]
        if x.ref() in self._pairs:
            x, kernel = tf.concat(self._pairs[x.ref()], -1), _put_even_first(kernel, -2)
        return self._map_linearly(x, kernel, bias, step)

    def multiply_channels(self, x: tf.Tensor, matrix: tf.Tensor, transpose: bool, full: bool) -> tf.Tensor:
        matrix = tf.transpose(matrix) if transpose else matrix
        return tf.matmul(x, matrix) if x.shape.rank == 2 else self.convolve_padded(x, matrix[None, None], 1)

    def scale_channels(self, x: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
        if x.ref() in self._linear:
            x, kernel, bias, step = self._linear[x.ref()]
            return self._map_linearly(x, kernel * scale, shift if bias is None else bias * scale + shift, step)
        sides = [1, 1] if self._comes_first(x) else []
        y = self._put_first(x) * tf.reshape(scale, [-1, *sides]) + tf.reshape(shift, [-1, *sides])
        y = self._put_last(y)
        self._affine[y.ref()] = x, scale, shift
        return y

    def unscale_channels(self, y: tf.Tensor, factor: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
        return self.scale_channels(y, factor, -shift * factor)

    def add_bias(self, x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        return self.scale_channels(x, tf.ones_like(bias), bias)

    def select(self, labels: tf.Tensor, count: int, dtype: tf.DType) -> tf.Tensor:
        # The operator OneHot of ONNX takes an array of the two values, which would look like a weight.
        return tf.cast(tf.equal(labels[:, None], tf.range(count, dtype=labels.dtype)), dtype)

    def split_channels(self, x: tf.Tensor, counts: Sequence[int]) -> Sequence[tf.Tensor]:
        return [*map(self._put_last, tf.split(self._put_first(x), counts, 1 if self._comes_first(x) else -1))]

    def spread_vectors(self, x: tf.Tensor) -> tf.Tensor:
        sides = [x.shape[-1], 1, 1] if self._channels_first else [1, 1, x.shape[-1]]
        return self._put_last(tf.reshape(x, [-1, *sides]))

    def interleave_channels(self, even: tf.Tensor, odd: tf.Tensor) -> tf.Tensor:
        if self._channels_first:
            order = np.arange(2 * even.shape[-1]).reshape(2, -1).T.ravel()
            y = self._put_last(tf.gather(self._put_first(tf.concat([even, odd], -1)), order, axis=1))
        else:
            y = super().interleave_channels(even, odd)
        self._pairs[y.ref()] = even, odd
        return y

    def split_even_and_odd(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if x.ref() in self._pairs:
            return self._pairs[x.ref()]
        if x.ref() in self._linear:
            x, kernel, bias, step = self._linear[x.ref()]
            bias = None if bias is None else _put_even_first(bias, 0)
            y = self._map_linearly(x, _put_even_first(kernel, -1), bias, step)
            return tuple(self.split_channels(y, [y.shape[-1] // 2] * 2))
        if self._channels_first:
            first = self._put_first(x)
            return self._put_last(first[:, ::2]), self._put_last(first[:, 1::2])
        # Slices with a step along the last axis would take a hundred times as long in TensorFlow.
        return tuple(tf.unstack(tf.reshape(x, [*get_sizes(x)[:-1], x.shape[-1] // 2, 2]), axis=-1))

    def _map_linearly(self, x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None = None, step: int = 1) -> tf.Tensor:
        # A runtime pads more quickly if it need not compute the padding from the size of the image.
        y = tf.nn.conv2d(x, kernel, step, [[0, 0], *[[kernel.shape[0] // 2] * 2] * 2, [0, 0]])
        y = y if bias is None else tf.nn.bias_add(y, bias)
        self._linear[y.ref()] = x, kernel, bias, step
        return y

    def read_sizes_earlier(self, graph: tf.Graph) -> None:
        """Lets each size be read from a map before those that were merged, which then need not be computed."""
        earlier = {y: values[0] for y, values in [*self._affine.items(), *self._linear.items()]}
        for op in graph.get_operations():
            if op.type == "Shape":
                tensor = source = op.inputs[0]
                while source is not None and source.shape.as_list() == tensor.shape.as_list():
                    tensor, source = source, earlier.get(source.ref())
                replace_input(op, 0, tensor)

    def _comes_first(self, x: tf.Tensor) -> bool:
        return self._channels_first and x.shape.rank == 4

    def _put_first(self, x: tf.Tensor) -> tf.Tensor:
        return tf.transpose(x, [0, 3, 1, 2]) if self._comes_first(x) else x

    def _put_last(self, x: tf.Tensor) -> tf.Tensor:
        return tf.transpose(x, [0, 2, 3, 1]) if self._comes_first(x) else x


def _put_even_first(x: tf.Tensor, axis: int) -> tf.Tensor:
    """Returns x with the entries 0, 2, 4, ... of an axis before the entries 1, 3, 5, ..."""
    return tf.gather(x, np.arange(x.shape[axis]).reshape(-1, 2).T.ravel(), axis=axis)


class ExportMode(RunMode):
    """A run mode with these kernels, in which a batch is not split."""

    def __init__(self, kernels: Kernels):
        super().__init__(shards=1)
        vars(self)["kernels"] = kernels


@dataclasses.dataclass(frozen=True)
class Constant:
    """A tensor that depends on weights alone: its values, and the paths of the model's weights that it depends on."""

    values: Array
    sources: frozenset[str] = frozenset()

    @property
    def is_weight(self) -> bool:
        """Whether the constant is a weight of an export: if it depends on weights, or is more than one number."""
        return self.values.dtype == np.float64 and bool(self.sources or self.values.size > 1)


@dataclasses.dataclass(frozen=True)
class TracedNetwork:
    """A traced method of a network: its graph in float32, and the model's weights that it reads.

    `outputs` are the tensors in `results`, which have the structure that the method returns. `weights` is {path of a
    weight in the model: (its placeholder, its values in float64)}.
    """

    graph: tf.Graph
    inputs: tuple[tf.Tensor, ...]
    outputs: tuple[tf.Tensor, ...]
    results: Any
    weights: Mapping[str, tuple[tf.Tensor, Array]]

    @functools.cached_property
    def _ops(self) -> list[tf.Operation]:
        """The operations that depend on the arguments and on which the outputs depend, in the order of computation."""
        ops, varying, needed = self.graph.get_operations(), {t.op for t in self.inputs}, {t.op for t in self.outputs}
        for op in ops:
            if any(tensor.op in varying for tensor in op.inputs):
                varying.add(op)
        for op in reversed(ops):
            if op in needed:
                needed.update(tensor.op for tensor in op.inputs)
        return [op for op in ops if op in needed and op in varying]

    @functools.cached_property
    def constants(self) -> dict[str, Constant]:
        """The tensors that do not depend on the arguments and that are read by those that do, {name: constant}.

        Raises InversionError if a matrix cannot be inverted, or a weight of the export is not finite.
        """
        sources = {tensor.op: frozenset([path]) for path, (tensor, _) in self.weights.items()}
        for op in self.graph.get_operations():
            sources.setdefault(op, frozenset().union(*(sources[tensor.op] for tensor in op.inputs)))
        ops, reads = {*self._ops}, [*(tensor for op in self._ops for tensor in op.inputs), *self.outputs]
        names = {tensor.name: sources[tensor.op] for tensor in reads if tensor.op not in ops}
        try:
            arrays = self.session.run([*names], {tensor.name: values for tensor, values in self.weights.values()})
        except tf.errors.InvalidArgumentError as error:
            op = error.op and self.graph.get_operation_by_name(error.op.name)
            paths = ", ".join(sorted(sources[op])) if op else "a weight"
            raise InversionError(f"{paths} cannot be inverted; the run cannot be exported") from error
        constants = {name: Constant(np.asarray(array), names[name]) for name, array in zip(names, arrays, strict=True)}
        for constant in constants.values():
            if constant.is_weight and not np.isfinite(constant.values).all():
                paths = ", ".join(sorted(constant.sources))
                raise InversionError(f"weight {paths} is not finite; the run has diverged and cannot be exported")
        return constants

    @functools.cached_property
    def session(self) -> tf.compat.v1.Session:
        """A session that computes tensors of this graph in float64."""
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(_widen_graph(self.graph.as_graph_def()), name="")
        # A graph that runs once or twice is not optimised, which would take longer than it saves.
        options = tf.compat.v1.ConfigProto()
        options.graph_options.rewrite_options.disable_meta_optimizer = True
        return tf.compat.v1.Session(graph=graph, config=options)

    @functools.cached_property
    def _graph_def(self) -> tf.compat.v1.GraphDef:
        """The definition of the operations that depend on the arguments."""
        graph_def, names = self.graph.as_graph_def(), {op.name for op in self._ops if op.type != "Placeholder"}
        nodes = [node for node in graph_def.node if node.name in names]
        del graph_def.node[:]
        graph_def.node.extend(nodes)
        return graph_def

    def call(self, read: Callable[[str], tf.Tensor], *inputs: tf.Tensor) -> Any:
        """Returns the results for `inputs`, by adding the operations that depend on them to the caller's graph.

        `read` returns the tensor of the constant of a name, if the constant is a weight.
        """
        given = {tensor.name: value for tensor, value in zip(self.inputs, inputs, strict=True)}
        for name, constant in self.constants.items():
            kind = self.graph.get_tensor_by_name(name).dtype
            given[name] = read(name) if constant.is_weight else tf.constant(constant.values, kind)
        # In a graph, the first output of an operation has the name of the operation.
        used = {name if ":" in name else f"{name}:0" for node in self._graph_def.node for name in node.input}
        made = [tensor.name for tensor in self.outputs if tensor.name not in given]
        mapped = {name: tensor for name, tensor in given.items() if name in used}
        given |= zip(made, tf.import_graph_def(self._graph_def, mapped, made, name=""), strict=True)
        return tf.nest.pack_sequence_as(self.results, [given[tensor.name] for tensor in self.outputs])


def trace_network(
    method: Callable, variables: Mapping[str, tf.Variable], specs: Sequence[tf.TensorSpec], kernels: Kernels
) -> TracedNetwork:
    """Returns the traced `method`, a function of tensors with these `specs` that reads the model's `variables`."""
    values = {path: np.asarray(variable, np.float64) for path, variable in variables.items()}
    with tf.Graph().as_default() as graph, run_functions_eagerly(), use_kernels(kernels):
        inputs = tuple(tf.compat.v1.placeholder(spec.dtype, spec.shape) for spec in specs)
        weights = {
            path: (tf.compat.v1.placeholder(variable.dtype, variable.shape), values[path])
            for path, variable in variables.items()
        }
        with keras.StatelessScope((variables[path], tensor) for path, (tensor, _) in weights.items()):
            results = method(*inputs)
            outputs = tuple(map(tf.identity, tf.nest.flatten(results)))
        if isinstance(kernels, ExportKernels):
            kernels.read_sizes_earlier(graph)
    return TracedNetwork(graph, inputs, outputs, results, weights)


def find_difference(
    model: TracedNetwork, folded: TracedNetwork, weights: Mapping[str, Array], inputs: Sequence[Array]
) -> float:
    """Returns the largest difference of a folded method's results from the model's, relative to the norm of a result.

    Both are computed from `inputs` in float64; `weights` is {name of a constant of `folded`: its values}.
    """
    feeds = {tensor.name: values for tensor, values in model.weights.values()}
    sides = []
    for network, others in ((model, feeds), (folded, weights)):
        arguments = {tensor.name: array for tensor, array in zip(network.inputs, inputs, strict=True)}
        sides.append(network.session.run([tensor.name for tensor in network.outputs], {**arguments, **others}))
    least, norm = np.finfo(np.float64).tiny ** 0.5, np.linalg.norm
    pairs = [(np.ravel(right), np.ravel(found)) for right, found in zip(*sides, strict=True)]
    return max(float(norm(right - found) / max(norm(right), least)) for right, found in pairs)


def _widen_graph(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Replaces float32 by float64 everywhere in the definition of a graph, and returns it."""
    single, double = tf.float32.as_datatype_enum, tf.float64.as_datatype_enum
    functions = graph_def.library.function
    nodes = [*graph_def.node, *(node for function in functions for node in function.node_def)]
    for attribute in (attribute for node in nodes for attribute in node.attr.values()):
        kind = attribute.WhichOneof("value")
        if kind == "type" and attribute.type == single:
            attribute.type = double
        elif kind == "list":
            attribute.list.type[:] = [double if entry == single else entry for entry in attribute.list.type]
        elif kind == "tensor" and attribute.tensor.dtype == single:
            values = tf.make_ndarray(attribute.tensor).astype(np.float64)
            attribute.tensor.CopyFrom(tf.make_tensor_proto(values))
    for argument in (arg for f in functions for arg in [*f.signature.input_arg, *f.signature.output_arg]):
        argument.type = double if argument.type == single else argument.type
    return graph_def
