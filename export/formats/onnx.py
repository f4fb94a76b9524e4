"""Builds ONNX models: tf2onnx, which no other module calls, converts the graph of an endpoint without its weights."""

import contextlib
import io
import logging
import pathlib
import signal
import warnings
from collections.abc import Container, Iterator, Mapping

import numpy as np
import tensorflow as tf

from export import LOG
from export.endpoints import Endpoint
from export.exported_model import ExportedModel
from export.provenance import Provenance, read_version
from tfdecouple.errors import UserError, one_line
from tfdecouple.system.signals import postpone_signals

# Python's exception for Ctrl-C would abort the process while it imports onnx, whose C++ code does not catch it.
with postpone_signals(signal.SIGINT, signal.SIGTERM):
    import onnx

# The version of the ONNX operators: the highest that tf2onnx writes; ONNX Runtime reads it on all platforms.
OPSET = 18
# The optimiser passes of tf2onnx that change the graphs of endpoints, in tf2onnx's order. With all passes of tf2onnx, a
# conversion would take more than twice as long.
_PASSES = (
    "TransposeOptimizer", "ConstFoldOptimizer", "MergeDuplicatedNodesOptimizer", "IdentityOptimizer",
    "BackToBackOptimizer",
)  # fmt: skip


def write_onnx_files(
    exported: ExportedModel, provenance: Provenance, folder: pathlib.Path, names: Container[str | None] = ()
) -> dict[str, str]:
    """Writes the files `NAME.onnx` of endpoints into `folder`, those with `names` (() for all); {endpoint: NAME}."""
    written = {}
    for endpoint in exported.endpoints:
        if endpoint.onnx and (not names or endpoint.onnx in names):
            LOG.info("ONNX: %s", endpoint.onnx)
            metadata = {**provenance.metadata, "name": provenance.name, "endpoint": endpoint.name}
            onnx.save(build_onnx(exported, endpoint, metadata), folder / f"{endpoint.onnx}.onnx")
            written[endpoint.name] = endpoint.onnx
    return written


