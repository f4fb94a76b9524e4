"""Where TensorFlow would run the model on a machine with a GPU, by the kernels that TensorFlow registers."""

import functools
import itertools
import re
from typing import Any, NamedTuple

import keras
import pytest
import tensorflow as tf
from helpers.trainers import BATCH, Trainer
from helpers.variants import OF_CLASSES, STAGES, VARIANTS
from tensorflow.python.framework import kernels, op_def_registry

from tfdecouple.config import MEMORY, PRECISIONS
from tfdecouple.layers import Coupling
from tfdecouple.metrics.bits_per_dim import BoundEvaluator

# The logical device that stands for the GPU in explicit placements, as of a strategy. CPU:0 is the CPU.
GPU = "CPU:1"
# TensorFlow looks for a kernel of the first type, and then for one that fits every kind of device.
_KERNEL_TYPES = ("GPU", "DEFAULT")
# Tensors of these types are handles, which are always in the host's memory.
_HANDLES = (tf.resource, tf.variant, tf.string)
# Operations whose GPU kernels complete only after the host has read a status, or a size, from the GPU.
_COMPLETED_BY_HOST = {"LogMatrixDeterminant", "MatrixDeterminant", "MatrixInverse", "Cholesky", "Svd", "Where"}


class Placement(NamedTuple):
    """What a traced function would do on a machine with a GPU, as descriptions.

    `downloads` (for which the host waits) and `uploads` are copies, described as "MAKER -> USER". `waiting` are
    operations that complete on the host, and `on_cpu` operations on floats without a GPU kernel.
    """

    downloads: set[str]
    uploads: set[str]
    waiting: set[str]
    on_cpu: set[str]


def place_on_gpu(traced: tf.types.experimental.ConcreteFunction) -> Placement:
    """Returns the `Placement` of a traced function and of all functions that it calls, each counted once."""
    library = {function.signature.name: function for function in traced.graph.as_graph_def().library.function}
    placement, definitions = Placement(set(), set(), set(), set()), [traced.function_def]
    nodes = [node for definition in [*definitions, *library.values()] for node in definition.node_def]
    conditions = {node.attr["cond"].func.name for node in nodes if node.op in ("While", "StatelessWhile")}
    while definitions:
        definition = definitions.pop()
        _place_function(definition, placement, definition.signature.name in conditions)
        called = {name for node in definition.node_def for name in _list_functions(node)}
        definitions += [library.pop(name) for name in called if name in library]
    return placement


def _place_function(definition: Any, placement: Placement, is_condition: bool) -> None:
    """Adds the operations of a traced function (a `FunctionDef`), possibly a loop's condition, to `placement`."""
    # {tensor: (type of the operation that makes it, whether it is in the GPU's memory)}.
    made = {arg.name: ("argument", _is_passed_on_gpu(tf.as_dtype(arg.type))) for arg in definition.signature.input_arg}
    placed = [(node, _find_gpu_kernel(node)) for node in definition.node_def]
    for node, kernel in placed:
        for arg, position, dtype in _list_arguments(node, "output_arg"):
            made[f"{node.name}:{arg}:{position}"] = node.op, _is_in_gpu_memory(node, arg, dtype, kernel)

    def record(source: str, user: str, is_used_on_gpu: bool, dtype: tf.DType) -> None:
        maker, is_on_gpu = made[source]
        if is_on_gpu != is_used_on_gpu and dtype not in _HANDLES:
            (placement.downloads if is_on_gpu else placement.uploads).add(f"{maker} -> {user}")

    for node, kernel in placed:
        inputs = _list_arguments(node, "input_arg")
        dtypes = {dtype for _, _, dtype in [*inputs, *_list_arguments(node, "output_arg")]}
        if kernel is None and "CPU:0" not in node.device and any(dtype.is_floating for dtype in dtypes):
            placement.on_cpu.add(f"{node.op} {', '.join(sorted(dtype.name for dtype in dtypes))}: {node.name}")
        if node.op in _COMPLETED_BY_HOST:
            placement.waiting.add(node.op)
        for source, (arg, _, dtype) in zip(node.input, inputs, strict=False):
            record(source, node.op, _is_in_gpu_memory(node, arg, dtype, kernel), dtype)
    for arg in definition.signature.output_arg:
        dtype = tf.as_dtype(arg.type)
        # The host decides whether a loop continues.
        record(definition.ret[arg.name], "result", _is_passed_on_gpu(dtype) and not is_condition, dtype)


