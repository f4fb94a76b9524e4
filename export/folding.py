"""Folding: the graph of a network of the model, with everything that depends on weights alone computed in advance.

`trace_network` records the operations with which the model itself computes a method of a network, such as the flow's
`forward_and_log_det`. `fold_graph` evaluates all operations that depend on weights alone in float64, and joins linear
maps. The result computes the same numbers from fewer operations, and its constants are the weights of an export.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdecouple.errors import InversionError
from tfdecouple.numerics.arithmetic import get_sizes
from tfdecouple.runtime.execution import run_functions_eagerly, substitute_weights

Array = np.ndarray

# Operations that treat each number of a map separately, so that the order of the axes does not matter.
_ELEMENTWISE = frozenset((
    "Abs", "Add", "AddV2", "Asinh", "Atan", "Cast", "Cos", "Cosh", "Div", "Elu", "Exp", "Floor", "Log", "Maximum",
    "Minimum", "Mul", "Neg", "Pow", "RealDiv", "Reciprocal", "Relu", "Rsqrt", "Selu", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus", "Softsign", "Sqrt", "Square", "SquaredDifference", "Sub", "Tanh",
))  # fmt: skip
# {operation: the index of the input that says along which axis it works}
_AXIS_INPUTS = {"Split": 0, "SplitV": 2, "ConcatV2": -1}


@dataclasses.dataclass(frozen=True)
class Network:
    """A traced method of a network: its graph, the names of its tensors, and the model's weights that it reads.

    Attributes:
        graph: the graph, in float32.
        inputs: the tensors of the method's arguments.
        outputs: the tensors of the method's results.
        results: the results, as the method returns them.
        weights: {path of a weight in the model: (its placeholder in the graph, its values in float64)}.
    """

    graph: tf.Graph
    inputs: tuple[tf.Tensor, ...]
    outputs: tuple[tf.Tensor, ...]
    results: Any
    weights: Mapping[str, tuple[tf.Tensor, Array]]

    @functools.cached_property
    def ops(self) -> list[tf.Operation]:
        """The operations on which the outputs depend, in the order in which they were traced."""
        waiting, needed = [tensor.op for tensor in self.outputs], set()
        while waiting:
            op = waiting.pop()
            if op not in needed:
                needed.add(op)
                waiting += [tensor.op for tensor in op.inputs]
        return [op for op in self.graph.get_operations() if op in needed]

    @functools.cached_property
    def varying(self) -> set[Any]:
        """The references of all tensors that depend on the arguments."""
        varying = {tensor.ref() for tensor in self.inputs}
        for op in self.ops:
            if any(tensor.ref() in varying for tensor in op.inputs):
                varying.update(tensor.ref() for tensor in op.outputs)
        return varying

    @functools.cached_property
    def wide_graph(self) -> Any:
        """The definition of the graph in float64."""
        return widen_graph(self.graph.as_graph_def())

    @functools.cached_property
    def constants(self) -> dict[Any, Constant]:
        """The tensors that depend on weights alone and that other operations read, {reference: constant}.

        Raises InversionError if a matrix cannot be inverted, or a constant is not finite.
        """
        sources = {tensor.ref(): frozenset([path]) for path, (tensor, _) in self.weights.items()}
        for op in self.ops:
            known = frozenset().union(*(sources.get(tensor.ref(), frozenset()) for tensor in op.inputs))
            for tensor in op.outputs:
                sources.setdefault(tensor.ref(), known)
        reads = [tensor for op in self.ops if op.outputs[0].ref() in self.varying for tensor in op.inputs]
        names = {tensor.ref(): tensor.name for tensor in [*reads, *self.outputs] if tensor.ref() not in self.varying}
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(self.wide_graph, name="")
        feeds = {tensor.name: values for tensor, values in self.weights.values()}
        try:
            with tf.compat.v1.Session(graph=graph) as session:
                arrays = session.run(names, feeds)
        except tf.errors.InvalidArgumentError as error:
            op = error.op and self.graph.get_operation_by_name(error.op.name)
            paths = ", ".join(sorted(sources[op.outputs[0].ref()])) if op else "a weight"
            raise InversionError(f"{paths} cannot be inverted; the run cannot be exported") from error
        for ref, array in arrays.items():
            if array.dtype == np.float64 and not np.isfinite(array).all():
                paths = ", ".join(sorted(sources[ref]))
                raise InversionError(f"weight {paths} is not finite; the run has diverged and cannot be exported")
        return {ref: Constant(np.asarray(array), sources[ref]) for ref, array in arrays.items()}


def trace_network(method: Callable[..., Any], variables: Mapping[str, Any], specs: Sequence[tf.TensorSpec]) -> Network:
    """Returns the traced `method`, a function of tensors with these `specs` that reads the model's `variables`."""
    values = {path: np.asarray(variable, np.float64) for path, variable in variables.items()}
    with tf.Graph().as_default() as graph, run_functions_eagerly():
        inputs = tuple(tf.compat.v1.placeholder(spec.dtype, spec.shape) for spec in specs)
        weights = {
            path: (tf.compat.v1.placeholder(variable.dtype, variable.shape), values[path])
            for path, variable in variables.items()
        }
        with substitute_weights((variables[path], tensor) for path, (tensor, _) in weights.items()):
            results = method(*inputs)
            outputs = tuple(map(tf.identity, tf.nest.flatten(results)))
    return Network(graph, inputs, outputs, results, weights)