def build_onnx(exported: ExportedModel, endpoint: Endpoint, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Returns the ONNX model of an endpoint; it contains all weights, and `metadata`, {name: text}, as properties.

    `exported` has its channels first. During the conversion, the weights are inputs of the graph; afterwards they
    become initializers. So tf2onnx does not spend most of its time on copying weights, and a TensorFlow graph's size
    limit does not apply. UserError is raised if tf2onnx cannot convert an operation of the graph.
    """
    with _silence_tf2onnx():
        import tf2onnx.tfonnx
        from tf2onnx import optimizer

        arrays = exported.collect_arrays()
        names = {f"weight_{number}": name for number, name in enumerate(arrays)}
        with tf.Graph().as_default() as graph:
            placed = {name: tf.compat.v1.placeholder("float32", arrays[name].shape, key) for key, name in names.items()}
            specs = [array.make_tensor_spec() for array in endpoint.inputs]
            inputs = {spec.name: tf.compat.v1.placeholder(spec.dtype, spec.shape, spec.name) for spec in specs}
            tensors = endpoint.answer(exported.make_answers(placed.__getitem__), inputs)
            outputs = [tf.identity(tensors[array.name], f"output/{array.name}") for array in endpoint.outputs]
        # Log-determinants, and the weights that only they need, are left out.
        needed = tf.compat.v1.graph_util.extract_sub_graph(graph.as_graph_def(), [tensor.op.name for tensor in outputs])
        weights = {node.name: names[node.name] for node in needed.node if node.name in names}
        renamed = {tensor.name: array.name for tensor, array in zip(outputs, endpoint.outputs, strict=True)}
        renamed |= {f"{name}:0": name for name in inputs} | {f"{key}:0": name for key, name in weights.items()}
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(needed, name="")
        try:
            converted = tf2onnx.tfonnx.process_tf_graph(
                graph,
                opset=OPSET,
                input_names=[*(tensor.name for tensor in inputs.values()), *(f"{key}:0" for key in weights)],
                output_names=[tensor.name for tensor in outputs],
                tensors_to_rename=renamed,
            )
        except ValueError as error:
            reason = f"{endpoint.name} cannot be converted to ONNX: {one_line(error, first=True)}"
            raise UserError(f"{reason}; leave the format onnx out") from error
        # Each pass runs once; `tf2onnx.optimizer.optimize_graph` would run a second round, which changes nothing.
        for name in _PASSES:
            passed = getattr(optimizer, name)()
            if name == "TransposeOptimizer":
                # tf2onnx moves transpositions past differences, but not past quotients.
                passed._handler_map["Div"] = passed._sub_handler
            converted = passed.optimize(converted, 0)
        converted.topological_sort(converted.get_nodes())
        model = converted.make_model(endpoint.summary)
    _insert_weights(model.graph, {name: arrays[name] for name in weights.values()})
    _replace_elu(model.graph)
    _name_free_axes(model.graph, endpoint)
    used = {node.domain for node in model.graph.node}
    for entry in [entry for entry in model.opset_import if entry.domain not in used]:
        model.opset_import.remove(entry)
    model.producer_name, model.producer_version = "tfdecouple", read_version("tfdecouple")
    model.graph.name = endpoint.name
    model.doc_string = endpoint.summary
    onnx.helper.set_model_props(model, dict(metadata))
    return model


def _insert_weights(graph: onnx.GraphProto, arrays: Mapping[str, np.ndarray]) -> None:
    """Turns inputs of an ONNX graph that are weights, {name: array}, into initializers; transposes them in advance."""
    for value in [value for value in graph.input if value.name in arrays]:
        graph.input.remove(value)
    for tensor in graph.initializer:
        # The optimiser gives single numbers the rank of a map.
        if tensor.data_type == onnx.TensorProto.FLOAT and set(tensor.dims) == {1}:
            tensor.ClearField("dims")
    transpositions = [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in arrays]
    for node in transpositions:
        graph.node.remove(node)
    used, names = {name for node in graph.node for name in node.input}, {}
    for node in transpositions:
        name, order = node.input[0], node.attribute[0].ints
        # A weight that the graph uses both as it is and transposed becomes two initializers, which need two names.
        names[node.output[0]] = f"{name}/{''.join(map(str, order))}" if name in used else name
        array = np.ascontiguousarray(np.transpose(arrays[name], order))
        graph.initializer.append(onnx.numpy_helper.from_array(array, names[node.output[0]]))
    for name in [name for name in arrays if name in used]:
        graph.initializer.append(onnx.numpy_helper.from_array(arrays[name], name))
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _replace_elu(graph: onnx.GraphProto) -> None:
    """Replaces each Elu(x) by Max(x, Exp(Clip(x)) - 1), which ONNX Runtime computes in a third of the time.

    It computes Elu on one thread and without vector instructions. The two are equal, because exp(0) - 1 = 0 <= x above
    0, and exp(x) - 1 >= x below.
    """
    nodes = [*graph.node]
    del graph.node[:]
    for number, name in enumerate(("elu/zero", "elu/one")):
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(number, np.float32), name))
    for node in nodes:
        if node.op_type != "Elu":
            graph.node.append(node)
            continue
        (x,), (y,) = node.input, node.output
        for operator, inputs, output in (
            ("Clip", [x, "", "elu/zero"], f"{y}/clip"), ("Exp", [f"{y}/clip"], f"{y}/exp"),
            ("Sub", [f"{y}/exp", "elu/one"], f"{y}/below"), ("Max", [x, f"{y}/below"], y),
        ):  # fmt: skip
            graph.node.append(onnx.helper.make_node(operator, inputs, [output], output))


def _name_free_axes(graph: onnx.GraphProto, endpoint: Endpoint) -> None:
    arrays = {array.name: array for array in (*endpoint.inputs, *endpoint.outputs)}
    for value in [*graph.input, *graph.output]:
        element_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(arrays[value.name].dtype))
        axes: list[str | int | None] = [*arrays[value.name].axes]
        meaning = arrays[value.name].meaning
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, element_type, axes, meaning))
    # The shapes of inner tensors are removed: no runtime needs them, and tf2onnx names their axes differently.
    del graph.value_info[:]


@contextlib.contextmanager
def _silence_tf2onnx() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