def _list_arguments(node: Any, kind: str) -> list[tuple[str, int, tf.DType]]:
    """Returns [(name, index, dtype)] of all tensors of a node's inputs ("input_arg") or outputs ("output_arg")."""
    arguments: list[tuple[str, int, tf.DType]] = []
    for arg in getattr(op_def_registry.get(node.op), kind):
        if arg.type_list_attr:
            types = list(node.attr[arg.type_list_attr].list.type)
        else:
            types = [node.attr[arg.type_attr].type if arg.type_attr else arg.type]
            types *= node.attr[arg.number_attr].i if arg.number_attr else 1
        arguments += [(arg.name, index, tf.as_dtype(dtype)) for index, dtype in enumerate(types)]
    return arguments


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
    types, registered = dict(attributes), kernels.get_registered_kernels_for_op(op).kernel
    for kind, kernel in itertools.product(_KERNEL_TYPES, registered):
        limits = [limit for limit in kernel.constraint if limit.name in types]
        fits = all(types[limit.name] in limit.allowed_values.list.type for limit in limits)
        if kernel.device_type == kind and not kernel.label and fits:
            return kernel
    return None


def _list_functions(node: Any) -> list[str]:
    functions = [function for value in node.attr.values() for function in [value.func, *value.list.func]]
    return [function.name for function in functions if function.name]


# Copies from the host to the GPU, for which nothing waits, and the reason for each. None grows with the images.
UPLOADS = {
    **{f"StatelessRandomGetKeyCounter -> StatelessRandom{kind}V2": "key of a draw" for kind in ("Normal", "Uniform")},
    "StatelessRandomGetKeyCounter -> StridedSlice": "the counter of a draw that begins in the middle",
    "StridedSlice -> Cast": "a hash of the seed, for noise by index",
    "Const -> Cast": "the count of images",
    "Equal -> SelectV2": "the micro-batch's place among the inversion errors",
    **{f"argument -> {user}": "labels" for user in ("Cast", "GatherV2", "OneHot")},
    **{f"EnsureShape -> {user}": "labels" for user in ("Cast", "GatherV2", "OneHot")},
}
# Operations of a 1x1 convolution for which the host waits, because cuSolver reports singular matrices to it.
WAITING = {"LogMatrixDeterminant", "MatrixInverse"}
MODELS = {
    "stages": STAGES,
    "dequantization": VARIANTS["dequantization"],
    "z of labels": OF_CLASSES["classes"],
    "labels": OF_CLASSES["prior-classes"],
}
# Options of training that change images and gradients.
AUGMENTED = {"noise": 1.0, "noise_steps": 10, "patterns": 0.1, "clip_norm": 1.0, "kl_warmup_steps": 5}
SCALAR, WHOLE = tf.TensorSpec([]), tf.TensorSpec([], tf.int32)


@pytest.fixture
def gpu(monkeypatch):
    """Makes the code take its branches for a GPU; a logical CPU device stands for the GPU."""
    (device,) = (cpu for cpu in tf.config.list_logical_devices("CPU") if cpu.name.endswith(GPU))
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind=None: ["/GPU:0"] if kind == "GPU" else [])
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: [device])
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    # Traces that can later run in TF32 would warn.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    yield
    tf.config.experimental.enable_tensor_float_32_execution(before)


def make_specs(config, count):
    labels = tf.TensorSpec([count], tf.int32) if config.has_labels else None
    return tf.TensorSpec([count, *config.image_shape], tf.uint8), labels