@dataclasses.dataclass(frozen=True)
class Constant:
    """A tensor that depends on weights alone: its values, and the paths of the model's weights that it depends on."""

    values: Array
    sources: frozenset[str] = frozenset()

    def apply(self, function: Callable[..., Array], *others: Constant) -> Constant:
        """Returns `function` of the values of this constant and of `others`, as a `Constant`."""
        sources = self.sources.union(*(other.sources for other in others))
        return Constant(function(self.values, *(other.values for other in others)), sources)


@dataclasses.dataclass(eq=False)
class Node:
    """An operation of a folded graph, with one or several outputs.

    Attributes:
        op: the traced operation that this node repeats; None for the linear and affine maps below.
        inputs: (node, index of its output), or a constant, for each input.
        shapes: the static shape of each output.
        traced: for each output, the traced tensors that it equals.
        kernel: for a linear map, the matrix `[inputs, outputs]`, or the kernel of a convolution; a `Constant` or None.
        scale, shift: what multiplies each channel, and what is added to it afterwards; None: nothing. For a linear map
            `shift` is the bias.
        options: the options of `tf.nn.conv2d`.
        view: (kind, value) if this node only rearranges the map `value`: "rows" for a list of its pixels, "padded" and
            "strided" with the paddings or strides, and "every second" and "in turn" for its channels.
    """

    op: Any
    inputs: list[Any]
    shapes: list[tf.TensorShape]
    traced: list[list[tf.Tensor]]
    kernel: Any = None
    scale: Any = None
    shift: Any = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    view: Any = ("", None)


class Pair(NamedTuple):
    """The names of a traced tensor and of a folded tensor that equals it apart from the order of its axes.

    Attributes:
        first: whether the folded tensor is a map with its channels first.
        shape: the static shape of the folded tensor; the traced tensor may be a list of the pixels of the map.
        weights: the placeholders of the weights that the operation of the folded tensor reads.
    """

    traced: str
    folded: str
    first: bool
    shape: tuple[int | None, ...]
    weights: tuple[str, ...] = ()

    def arrange(self, traced: tf.Tensor) -> tf.Tensor | None:
        """Returns the traced tensor with the axes of the folded tensor; None if this needs sides that are unknown."""
        if traced.shape.rank != len(self.shape):
            sides = [self.shape[axis] for axis in ((2, 3, 1) if self.first else range(1, len(self.shape)))]
            if None in sides:
                return None
            traced = tf.reshape(traced, [-1, *sides])
        return tf.transpose(traced, [0, 3, 1, 2]) if self.first else traced


@dataclasses.dataclass(frozen=True)
class Folded:
    """A folded network: a graph whose weights and arguments are placeholders.

    Attributes:
        graph_def: the graph, in float32.
        inputs: the names of the tensors of the arguments.
        outputs: the names of the tensors of the results.
        weights: {name of a placeholder: the constant that it stands for}.
        pairs: the tensors that are computed from a folded weight, in the order of computation, and the results.
    """

    graph_def: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, Constant]
    pairs: tuple[Pair, ...]


def fold_graph(network: Network, channels_first: bool = False) -> Folded:
    """Returns the folded graph of `network`, with the channels of maps first or last."""
    return _Folder(network, channels_first).make_graph()


