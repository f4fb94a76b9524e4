"""An emulation of an accelerator's arithmetic on a CPU, for tests of the model's accuracy without an accelerator.

An accelerator differs from a CPU in three ways that matter to an invertible model:

- It rounds the operands of float32 matrix products and convolutions to 10 bits of mantissa (TF32, NVIDIA GPUs since
  Ampere) or to 7 (bfloat16, TPUs) while TensorFlow's switch for TF32 is on, which is the default.
- It sums in another order, which can vary between calls, so that the last bits of results differ.
- It adds products of bfloat16 up in float32.

`emulated_accelerator` wraps the two functions by which TensorFlow runs single operations and traced functions. It calls
a copy of each traced function, and of the functions called inside, with products replaced. So the emulation also works
for gradients, and for functions that were traced before.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import function_pb2, node_def_pb2
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import context
from tensorflow.python.framework import op_def_registry

from tfdecouple.errors import UserError
from tfdecouple.runtime import precision as tf32

# For each operation that accelerators compute by products: the indices of the operands; None stands for all inputs.
_PRODUCTS: dict[str, tuple[int, ...] | None] = {
    "MatMul": (0, 1),
    "BatchMatMul": (0, 1),
    "BatchMatMulV2": (0, 1),
    "BatchMatMulV3": (0, 1),
    "Einsum": None,
    "Conv2D": (0, 1),
    "Conv2DBackpropInput": (1, 2),
    "Conv2DBackpropFilter": (0, 2),
    "_FusedMatMul": (0, 1),
    "_FusedConv2D": (0, 1),
}
# Number of mantissa bits that operands keep; float32 has 23.
_BITS = {"tf32": 10, "bfloat16": 7}
_TYPES = ("T", "Ta", "Tb", "Tout")

# Numbers for unique names, also if one emulation is inside another.
_names = itertools.count(1)


@contextlib.contextmanager
def emulated_accelerator(operands: str = "tf32", noise: float = 0.0, seed: int = 0) -> Iterator[None]:
    """Emulates an accelerator's arithmetic inside the context, in all threads of the process.

    With TensorFlow's switch for TF32 off and without noise, float32 results are unchanged to the bit. The emulation
    leaves `tf.data` pipelines alone, which always run on CPUs, and sessions of TensorFlow 1.

    >>> x = tf.constant([[1.0 + 2**-12]])
    >>> with emulated_accelerator():
    ...     print(float(tf.matmul(x, tf.ones([1, 1]))[0, 0]))
    1.0

    Args:
        operands: format to which float32 operands are rounded, to nearest even: "tf32" or "bfloat16".
        noise: largest relative change of a result, drawn for each number of each call; other kernels and orders of
            summation change float32 results by 1e-7 to 1e-6.
        seed: seed of the noise.

    Raises:
        UserError: if `operands` is another text, or the noise is not in [0, 1).
    """
    if operands not in _BITS:
        raise UserError(f"operands is {operands!r}; it must be one of {', '.join(_BITS)}")
    if not 0 <= noise < 1:
        raise UserError(f"noise is {noise}; it must lie in [0, 1), for example 1e-6")
    emulation = _Emulation(23 - _BITS[operands], noise, seed)
    # TensorFlow looks both functions up in these modules at each call, so that replacing them works.
    with (
        _replaced(pywrap_tfe, "TFE_Py_FastPathExecute", emulation.operation),
        _replaced(context.Context, "call_function", emulation.call),
        contextlib.closing(emulation),
    ):
        yield


@contextlib.contextmanager
def switch_left_alone() -> Iterator[None]:
    """Stops the project from turning TensorFlow's switch for TF32 off inside the context, in all threads."""
    with _replaced(tf32._switch, "turn", lambda turn: lambda **_: None):
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, replacement: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, replacement(before))
    try:
        yield
    finally:
        setattr(owner, name, before)