def trace_step(trainer):
    step, micro_batches = trainer.step_function, trainer.config.training.micro_batches
    images, labels = make_specs(trainer.config.model, BATCH // micro_batches)
    examples = images if labels is None else (images, labels)
    if micro_batches == 1:
        yield step._take_step.get_concrete_function(examples, WHOLE, SCALAR)
        return
    sums = tf.TensorSpec([sum(step._sizes)])
    yield step._start_sums.get_concrete_function()
    yield step._add_to_sums.get_concrete_function(sums, examples, WHOLE, SCALAR, WHOLE)
    yield step._apply_sums.get_concrete_function(sums)


def trace_inference(trainer):
    model, config = trainer.state.model, trainer.config.model
    images, labels = make_specs(config, BATCH)
    coded = (labels,) if config.has_label_codes else ()
    evaluator = BoundEvaluator(model, trainer.strategy)
    index = tf.TensorSpec([BATCH], tf.int64)
    yield evaluator._compute_on_devices.get_concrete_function(images, labels, index, WHOLE, WHOLE)
    z, v = tf.TensorSpec([BATCH, config.latent_dim]), tf.TensorSpec([BATCH, *config.image_shape])
    for function, *inputs in [
        (lambda *given: model.encode(*given), images, *coded),
        (lambda *given: model.decode(*given), z, v),
        (lambda seed: model.sample(BATCH, seed=seed), tf.TensorSpec([2], tf.int32)),
    ]:
        yield tf.function(function, autograph=False).get_concrete_function(*inputs)


def assert_stays_on_gpu(traced_functions):
    """Asserts that traced functions compute on the GPU, copy nothing from it, and wait only for what is listed."""
    for traced in traced_functions:
        placement = place_on_gpu(traced)
        assert not placement.on_cpu | placement.downloads, traced.name
        assert placement.uploads <= set(UPLOADS) and placement.waiting <= WAITING, traced.name


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
class TestOnGpu:
    @pytest.mark.parametrize(("precision", "memory"), zip(PRECISIONS, MEMORY, strict=True))
    def test_training_step_of_each_precision_and_memory_mode_waits_only_for_determinants(self, precision, memory):
        assert_stays_on_gpu(trace_step(Trainer(devices=None, model=STAGES, precision=precision, memory=memory)))

    @pytest.mark.parametrize("name", MODELS)
    def test_training_and_inference_of_each_kind_of_model_wait_only_for_determinants(self, name):
        trainer = Trainer(devices=None, model=MODELS[name], **AUGMENTED)
        assert_stays_on_gpu([*trace_step(trainer), *trace_inference(trainer)])

    @pytest.mark.parametrize("name", ["labels", "dequantization"])
    def test_micro_batches_on_a_gpu_wait_only_for_determinants(self, name):
        assert_stays_on_gpu(trace_step(Trainer(devices=None, model=MODELS[name], micro_batches=2, **AUGMENTED)))


def lower_products():
    """Returns the lines of the StableHLO for a GPU with the products of a coupling and of its gradients."""
    layer = Coupling(hidden=4, condition_size=3, alpha=0.8)
    layer.build((None, 4, 4, 4), (None, 3))
    weights = [tf.convert_to_tensor(variable) for variable in layer.variables]

    def compute_gradients(x, z, *values):
        with keras.StatelessScope(zip(layer.variables, values, strict=True)), tf.GradientTape() as tape:
            tape.watch([x, z, *values])
            y, log_det = layer.forward_and_log_det(x, z)
            loss = tf.reduce_sum(y**2) - tf.reduce_sum(log_det)
        return tape.gradient(loss, [x, z, *values])

    function = tf.function(compute_gradients, autograph=False, jit_compile=True)
    lower = function.experimental_get_compiler_ir(tf.ones([2, 4, 4, 4]), tf.ones([2, 3]), *weights)
    text = lower(stage="stablehlo", platform_name="GPU")
    return re.findall(r"stablehlo\.(?:convolution|dot|dot_general)\b.*", text)


@pytest.mark.usefixtures("gpu")
@pytest.mark.filterwarnings("ignore:this function calls tfdecouple:RuntimeWarning")
@pytest.mark.parametrize(("is_on", "asked"), [(False, "HIGHEST"), (True, "DEFAULT")])
def test_xla_computes_a_coupling_in_full_precision_unless_tf32_is_on(is_on, asked):
    tf.config.experimental.enable_tensor_float_32_execution(is_on)
    products = lower_products()
    # Four products, the 3x3 convolutions, the 1x1 convolution and that of z, and two gradients of each.
    assert len(products) == 12
    assert {name for line in products for name in re.findall("HIGHEST|HIGH|DEFAULT", line)} == {asked}