class _Folder:
    """Folds one traced network; reads its operations in order, and makes a `Node` for each that is still needed."""

    def __init__(self, network: Network, channels_first: bool):
        self._network, self._channels_first = network, channels_first
        self._uses: dict[Any, int] = {}
        # The size of a tensor does not depend on its values, so that reading the size is no use of them.
        for tensor in [*network.outputs, *(read for op in network.ops if op.type != "Shape" for read in op.inputs)]:
            self._uses[tensor.ref()] = self._uses.get(tensor.ref(), 0) + 1
        # {traced tensor: (node, index of the output) that computes it, or the constant that it is}
        self._values: dict[Any, Any] = {**network.constants}
        self._nodes: list[Node] = []
        for tensor in network.inputs:
            self._add_node(tensor.op, [])
        for op in network.ops:
            if op.outputs and op.outputs[0].ref() in network.varying and op.outputs[0].ref() not in self._values:
                self._read_op(op)

    # --- reading the traced operations ---

    def _read_op(self, op: tf.Operation) -> None:
        values = [self._values[tensor.ref()] for tensor in op.inputs]
        reader = _READERS.get(op.type)
        if reader is None or not reader(self, op, *values):
            self._add_node(op, values)

    def _read_copy(self, op: tf.Operation, *values: Any) -> bool:
        for output, value in zip(op.outputs, values, strict=True):
            self._alias(output, value)
        return True

    def _read_shape(self, op: tf.Operation, value: Any) -> bool:
        """Reads the shape of a map before its channels are scaled and shifted, which may become part of another map."""
        while not isinstance(value, Constant) and _is_affine(value[0]):
            value = value[0].inputs[0]
        self._add_node(op, [value])
        return True

    def _add_node(self, op: Any, inputs: list[Any], *tensors: tf.Tensor, **fields: Any) -> Node:
        """Adds a node and returns it; it repeats the operation `op`, or computes `tensors` by its other `fields`."""
        outputs = tensors or op.outputs
        node = Node(op, inputs, [output.shape for output in outputs], [[output] for output in outputs], **fields)
        self._nodes.append(node)
        for index, tensor in enumerate(outputs):
            self._values[tensor.ref()] = node, index
        if op is not None:
            node.view = self._find_view(node)
        return node

    def _alias(self, tensor: tf.Tensor, value: Any) -> None:
        self._values[tensor.ref()] = value
        if not isinstance(value, Constant):
            node, index = value
            node.traced[index].append(tensor)

    def _is_used_once(self, value: Any) -> bool:
        """Returns whether the value is read by one operation alone, so that it can be joined with the operation."""
        node, index = value
        return all(self._uses[tensor.ref()] == 1 for tensor in node.traced[index])

    def _find_view(self, node: Node) -> Any:
        """Returns (kind, what `node` reads): "rows" if it lists a map's pixels; "" if it is no node of these kinds.

        The kinds "padded" and "strided" are of nodes whose work a convolution can do; paddings or strides are added.
        """
        op, value = node.op, next(iter(node.inputs), None)
        if value is None or isinstance(value, Constant):
            return "", None
        before, after = value[0].shapes[value[1]], node.shapes[0]
        if op.type == "Reshape" and (before.rank, after.rank) == (4, 2) and before[-1] == after[-1] is not None:
            return "rows", value
        if op.type == "Pad":
            return "padded", (value, node.inputs[1].values.tolist())
        if op.type == "StridedSlice" and (op.get_attr("begin_mask"), op.get_attr("end_mask")) == (7, 7):
            strides = node.inputs[3].values.tolist()
            if strides[0] == 1 and len(strides) == 3 and op.get_attr("shrink_axis_mask") == 0:
                return "strided", (value, [*strides, 1])
        return "", None

    def _undo_reshape(self, op: tf.Operation, value: Any, _: Any) -> bool:
        """Reads a `Reshape` that gives rows, or channels that were divided or joined in pairs, the shape of a map."""
        before, shape = value[0].shapes[value[1]], op.outputs[0].shape
        kind, inner = value[0].view
        if shape.rank == before.rank == 2 and shape[-1] == before[-1] is not None:
            self._alias(op.outputs[0], value)
            return True
        if kind == "rows" and shape[1:] == inner[0].shapes[inner[1]][1:]:
            self._alias(op.outputs[0], inner)
            return True
        if shape.rank not in (2, 4) or not (self._channels_first or shape[1:].is_fully_defined()):
            return False
        # The model halves and joins channels by a transposition of pairs, `layers/coupling.py`.
        divided, joined = ("Unpack", "Transpose", "Reshape"), ("Transpose", "Pack", "Reshape")
        for kind, types in (("every second", divided), ("in turn", joined)):
            maps = self._trace_back(op.inputs[0], types)
            if maps and maps[0].shape[1:-1] == shape[1:-1]:
                values, view = [self._values[tensor.ref()] for tensor in maps], (kind, op.inputs[0].value_index)
                self._add_node(None, values, op.outputs[0], view=view)
                return True
        return False

    def _trace_back(self, tensor: tf.Tensor, types: Sequence[str]) -> list[tf.Tensor]:
        """Returns the tensors that operations of these types turned into `tensor`, the last type first; else []."""
        tensors = [tensor]
        for op_type in types:
            if any(tensor.op.type != op_type for tensor in tensors):
                return []
            tensors = [inner for tensor in tensors for inner in tensor.op.inputs[: 2 if op_type == "Pack" else 1]]
        return tensors if all(isinstance(self._values.get(tensor.ref()), tuple) for tensor in tensors) else []

    def _join_affine(self, op: tf.Operation, first: Any, second: Any) -> bool:
        """Reads a product or sum with a constant for each channel, which becomes part of an affine or linear map."""
        swapped = isinstance(first, Constant)
        value, constant = (second, first) if swapped else (first, second)
        if isinstance(value, Constant) or not isinstance(constant, Constant) or (swapped and op.type == "Sub"):
            return False
        rows = value[0].view[0] == "rows"
        source, index = value[0].view[1] if rows else value
        shape, sizes = source.shapes[index], constant.values.shape
        channels = shape[-1] if shape.rank in (2, 4) else None
        if channels is None or op.outputs[0].shape[-1] != channels or constant.values.dtype != np.float64:
            return False
        if sizes != (1,) * (len(sizes) - 1) + (channels,):
            return False
        constant = constant.apply(np.ravel)
        scale = constant if op.type == "Mul" else None
        shift = None if scale else constant.apply(np.negative) if op.type == "Sub" else constant
        if source.op is None and not source.view[0] and self._is_used_once((source, index)):
            if scale is not None:
                source.scale = scale if source.scale is None else source.scale.apply(np.multiply, scale)
                source.shift = source.shift and source.shift.apply(np.multiply, scale)
                if source.kernel is not None:
                    source.kernel, source.scale = source.kernel.apply(np.multiply, source.scale), None
            else:
                source.shift = shift if source.shift is None else source.shift.apply(np.add, shift)
            source.traced[index] = []
            self._give_rows(op.outputs[0], source) if rows else self._alias(op.outputs[0], (source, index))
            return True
        if rows:
            return False
        self._add_node(None, [value], op.outputs[0], scale=scale, shift=shift)
        return True

    def _give_rows(self, tensor: tf.Tensor, node: Node) -> None:
        """Lets `tensor`, rows of channels, be a view of the map that `node` computes."""
        node.traced[0].append(tensor)
        rows = Node(None, [(node, 0)], [tensor.shape], [[tensor]], view=("rows", (node, 0)))
        self._nodes.append(rows)
        self._values[tensor.ref()] = rows, 0

    def _join_product(self, op: tf.Operation, value: Any, kernel: Any) -> bool:
        """Reads a product with a constant matrix, which becomes a linear map: of a map of rows, a 1x1 convolution."""
        if isinstance(value, Constant) or not isinstance(kernel, Constant) or op.get_attr("transpose_a"):
            return False
        if op.get_attr("transpose_b"):
            kernel = kernel.apply(np.transpose)
        kind, inner = value[0].view
        if kind == "rows":
            value, kernel = inner, kernel.apply(lambda matrix: matrix[None, None])
        value, kernel, shift = self._join_earlier(value, kernel)
        tensor = op.outputs[0]
        if kind != "rows":
            self._add_node(None, [value], tensor, kernel=kernel, shift=shift)
            return True
        node = Node(None, [value], [], [[]], kernel=kernel, shift=shift)
        node.shapes = [value[0].shapes[value[1]][:-1].concatenate(tensor.shape[-1:])]
        self._nodes.append(node)
        self._give_rows(tensor, node)
        return True

    def _join_convolution(self, op: tf.Operation, value: Any, kernel: Any) -> bool:
        """Reads a convolution with a constant kernel, and the padding or the strides of its input."""
        if isinstance(value, Constant) or not isinstance(kernel, Constant):
            return False
        padding, strides = op.get_attr("padding").decode(), list(op.get_attr("strides"))
        kind, inner = value[0].view
        if kind == "padded" and padding == "VALID" and self._is_used_once(value):
            value, padding = inner
        shift = None
        if kernel.values.shape[:2] == (1, 1):
            if kind == "strided" and strides == [1, 1, 1, 1] and self._is_used_once(value):
                value, strides = inner
            value, kernel, shift = self._join_earlier(value, kernel)
        options = {"strides": strides, "padding": padding}
        self._add_node(None, [value], op.outputs[0], kernel=kernel, shift=shift, options=options)
        return True

    def _join_earlier(self, value: Any, kernel: Constant) -> tuple[Any, Constant, Constant | None]:
        """Joins scale and shift of channels before a linear map with its kernel; returns input, kernel and bias."""
        node, index = value
        if not _is_affine(node) or not self._is_used_once(value):
            return value, kernel, None
        shift = node.shift and node.shift.apply(lambda shift, matrix: shift @ matrix.reshape(matrix.shape[-2:]), kernel)
        if node.scale is not None:
            kernel = kernel.apply(lambda matrix, scale: matrix * scale[:, None], node.scale)
        return node.inputs[0], kernel, shift

    # --- writing the folded graph ---

    def make_graph(self) -> Folded:
        """Writes the nodes that the outputs need as a graph."""
        needed = self._find_needed_nodes()
        self._weights: dict[str, Constant] = {}
        # {(node, index of its output): {layout: tensor}}. The layout is True if channels come first, False if they come
        # last, or "pixel" for a vector in the shape of an image of one pixel.
        self._made: dict[tuple[Node, int], dict[Any, tf.Tensor]] = {}
        # {map: its channels 0, 2, 4, ... and its channels 1, 3, 5, ...}
        self._halves: dict[Any, list[tf.Tensor]] = {}
        groups = self._group_products(needed)
        pairs = []
        with tf.Graph().as_default() as graph:
            for node in needed:
                written, count = [node], len(self._weights)
                if node in groups:
                    written = groups[node]
                    self._write_products(written, groups)
                elif (node, 0) not in self._made:
                    self._write_node(node)
                if weights := tuple(self._weights)[count:]:
                    pairs += [pair for other in written for pair in self._make_pairs(other, weights)]
            outputs = []
            for traced in self._network.outputs:
                count = len(self._weights)
                outputs.append(tf.identity(self._write_value(self._values[traced.ref()])))
                if traced.dtype == tf.float32:
                    weights = tuple(self._weights)[count:]
                    pairs.append(Pair(traced.name, outputs[-1].name, False, tuple(traced.shape), weights))
        inputs = [self._made[self._values[tensor.ref()]][False].name for tensor in self._network.inputs]
        names = tuple(tensor.name for tensor in outputs)
        return Folded(graph.as_graph_def(), tuple(inputs), names, self._weights, tuple(pairs))

    def _make_pairs(self, node: Node, weights: tuple[str, ...]) -> Iterator[Pair]:
        """Yields a pair for each output of a node that reads the placeholders `weights`."""
        for index, traced in enumerate(node.traced):
            if traced:
                form, tensor = next(iter(self._made[node, index].items()))
                yield Pair(traced[-1].name, tensor.name, form is True, tuple(tensor.shape), weights)

    def _find_needed_nodes(self) -> list[Node]:
        """Returns the nodes that compute the outputs, and those of the arguments, in the order of computation."""
        waiting = [self._values[tensor.ref()] for tensor in [*self._network.outputs, *self._network.inputs]]
        needed: set[Node] = set()
        while waiting:
            value = waiting.pop()
            if not isinstance(value, Constant) and value[0] not in needed:
                needed.add(value[0])
                waiting += value[0].inputs
        return [node for node in self._nodes if node in needed]

    def _group_products(self, nodes: list[Node]) -> dict[Node, list[Node]]:
        """Returns {node: all products of the same vectors}, so that one matrix product computes them."""
        groups: dict[Any, list[Node]] = {}
        for node in nodes:
            if node.kernel is not None and node.kernel.values.ndim == 2:
                groups.setdefault(node.inputs[0], []).append(node)
        return {node: group for group in groups.values() if len(group) > 1 for node in group}

    def _write_products(self, nodes: list[Node], groups: dict[Node, list[Node]]) -> None:
        """Writes products of the same vectors as one product, and removes them from `groups`."""
        # Both directions of a flow, which run the nets in opposite orders, then share one weight.
        nodes = sorted(nodes, key=lambda node: sorted(node.kernel.sources))
        widths = [node.kernel.values.shape[-1] for node in nodes]
        kernel = nodes[0].kernel.apply(lambda *ones: np.concatenate(ones, -1), *(node.kernel for node in nodes[1:]))
        shifts = [node.shift or Constant(np.zeros(width)) for node, width in zip(nodes, widths, strict=True)]
        shift = shifts[0].apply(lambda *ones: np.concatenate(ones), *shifts[1:])
        y = tf.matmul(self._write_value(nodes[0].inputs[0]), self._write_weight(kernel)) + self._write_weight(shift)
        # The products of z become images of one pixel together, because coupling nets add them to maps.
        if self._channels_first:
            y = tf.reshape(y, [-1, sum(widths), 1, 1])
            # WebGPU computes a Split with one shader that has a buffer for each output; a shader has only 8 to 10.
            parts = [y[:, end - width : end] for width, end in zip(widths, np.cumsum(widths), strict=True)]
        else:
            parts = tf.split(tf.reshape(y, [-1, 1, 1, sum(widths)]), widths, -1)
        for node, part in zip(nodes, parts, strict=True):
            groups.pop(node, None)
            self._made[node, 0] = {"pixel": part}

    def _write_node(self, node: Node) -> None:
        if node.op is not None and node.op.type == "Reshape" and node.shapes[0][1:3] == [1, 1]:
            made = self._made.get(node.inputs[0], {})
            if "pixel" in made:
                self._made[node, 0] = {self._channels_first: made["pixel"]}
                return
        first = self._channels_first and self._can_be_first(node)
        inputs = [self._write_value(value, first) for value in node.inputs]
        if node.op is not None:
            outputs = self._write_op(node.op, inputs, first)
        elif node.kernel is not None:
            outputs = [self._write_linear(node, inputs[0], first)]
        elif not node.view[0]:
            outputs = [self._write_affine(node, inputs[0], first)]
        else:
            outputs = [self._write_view(*node.view, *inputs)]
        self._made |= {(node, index): {first: tensor} for index, tensor in enumerate(outputs)}

    def _can_be_first(self, node: Node) -> bool:
        """Returns whether the node can be computed for maps whose channels come first."""
        op = node.op
        if op is None:
            return node.shapes[0].rank == 4
        if node.shapes[0].rank != 4:
            return False
        ranks = [4 if isinstance(value, Constant) else value[0].shapes[value[1]].rank for value in node.inputs]
        if op.type == "Reshape":
            return ranks[0] == 2 and node.shapes[0][1:3] == [1, 1]
        if op.type in _AXIS_INPUTS:
            return int(node.inputs[_AXIS_INPUTS[op.type]].values) in (-1, 3)
        if op.type in ("SpaceToDepth", "DepthToSpace"):
            return True
        return op.type in _ELEMENTWISE and {*ranks} == {4}

    def _write_op(self, op: tf.Operation, inputs: list[tf.Tensor], first: bool) -> list[tf.Tensor]:
        attributes = {name: value for name, value in op.node_def.attr.items() if name != "_class"}
        shape = op.outputs[0].shape
        if op.type == "Placeholder":
            return [tf.compat.v1.placeholder(op.outputs[0].dtype, shape)]
        if self._channels_first and op.type == "Elu":
            # ONNX Runtime computes Elu slowly, on one thread and without vector instructions. These four operations
            # take a third of the time. They are equal to Elu, because exp(0) - 1 = 0 <= x above 0, and
            # exp(x) - 1 >= x below. `formats/onnx.py` replaces the minimum by a Clip.
            return [tf.maximum(inputs[0], tf.exp(tf.minimum(inputs[0], 0.0)) - 1.0)]
        if self._channels_first and op.type == "OneHot" and op.get_attr("axis") == -1:
            # The operator of ONNX takes an array of the two values, which would look like a weight.
            values = [tf.get_static_value(tensor) for tensor in inputs[2:]]
            if values == [1, 0]:
                return [tf.cast(tf.equal(inputs[0][..., None], tf.range(shape[-1], dtype=inputs[0].dtype)), tf.float32)]
        if first and op.type == "Reshape":
            return [tf.reshape(inputs[0], [-1, shape[-1], 1, 1])]
        if first and op.type in _AXIS_INPUTS:
            inputs[_AXIS_INPUTS[op.type]] = tf.constant(1)
        if first and "data_format" in attributes:
            attributes["data_format"] = tf.compat.v1.AttrValue(s=b"NCHW")
        graph = tf.compat.v1.get_default_graph()
        return graph.create_op(op.type, inputs, [output.dtype for output in op.outputs], attrs=attributes).outputs

    def _write_linear(self, node: Node, x: tf.Tensor, first: bool) -> tf.Tensor:
        kernel, order = self._write_weight(node.kernel), "NCHW" if first else "NHWC"
        if node.kernel.values.ndim == 2:
            y = tf.matmul(x, kernel)
        else:
            strides: Any = node.options.get("strides", 1)
            padding: Any = node.options.get("padding", "VALID")
            if padding == "SAME":
                # A runtime pads more quickly if it need not compute the padding from the size of the image.
                padding = [[0, 0], *([size // 2] * 2 for size in node.kernel.values.shape[:2]), [0, 0]]
            if first and not isinstance(padding, str):
                padding = [padding[axis] for axis in (0, 3, 1, 2)]
            y = tf.nn.conv2d(x, kernel, strides[1] if isinstance(strides, list) else strides, padding, order)
        return y if node.shift is None else tf.nn.bias_add(y, self._write_weight(node.shift), order)

    def _write_affine(self, node: Node, x: tf.Tensor, first: bool) -> tf.Tensor:
        shape = [-1, 1, 1] if first else [-1]
        for constant, combine in ((node.scale, tf.multiply), (node.shift, tf.add)):
            if constant is not None:
                x = combine(x, self._write_weight(constant.apply(lambda values: values.reshape(shape))))
        return x

    def _write_view(self, kind: str, index: Any, x: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
        if kind == "rows":
            return tf.reshape(x, [-1, x.shape[-1]])
        if self._channels_first or x.shape.rank == 2:
            if kind == "every second":
                return x[:, index::2]
            return tf.reshape(tf.stack([x, *others], 2), [-1, 2 * x.shape[1], *get_sizes(x)[2:]])
        *sides, channels = x.shape[1:]
        if kind == "every second":
            # Slices with a step along the last axis would take a hundred times as long in TensorFlow.
            if x.ref() not in self._halves:
                self._halves[x.ref()] = tf.unstack(tf.reshape(x, [-1, *sides, channels // 2, 2]), axis=-1)
            return self._halves[x.ref()][index]
        # `tf.stack` along the last axis would take twice as long as one long transposition.
        pairs = tf.transpose(tf.stack([tf.reshape(part, [-1]) for part in (x, *others)]))
        return tf.reshape(pairs, [-1, *sides, 2 * channels])

    def _write_value(self, value: Any, first: bool = False) -> tf.Tensor:
        """Returns the tensor of a value, of a map with its channels first or last."""
        if isinstance(value, Constant):
            if first and value.values.ndim and value.values.dtype == np.float64:
                # The constant is broadcast to a map.
                padded = value.apply(lambda array: array.reshape([1] * (4 - array.ndim) + [*array.shape]))
                value = padded.apply(lambda array: array.transpose(0, 3, 1, 2))
            return self._write_weight(value)
        made = self._made[value]
        rank = value[0].shapes[value[1]].rank
        if rank != 4:
            if False not in made:
                made[False] = tf.reshape(made["pixel"], [-1, value[0].shapes[0][-1]])
            return made[False]
        if first not in made:
            made[first] = tf.transpose(made[not first], [0, 3, 1, 2] if first else [0, 2, 3, 1])
        return made[first]

    def _write_weight(self, constant: Constant) -> tf.Tensor:
        """Returns a placeholder for a constant, or the constant itself if it depends on no weight and is one number."""
        if constant.values.dtype != np.float64:
            return tf.constant(constant.values)
        if not constant.sources and constant.values.size == 1 and np.float32(constant.values) == constant.values:
            return tf.constant(constant.values, tf.float32)
        tensor = tf.compat.v1.placeholder(tf.float32, constant.values.shape)
        self._weights[tensor.name] = constant
        return tensor


_READERS: dict[str, Callable[..., bool]] = {
    **dict.fromkeys(("Identity", "IdentityN", "PreventGradient", "Snapshot", "StopGradient"), _Folder._read_copy),
    **dict.fromkeys(("Add", "AddV2", "BiasAdd", "Mul", "Sub"), _Folder._join_affine),
    "MatMul": _Folder._join_product,
    "Conv2D": _Folder._join_convolution,
    "Reshape": _Folder._undo_reshape,
    "Shape": _Folder._read_shape,
}


def _is_affine(node: Node) -> bool:
    """Returns whether a node scales and shifts each channel, and does nothing else."""
    return node.op is None and not node.view[0] and node.kernel is None


def name_weight(constant: Constant, sizes: Mapping[str, int]) -> str:
    """Returns a name for a folded weight: the path of the model's weight of its size, or what several paths share.

    `sizes` is {path of a weight of the model: count of its values}.
    """
    paths = sorted(constant.sources) or ["constant"]
    for path in paths:
        if len(paths) == 1 or sizes[path] == constant.values.size:
            return path
    segments = [path.split("/") for path in paths]
    shared = [names[0] for names in itertools.takewhile(lambda names: len({*names}) == 1, zip(*segments, strict=False))]
    return "/".join([*shared, "+".join(sorted({segment[-1] for segment in segments}))])


def _put_channels_last(graph_def: Any) -> Any:
    """Returns a copy in which convolutions and the like of maps with channels first are computed with channels last.

    TensorFlow has no other convolutions on CPUs.
    """
    graph = tf.Graph()
    last = type(graph_def)()
    last.CopyFrom(graph_def)
    del last.node[:]
    with graph.as_default():
        for order, axes in (("first", [0, 3, 1, 2]), ("last", [0, 2, 3, 1])):
            tf.constant(axes, name=f"channels_{order}")
    last.node.extend(graph.as_graph_def().node)
    for node in graph_def.node:
        # Reading an attribute that a node lacks would add it.
        if node.op == "BiasAdd" or "data_format" not in node.attr or node.attr["data_format"].s != b"NCHW":
            last.node.add().CopyFrom(node)
            continue
        for label, source, order in (
            (f"{node.name}/in", node.input[0], "last"),
            (node.name, f"{node.name}/out", "first"),
        ):
            turn = last.node.add(op="Transpose", name=label, input=[source, f"channels_{order}"])
            turn.attr["T"].type, turn.attr["Tperm"].type = node.attr["T"].type, tf.int32.as_datatype_enum
        inner = last.node.add()
        inner.CopyFrom(node)
        inner.name, inner.input[0] = f"{node.name}/out", f"{node.name}/in"
        inner.attr["data_format"].s = b"NHWC"
        for name in ("strides", "dilations", "explicit_paddings"):
            if name in node.attr and node.attr[name].list.i:
                numbers = np.reshape(node.attr[name].list.i, [4, -1])[[0, 2, 3, 1]]
                inner.attr[name].list.i[:] = numbers.ravel().tolist()
    return last


def widen_graph(graph_def: Any) -> Any:
    """Returns a copy of a graph in which float64 replaces float32 everywhere."""
    wide = _put_channels_last(graph_def)
    single, double = tf.float32.as_datatype_enum, tf.float64.as_datatype_enum
    nodes = [*wide.node, *(node for function in wide.library.function for node in function.node_def)]
    for attribute in (attribute for node in nodes for attribute in node.attr.values()):
        kind = attribute.WhichOneof("value")
        if kind == "type" and attribute.type == single:
            attribute.type = double
        elif kind == "list":
            attribute.list.type[:] = [double if entry == single else entry for entry in attribute.list.type]
        elif kind == "tensor" and attribute.tensor.dtype == single:
            values = tf.make_ndarray(attribute.tensor).astype(np.float64)
            attribute.tensor.CopyFrom(tf.make_tensor_proto(values))
    for argument in (arg for f in wide.library.function for arg in [*f.signature.input_arg, *f.signature.output_arg]):
        argument.type = double if argument.type == single else argument.type
    return wide


def find_differences(
    network: Network, folded: Folded, weights: Mapping[str, Array], inputs: Sequence[Array]
) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yields (placeholders of weights, difference) for each operation of a folded graph that reads weights.

    The operation runs in float64 on the tensors of the model, which the traced graph computes from `inputs`. Its result
    is compared with the model's. The difference is a norm, relative to the norm of the model's result. The placeholders
    are those that the operation reads; `weights` is {placeholder: float64 array}.
    """
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(network.wide_graph, name="model")
        feeds = {f"model/{tensor.name}": values for tensor, values in network.weights.values()}
        feeds |= {f"model/{tensor.name}": array for tensor, array in zip(network.inputs, inputs, strict=True)}
        feeds |= {f"folded/{name}": array for name, array in weights.items()}
        tensors = [graph.get_tensor_by_name(f"model/{pair.traced}") for pair in folded.pairs]
        rights = [pair.arrange(tensor) for pair, tensor in zip(folded.pairs, tensors, strict=True)]
        wide = widen_graph(folded.graph_def)
        read = {name.partition(":")[0] for node in wide.node for name in node.input}
        given = {pair.folded: right for pair, right in zip(folded.pairs, rights, strict=True) if right is not None}
        given |= {
            name: graph.get_tensor_by_name(f"model/{tensor.name}")
            for name, tensor in zip(folded.inputs, network.inputs, strict=True)
        }
        given = {name.removesuffix(":0"): one for name, one in given.items() if name.partition(":")[0] in read}
        tf.import_graph_def(wide, given, name="folded")
        sums = []
        for pair, traced, right in zip(folded.pairs, tensors, rights, strict=True):
            made = graph.get_tensor_by_name(f"folded/{pair.folded}")
            if right is None:
                made, right = (
                    tf.reshape(tf.transpose(made, [0, 2, 3, 1]) if pair.first else made, tf.shape(traced)),
                    traced,
                )
            # TensorFlow adds these operations to a graph in half the time of `tf.reduce_max` and the like.
            sums.append((tf.raw_ops.L2Loss(t=made - right), tf.raw_ops.L2Loss(t=right)))
        # The graph runs once, so that optimising it would take longer than it saves.
        options = tf.compat.v1.ConfigProto()
        options.graph_options.rewrite_options.disable_meta_optimizer = True
        with tf.compat.v1.Session(graph=graph, config=options) as session:
            for pair, (difference, size) in zip(folded.pairs, session.run(sums, feeds), strict=True):
                yield pair.weights, np.sqrt(difference) / max(np.sqrt(size), np.finfo(np.float64).tiny ** 0.5)
