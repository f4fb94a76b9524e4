"""Where TensorFlow would run the operations of a traced function on a machine with a GPU, worked out without a GPU.

TensorFlow's packages for Linux register the kernels for GPUs on every machine. Each registration lists the arguments
that the kernel has in the host's memory. From these lists follow the operations that would run on the CPU, and the
copies from the GPU to the host, for each of which the host waits.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.python.framework import kernels, op_def_registry

# The logical device that stands for the GPU in explicit placements, as of a strategy. CPU:0 is the CPU.
GPU = "CPU:1"
# TensorFlow looks for a kernel of the first type, and then for one that fits every kind of device.
_KERNEL_TYPES = ("GPU", "DEFAULT")
# Tensors of these types are handles, which are always in the host's memory.
_HANDLES = (tf.resource, tf.variant, tf.string)
# Operations whose GPU kernels complete only after the host has read a status, or a size, from the GPU.
_COMPLETED_BY_HOST = {"LogMatrixDeterminant", "MatrixDeterminant", "MatrixInverse", "Cholesky", "Svd", "Where"}


class Placement(NamedTuple):
    """What a traced function would do on a machine with a GPU: four dicts from a description to where it occurs.

    Attributes:
        downloads: copies from the GPU to the host, for which the host waits; "MAKER -> USER" of the copied tensor.
        uploads: copies from the host to the GPU; "MAKER -> USER".
        waiting: types of operations that run on the GPU and complete on the host.
        on_cpu: operations on floats that have no GPU kernel; "TYPE dtype, dtype".
    """

    downloads: dict[str, str]
    uploads: dict[str, str]
    waiting: dict[str, str]
    on_cpu: dict[str, str]


def place_on_gpu(traced: tf.types.experimental.ConcreteFunction) -> Placement:
    """Returns the `Placement` of a traced function and of all functions that it calls, each counted once."""
    library = {each.signature.name: each for each in traced.graph.as_graph_def().library.function}
    placement, definitions = Placement({}, {}, {}, {}), [traced.function_def]
    nodes = [node for definition in [*definitions, *library.values()] for node in definition.node_def]
    conditions = {node.attr["cond"].func.name for node in nodes if node.op in ("While", "StatelessWhile")}
    while definitions:
        definition = definitions.pop()
        _place_function(definition, placement, definition.signature.name in conditions)
        definitions += [library.pop(name) for name in _list_called_functions(definition) if name in library]
    return placement


def _place_function(definition: Any, placement: Placement, is_condition: bool) -> None:
    """Adds the operations of a traced function (a `FunctionDef`), possibly a loop's condition, to `placement`."""
    # {tensor: (type of the operation that makes it, whether it is in the GPU's memory)}.
    made = {arg.name: ("argument", _is_passed_on_gpu(tf.as_dtype(arg.type))) for arg in definition.signature.input_arg}
    placed = [(node, _find_gpu_kernel(node)) for node in definition.node_def]
    for node, kernel in placed:
        for arg, position, dtype in _list_arguments(node, "output_arg"):
            made[f"{node.name}:{arg}:{position}"] = node.op, _is_in_gpu_memory(node, arg, dtype, kernel)

    def record(source: str, user: str, is_used_on_gpu: bool, dtype: tf.DType, where: str) -> None:
        maker, is_on_gpu = made[source]
        if is_on_gpu != is_used_on_gpu and dtype not in _HANDLES:
            (placement.downloads if is_on_gpu else placement.uploads)[f"{maker} -> {user}"] = where

    for node, kernel in placed:
        where, inputs = f"{definition.signature.name}/{node.name}", _list_arguments(node, "input_arg")
        dtypes = {dtype for _, _, dtype in [*inputs, *_list_arguments(node, "output_arg")]}
        if kernel is None and "CPU:0" not in node.device and any(dtype.is_floating for dtype in dtypes):
            placement.on_cpu[f"{node.op} {', '.join(sorted(dtype.name for dtype in dtypes))}"] = where
        if node.op in _COMPLETED_BY_HOST:
            placement.waiting[node.op] = where
        for source, (arg, _, dtype) in zip(node.input, inputs, strict=False):
            record(source, node.op, _is_in_gpu_memory(node, arg, dtype, kernel), dtype, where)
    for arg in definition.signature.output_arg:
        dtype = tf.as_dtype(arg.type)
        # The host decides whether a loop goes on.
        is_used_on_gpu = _is_passed_on_gpu(dtype) and not is_condition
        record(definition.ret[arg.name], "result", is_used_on_gpu, dtype, definition.signature.name)


def _list_arguments(node: Any, kind: str) -> list[tuple[str, int, tf.DType]]:
    """Returns [(name, index, dtype)] of all tensors of a node's inputs ("input_arg") or outputs ("output_arg")."""
    found: list[tuple[str, int, tf.DType]] = []
    for arg in getattr(op_def_registry.get(node.op), kind):
        if arg.type_list_attr:
            types = list(node.attr[arg.type_list_attr].list.type)
        else:
            types = [node.attr[arg.type_attr].type if arg.type_attr else arg.type]
            types *= node.attr[arg.number_attr].i if arg.number_attr else 1
        found += [(arg.name, index, tf.as_dtype(one)) for index, one in enumerate(types)]
    return found


def _is_passed_on_gpu(dtype: tf.DType) -> bool:
    """Returns whether functions take and return tensors of `dtype` in the GPU's memory: all but int32."""
    return dtype not in (tf.int32, *_HANDLES)


def _is_in_gpu_memory(node: Any, arg: str, dtype: tf.DType, kernel: Any) -> bool:
    """Returns whether the input or output `arg` of a node that runs with `kernel` (None: on the CPU) is on the GPU."""
    if kernel is None or dtype in _HANDLES:
        return False
    return arg not in kernel.host_memory_arg and (_is_passed_on_gpu(dtype) or not _list_functions(node))


def _find_gpu_kernel(node: Any) -> Any:
    """Returns the registration of the kernel that a GPU would run a node with; None where the CPU runs the node."""
    if "CPU:0" in node.device:
        return None
    types = {name: value.type for name, value in sorted(node.attr.items()) if value.type}
    if any(dtype == tf.resource for _, _, dtype in _list_arguments(node, "input_arg")):
        # An operation on a variable runs where the variable is.
        variable = types.get("dtype", types.get("T", 0))
        if variable and _match_kernel("VarHandleOp", (("dtype", variable),)) is None:
            return None
    return _match_kernel(node.op, tuple(types.items()))


@functools.cache
def _match_kernel(op: str, attributes: tuple[tuple[str, int], ...]) -> Any:
    """Returns the registration of the GPU kernel of an operation with these types by attribute, or None."""
    types = dict(attributes)
    registered = kernels.get_registered_kernels_for_op(op).kernel
    for kind in _KERNEL_TYPES:
        for kernel in registered:
            fits = all(
                each.name not in types or types[each.name] in each.allowed_values.list.type
                for each in kernel.constraint
            )
            if kernel.device_type == kind and not kernel.label and fits:
                return kernel
    return None


def _list_called_functions(definition: Any) -> set[str]:
    """Returns the names of the functions that the nodes of a `FunctionDef` call."""
    return {name for node in definition.node_def for name in _list_functions(node)}


def _list_functions(node: Any) -> list[str]:
    """Returns the names of the functions that a node calls."""
    functions = [function for value in node.attr.values() for function in [value.func, *value.list.func]]
    return [function.name for function in functions if function.name]