class _Emulation:
    """The changes of operands and results, and the copies of traced functions that have these changes.

    Args:
        dropped: number of mantissa bits that are rounded away.
        noise: largest relative change of a result.
        seed: seed of the noise.
    """

    def __init__(self, dropped: int, noise: float, seed: int):
        self._dropped = dropped
        self._noise = noise
        self._seed = seed
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()
        self._copies: dict[tuple[bytes, bool], bytes] = {}
        anything = tf.TensorSpec(None, tf.float32)
        # The functions are attributes, because TensorFlow removes a function with its last reference.
        self._round = tf.function(self._rounded, autograph=False).get_concrete_function(anything)
        self._perturb = tf.function(self._perturbed, autograph=False).get_concrete_function(anything, anything)

    def close(self) -> None:
        """Removes the copies of traced functions from TensorFlow."""
        for original, copy in self._copies.items():
            if copy != original[0]:
                context.context().remove_function(copy)
        self._copies.clear()

    # --- single operations ---

    def operation(self, execute: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function that runs an operation with emulated arithmetic, by TensorFlow's function `execute`."""

        def run(ctx: Any, kind: str, name: Any, *arguments: Any) -> Any:
            if kind not in _PRODUCTS:
                return execute(ctx, kind, name, *arguments)
            values = self._tensors(kind, arguments)
            if (indices := _PRODUCTS[kind]) is None:
                dtype, values[0] = self._operands(values[0])
            else:
                dtype, found = self._operands([values[index] for index in indices])
                for index, operand in zip(indices, found, strict=True):
                    values[index] = operand
            if dtype == tf.bfloat16:
                values = [tf.float32 if isinstance(value, tf.DType) else value for value in values]
            result = execute(ctx, kind, name, *values)
            if self._noise and result.dtype == tf.float32:
                drawn = tf.random.stateless_uniform(tf.shape(result), [self._seed, next(self._numbers)])
                result = _straight_through(lambda y: self._perturbed(y, drawn), result)
            return tf.cast(result, dtype) if dtype == tf.bfloat16 else result

        return run

    @staticmethod
    def _tensors(kind: str, arguments: Sequence[Any]) -> list[Any]:
        """Returns inputs and attributes with sizes as tensors, because TensorFlow handles lists in another way."""
        values, operands = list(arguments), _PRODUCTS[kind]
        for index in range(len(op_def_registry.get(kind).input_arg)):
            if operands is not None and index not in operands:
                values[index] = tf.convert_to_tensor(values[index])
        return values

    def _operands(self, values: Any) -> tuple[tf.DType, list[tf.Tensor]]:
        """Returns the operands' common dtype, and the operands as rounded or converted tensors."""
        dtype = next((tf.as_dtype(value.dtype) for value in values if tf.is_tensor(value)), None)
        tensors = [tf.convert_to_tensor(value, dtype) for value in values]
        dtype = tensors[0].dtype
        if dtype == tf.bfloat16:
            return dtype, [tf.cast(tensor, tf.float32) for tensor in tensors]
        if dtype == tf.float32 and _switch_is_on():
            return dtype, [_straight_through(self._rounded, tensor) for tensor in tensors]
        return dtype, tensors

    # --- traced functions ---

    def call(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function that calls the emulated copy of a traced function, by TensorFlow's function `call`."""

        def run(ctx: Any, name: bytes, inputs: Any, outputs: int) -> Any:
            return call(ctx, self._copy(name, _switch_is_on()), inputs, outputs)

        return run

    def _copy(self, name: bytes, rounds: bool) -> bytes:
        """Returns the name of a traced function's emulated copy, or the same name if the function has no products."""
        with self._lock:
            if (name, rounds) not in self._copies:
                definition = context.context().get_function_def(name)
                copied = self._exchange(definition, rounds)
                if copied:
                    definition.signature.name += f"_emulated_{next(_names)}"
                    context.context().add_function_def(definition)
                self._copies[name, rounds] = definition.signature.name.encode() if copied else name
            return self._copies[name, rounds]

    def _exchange(self, definition: function_pb2.FunctionDef, rounds: bool) -> bool:
        """Changes the products in a function and in the functions it calls; returns whether there were any."""
        changed = False
        nodes = list(definition.node_def)
        for node in nodes:
            for value in node.attr.values():
                for function in [value.func] if value.HasField("func") else value.list.func:
                    copy = self._copy(function.name.encode(), rounds).decode()
                    changed |= copy != function.name
                    function.name = copy
        products = {node.name: kind for node in nodes if (kind := self._kind(node, rounds))}
        mark = f"__{next(_names)}"

        def moved(source: str) -> str:
            name = source.partition(":")[0]
            if products.get(name) == "bfloat16":
                return f"{name}{mark}_result:y:0"
            return f"{name}{mark}_result:output:0" if self._noise and name in products else source

        for node in nodes:
            node.input[:] = [moved(source) for source in node.input]
        for key, source in list(definition.ret.items()):
            definition.ret[key] = moved(source)
        for node in nodes:
            if node.name in products:
                definition.node_def.extend(self._around(node, products[node.name], mark))
        return changed or bool(products)

    def _kind(self, node: node_def_pb2.NodeDef, rounds: bool) -> str:
        """Returns the change of an operation: "bfloat16", "rounded", "perturbed", or "" for none."""
        if node.op not in _PRODUCTS:
            return ""
        dtype = next(tf.as_dtype(node.attr[name].type) for name in _TYPES if name in node.attr)
        if dtype == tf.bfloat16:
            return "bfloat16"
        if dtype == tf.float32 and (rounds or self._noise):
            return "rounded" if rounds else "perturbed"
        return ""

    def _around(self, node: node_def_pb2.NodeDef, kind: str, mark: str) -> Iterator[node_def_pb2.NodeDef]:
        """Yields new nodes that round the operands and change the result of an operation, which is rewired to them."""

        def made(suffix: str, operation: str, inputs: list[str], **attributes: Any) -> node_def_pb2.NodeDef:
            new = node_def_pb2.NodeDef(name=node.name + mark + suffix, op=operation, input=inputs, device=node.device)
            for name, value in attributes.items():
                if isinstance(value, tf.DType):
                    new.attr[name].type = value.as_datatype_enum
                elif isinstance(value, list):
                    new.attr[name].list.type.extend(dtype.as_datatype_enum for dtype in value)
                elif isinstance(value, int):
                    new.attr[name].i = value
                else:
                    new.attr[name].func.name = value
            return new

        def called(suffix: str, function: Any, inputs: list[str]) -> node_def_pb2.NodeDef:
            types = [tf.float32] * len(inputs)
            return made(suffix, "PartitionedCall", inputs, Tin=types, Tout=types[:1], f=function.name)

        indices = _PRODUCTS[node.op]
        if indices is None:
            indices = tuple(index for index, source in enumerate(node.input) if not source.startswith("^"))
        for index in indices if kind != "perturbed" else ():
            suffix, source = f"_operand_{index}", [node.input[index]]
            if kind == "bfloat16":
                yield made(suffix, "Cast", source, SrcT=tf.bfloat16, DstT=tf.float32)
            else:
                yield called(suffix, self._round, source)
            node.input[index] = f"{node.name}{mark}{suffix}:{'y' if kind == 'bfloat16' else 'output'}:0"
        result = f"{node.name}:{op_def_registry.get(node.op).output_arg[0].name}:0"
        if self._noise:
            yield made("_shape", "Shape", [result], T=tf.float32, out_type=tf.int32)
            seeds = {"seed": self._seed, "seed2": next(self._numbers)}
            shape = f"{node.name}{mark}_shape:output:0"
            yield made("_drawn", "RandomUniform", [shape], dtype=tf.float32, T=tf.int32, **seeds)
            suffix = "_noisy" if kind == "bfloat16" else "_result"
            yield called(suffix, self._perturb, [result, f"{node.name}{mark}_drawn:output:0"])
            result = f"{node.name}{mark}{suffix}:output:0"
        if kind == "bfloat16":
            for name in _TYPES:
                if name in node.attr:
                    node.attr[name].type = tf.float32.as_datatype_enum
            yield made("_result", "Cast", [result], SrcT=tf.float32, DstT=tf.bfloat16)

    # --- arithmetic ---

    def _rounded(self, x: tf.Tensor) -> tf.Tensor:
        """Returns a float32 tensor rounded to fewer bits of mantissa."""
        bits = tf.bitcast(x, tf.int32)
        dropped = tf.constant(self._dropped)
        odd = tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, dropped), 1)
        bits = tf.bitwise.bitwise_and(bits + odd + (2 ** (self._dropped - 1) - 1), -(2**self._dropped))
        return tf.where(tf.math.is_finite(x), tf.bitcast(bits, tf.float32), x)

    def _perturbed(self, y: tf.Tensor, drawn: tf.Tensor) -> tf.Tensor:
        """Returns a float32 tensor with each number perturbed by noise; `drawn` is uniform in [0, 1)."""
        return y * (1 + self._noise * (2 * drawn - 1))


def _switch_is_on() -> bool:
    return tf.config.experimental.tensor_float_32_execution_enabled()


def _straight_through(change: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
    """Returns `change(x)` with the gradient of the identity, because an accelerator records no rounding."""
    return tf.custom_gradient(lambda x: (change(x), lambda upstream: upstream))(x)
