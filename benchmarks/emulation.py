"""An emulation of an accelerator's float32 arithmetic on a CPU, to measure and test exactness without an accelerator.

Two properties of accelerators matter to an invertible model:

- Accelerators round the operands of float32 matrix products and convolutions to 10 bits of mantissa (TF32, NVIDIA GPUs
  since Ampere) while TensorFlow's switch for TF32 is on, which is the default.
- Accelerators sum in another order, which can vary between calls, so that the last bits of results differ.

`emulated_accelerator` wraps the two functions by which TensorFlow runs single operations and traced functions. Instead
of a traced function, TensorFlow then calls a copy of the function, and copies of the functions called inside, with the
products replaced. The emulation therefore also covers gradients, and functions that were traced before it began.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import tensorflow as tf
from tensorflow.core.framework import function_pb2, node_def_pb2
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import context
from tensorflow.python.framework import op_def_registry

from tfdecouple.numerics import tf32

# {TensorFlow operation that multiplies matrices: indices of the inputs that are rounded to TF32, or None for all}.
_PRODUCTS: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "_FusedMatMul"), (0, 1)),
    **dict.fromkeys(("Conv2D", "_FusedConv2D"), (0, 1)),
    "Einsum": None,
    "Conv2DBackpropInput": (1, 2),
    "Conv2DBackpropFilter": (0, 2),
}
# Float32 has 23 bits of mantissa and TF32 has 10, so rounding drops 13 bits.
_DROPPED_BITS = 13
_SEED = 0
_switch_is_on = tf.config.experimental.tensor_float_32_execution_enabled

# This counter makes the names of copied functions and new graph nodes unique in the process, as TensorFlow requires.
_names = itertools.count(1)


@contextlib.contextmanager
def emulated_accelerator(noise: float = 0.0) -> Iterator[None]:
    """Makes TensorFlow round like an accelerator (TF32, noise) inside the context, in all threads of the process.

    With TensorFlow's switch for TF32 off and without noise, float32 results are unchanged to the bit. The emulation
    changes neither `tf.data` pipelines, which always run on CPUs, nor sessions of TensorFlow 1.

    Args:
        noise: largest relative change of a number in a result, drawn anew for each number and each call. For
            comparison: other kernels and orders of summation change float32 results by 1e-7 to 1e-6.
    """
    emulation = _Emulation(noise)
    execute = emulation.wrap_execute(pywrap_tfe.TFE_Py_FastPathExecute)
    call = emulation.wrap_call_function(context.Context.call_function)
    # TensorFlow looks these two functions up by name at each call, so replacing their attributes takes effect at once.
    with (
        contextlib.closing(emulation),
        mock.patch.object(pywrap_tfe, "TFE_Py_FastPathExecute", execute),
        mock.patch.object(context.Context, "call_function", call),
    ):
        yield


@contextlib.contextmanager
def keep_tf32_switch() -> Iterator[None]:
    """Keeps the project's code from turning TensorFlow's switch for TF32 off, inside the context, in all threads."""
    with mock.patch.object(tf32._switch, "count_contexts", lambda **_: None):
        yield


class _Emulation:
    """Replacements of the two functions by which TensorFlow runs operations; `noise` as in `emulated_accelerator`."""

    def __init__(self, noise: float):
        self._noise = noise
        # Each product draws its noise with a new seed from this counter, so that no two products share their noise.
        self._streams = itertools.count(1)
        self._lock = threading.RLock()
        self._copies: dict[tuple[bytes, bool], bytes] = {}
        anything = tf.TensorSpec(None, tf.float32)
        # TensorFlow removes a traced function without references, so these attributes keep the two functions alive.
        self._round = tf.function(_round_to_tf32, autograph=False).get_concrete_function(anything)
        self._perturb = tf.function(self._add_noise, autograph=False).get_concrete_function(anything, anything)

    def close(self) -> None:
        """Ends the emulation: removes the copies of traced functions that it added to TensorFlow's context."""
        for original, copy in self._copies.items():
            if copy != original[0]:
                context.context().remove_function(copy)
        self._copies.clear()

    # --- emulation of single operations ---

    def wrap_execute(self, execute: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a replacement of `execute`, which runs single TensorFlow operations; it emulates matrix products."""

        def run(ctx: Any, kind: str, name: Any, *arguments: Any) -> Any:
            if kind not in _PRODUCTS:
                return execute(ctx, kind, name, *arguments)
            values = list(arguments)
            if (indices := _PRODUCTS[kind]) is None:
                values[0] = _convert_operands(values[0])
            else:
                operands = _convert_operands([values[index] for index in indices])
                # An input that is not an operand is a size. TensorFlow would take a list of numbers for several inputs.
                for index in range(len(op_def_registry.get(kind).input_arg)):
                    is_operand = index in indices
                    values[index] = (
                        operands[indices.index(index)] if is_operand else tf.convert_to_tensor(values[index])
                    )
            result = execute(ctx, kind, name, *values)
            if self._noise and result.dtype == tf.float32:
                uniform = tf.random.stateless_uniform(tf.shape(result), [_SEED, next(self._streams)])
                result = _pass_gradient(lambda y: self._add_noise(y, uniform), result)
            return result

        return run

    # --- emulation of traced functions ---

    def wrap_call_function(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a replacement of `call`, which runs traced TensorFlow functions; it runs copies that emulate TF32."""

        def run(ctx: Any, name: bytes, inputs: Any, outputs: int) -> Any:
            return call(ctx, self._copy_function(name, _switch_is_on()), inputs, outputs)

        return run

    def _copy_function(self, name: bytes, rounds: bool) -> bytes:
        """Returns the name of the emulated copy of the traced function `name`, or `name` if it needs no emulation."""
        with self._lock:
            if (name, rounds) not in self._copies:
                definition = context.context().get_function_def(name)
                changed = self._replace_products(definition, rounds)
                if changed:
                    definition.signature.name += f"_emulated_{next(_names)}"
                    context.context().add_function_def(definition)
                self._copies[name, rounds] = definition.signature.name.encode() if changed else name
            return self._copies[name, rounds]

    def _replace_products(self, definition: function_pb2.FunctionDef, rounds: bool) -> bool:
        """Edits a traced function's `definition` to emulate its matrix products; returns whether anything changed."""
        changed = False
        nodes = list(definition.node_def)
        for node in nodes:
            for value in node.attr.values():
                for function in [value.func] if value.HasField("func") else value.list.func:
                    copy = self._copy_function(function.name.encode(), rounds).decode()
                    changed |= copy != function.name
                    function.name = copy
        if not (rounds or self._noise):
            return changed
        products = {node.name: node for node in nodes if _is_float32_product(node)}
        mark = f"__{next(_names)}"

        def rename_result(source: str) -> str:
            name = source.partition(":")[0]
            return f"{name}{mark}_result:output:0" if self._noise and name in products else source

        for node in nodes:
            node.input[:] = map(rename_result, node.input)
        for key, source in list(definition.ret.items()):
            definition.ret[key] = rename_result(source)
        for node in products.values():
            definition.node_def.extend(self._make_nodes_around(node, mark, rounds))
        return changed or bool(products)

    def _make_nodes_around(self, node: node_def_pb2.NodeDef, mark: str, rounds: bool) -> Iterator[node_def_pb2.NodeDef]:
        """Yields new graph nodes that round a product's operands and add noise to its result; rewires the product."""

        def make_node(suffix: str, operation: str, inputs: list[str], **types: Any) -> node_def_pb2.NodeDef:
            new = node_def_pb2.NodeDef(name=node.name + mark + suffix, op=operation, input=inputs, device=node.device)
            for name, dtype in types.items():
                new.attr[name].type = dtype.as_datatype_enum
            return new

        def make_call(suffix: str, function: Any, inputs: list[str]) -> node_def_pb2.NodeDef:
            new, float32 = make_node(suffix, "PartitionedCall", inputs), tf.float32.as_datatype_enum
            new.attr["Tin"].list.type.extend([float32] * len(inputs))
            new.attr["Tout"].list.type.append(float32)
            new.attr["f"].func.name = function.name
            return new

        indices = _PRODUCTS[node.op]
        if indices is None:
            indices = tuple(index for index, source in enumerate(node.input) if not source.startswith("^"))
        for index in indices if rounds else ():
            yield make_call(f"_operand_{index}", self._round, [node.input[index]])
            node.input[index] = f"{node.name}{mark}_operand_{index}:output:0"
        if self._noise:
            result = f"{node.name}:{op_def_registry.get(node.op).output_arg[0].name}:0"
            yield make_node("_shape", "Shape", [result], T=tf.float32, out_type=tf.int32)
            shape = f"{node.name}{mark}_shape:output:0"
            uniform = make_node("_uniform", "RandomUniform", [shape], dtype=tf.float32, T=tf.int32)
            uniform.attr["seed"].i, uniform.attr["seed2"].i = _SEED, next(self._streams)
            yield uniform
            yield make_call("_result", self._perturb, [result, f"{uniform.name}:output:0"])

    def _add_noise(self, y: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        """Returns `y`, float32, with random relative changes of at most `self._noise`; `uniform` is noise in [0, 1)."""
        return y * (1 + self._noise * (2 * uniform - 1))


def _is_float32_product(node: node_def_pb2.NodeDef) -> bool:
    types = [node.attr[name].type for name in ("T", "Ta") if name in node.attr]
    return node.op in _PRODUCTS and types[0] == tf.float32.as_datatype_enum


def _convert_operands(values: Any) -> list[tf.Tensor]:
    """Converts a product's operands to tensors of one dtype; rounds float32 to TF32 if TensorFlow's switch is on."""
    dtype = next((tf.as_dtype(value.dtype) for value in values if tf.is_tensor(value)), None)
    tensors = [tf.convert_to_tensor(value, dtype) for value in values]
    if tensors[0].dtype == tf.float32 and _switch_is_on():
        return [_pass_gradient(_round_to_tf32, tensor) for tensor in tensors]
    return tensors


def _round_to_tf32(x: tf.Tensor) -> tf.Tensor:
    """Returns `x`, float32, rounded to TF32's 10 bits of mantissa, with ties to even; inf and NaN are unchanged."""
    bits = tf.bitcast(x, tf.int32)
    odd = tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, _DROPPED_BITS), 1)
    bits = tf.bitwise.bitwise_and(bits + odd + (2 ** (_DROPPED_BITS - 1) - 1), -(2**_DROPPED_BITS))
    return tf.where(tf.math.is_finite(x), tf.bitcast(bits, tf.float32), x)


def _pass_gradient(change: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
    """Returns `change(x)` with the gradient of the identity: gradients on accelerators ignore rounding and noise."""
    return tf.custom_gradient(lambda x: (change(x), lambda upstream: upstream))(x)
