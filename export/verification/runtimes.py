"""The runtimes that run exported files: each opens the files of a folder and calls their endpoints with arrays.

Files are run as their users run them: ONNX files by ONNX Runtime without TensorFlow; a SavedModel in a session, which
reads graph, signatures and variables as the C++ loader of a server does, so that a SavedModel that only Python can load
fails.
"""

from __future__ import annotations

import abc
import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np

from tfdecouple.runtime.devices import count_cores

# Name of a provider that sends calls to a service elsewhere and computes nothing on this machine.
REMOTE = "AzureExecutionProvider"
# Options with which a provider of ONNX Runtime computes in full float32; without them images are lost.
_PROVIDER_OPTIONS = {
    "CUDAExecutionProvider": {"use_tf32": "0"},
    "TensorrtExecutionProvider": {"trt_fp16_enable": "0"},
    "OpenVINOExecutionProvider": {"precision": "FP32"},
}
_DEFAULT = "serving_default"

Arrays = dict[str, np.ndarray]


class Runtime(contextlib.ExitStack, abc.ABC):
    """The base class of runtimes: a context manager in which the endpoints of a folder's files can be called.

    Attributes:
        names: the names of the files, without suffix, by endpoint.
        title: the name of the runtime in messages.
        package: the name of the package that computes.
        layout: the order of axes of the deployed weights in the files.
        sorts_outputs: whether outputs come in the order of their names, instead of the endpoint's order.
        share: the share of the numbers in the weights that must equal the deployed weights, to the last bit.
        aliases: other names by which endpoints can be called.
        available: whether the runtime can compute on this machine.
    """

    title: ClassVar[str]
    package: ClassVar[str]
    layout: ClassVar[str] = "NHWC"
    sorts_outputs: ClassVar[bool] = True
    share: ClassVar[float] = 1.0

    def __init__(self, folder: pathlib.Path, names: Mapping[str, str]):
        super().__init__()
        self.folder, self.names = folder, dict(names)
        self.aliases: dict[str, str] = {}
        self.available = True

    @abc.abstractmethod
    def call(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Returns the outputs of an endpoint for its inputs, both by name."""

    @abc.abstractmethod
    def read_weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields all weights in the files, each with its name for messages."""


class SavedModel(Runtime):
    """The runtime of a SavedModel, which runs in a TensorFlow session."""

    title, package = "SavedModel", "tensorflow"

    def __init__(self, folder: pathlib.Path, names: Mapping[str, str]):
        super().__init__(folder, names)
        from tfdecouple.runtime.process import start_tensorflow

        start_tensorflow()
        import tensorflow as tf

        from tfdecouple.runtime.precision import full_float32

        with contextlib.ExitStack() as stack:
            stack.enter_context(full_float32())
            stack.enter_context(tf.Graph().as_default())
            self._session = stack.enter_context(tf.compat.v1.Session())
            meta = tf.compat.v1.saved_model.load(self._session, ["serve"], str(folder))
            # `__saved_model_init_op` is left out, because it names an operation of the loader, not a signature.
            self._signatures = {name: one for name, one in meta.signature_def.items() if not name.startswith("__")}
            if {*self._signatures} != {*names, _DEFAULT}:
                found = ", ".join(sorted(self._signatures))
                raise ValueError(f"the signatures are {found}; expected {', '.join(sorted(names))} and {_DEFAULT}")
            self.push(stack.pop_all())
        self.aliases = {_DEFAULT: next(iter(names))}

    def call(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Returns the outputs of a signature for its inputs, both by name."""
        import tensorflow as tf

        signature = self._signatures[endpoint]
        for name, array in inputs.items():
            # The shape is checked here as a server checks it, because a session does not.
            tf.TensorShape(signature.inputs[name].tensor_shape).assert_is_compatible_with(array.shape)
        feeds = {signature.inputs[name].name: array for name, array in inputs.items()}
        return self._session.run({name: info.name for name, info in signature.outputs.items()}, feeds)

    def read_weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields all variables of the SavedModel, each with its name."""
        names = [one.name for one in self._session.graph.get_operations() if one.type == "VarHandleOp"]
        # All variables are read at once, because each call of the session looks at the whole graph.
        yield from zip(names, self._session.run([f"{name}/Read/ReadVariableOp:0" for name in names]), strict=True)


class OnnxFiles(Runtime):
    """The runtime of ONNX files, which run in one execution provider of ONNX Runtime."""

    title, package, layout, sorts_outputs = "ONNX", "onnxruntime", "NCHW", False

    def __init__(self, folder: pathlib.Path, names: Mapping[str, str], provider: str = "CPUExecutionProvider"):
        super().__init__(folder, names)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        providers = [(provider, _PROVIDER_OPTIONS.get(provider, {}))]
        self._sessions = {
            endpoint: onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options, providers=providers)
            for endpoint, name in names.items()
        }
        # If a provider cannot start, ONNX Runtime silently takes another provider.
        self.available = all(provider in one.get_providers() for one in self._sessions.values())

    def call(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Returns the outputs of an endpoint's ONNX file for its inputs, both by name."""
        names = [output.name for output in self._sessions[endpoint].get_outputs()]
        return dict(zip(names, self._sessions[endpoint].run(names, inputs), strict=True))

    def read_weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields all arrays in the files except integers, which are shapes, positions and axes, each with its name."""
        import onnx
        from onnx import numpy_helper

        for name in self.names.values():
            for tensor in onnx.load(str(self.folder / f"{name}.onnx")).graph.initializer:
                if tensor.dims and tensor.data_type not in (onnx.TensorProto.INT32, onnx.TensorProto.INT64):
                    yield f"{name}.onnx: {tensor.name}", numpy_helper.to_array(tensor)


class LiteRTFiles(Runtime):
    """The runtime of LiteRT files, which run in the interpreter of the package ai-edge-litert."""

    title, package = "LiteRT", "ai-edge-litert"
    # The converter folds some arrays into preceding ones, which only the comparison of answers can verify.
    share = 0.75

    def __init__(self, folder: pathlib.Path, names: Mapping[str, str]):
        super().__init__(folder, names)
        from ai_edge_litert.interpreter import Interpreter

        paths = {endpoint: str(folder / f"{name}.tflite") for endpoint, name in names.items()}
        threads = count_cores()
        interpreters = {endpoint: Interpreter(model_path=path, num_threads=threads) for endpoint, path in paths.items()}
        self._runners = {endpoint: one.get_signature_runner(endpoint) for endpoint, one in interpreters.items()}

    def call(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Returns the outputs of an endpoint's LiteRT file for its inputs, both by name."""
        return self._runners[endpoint](**inputs)

    def read_weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields all constant float arrays except zeros, which the converter adds to convolutions without a bias."""
        from ai_edge_litert import schema_py_generated as schema

        for name in self.names.values():
            content = (self.folder / f"{name}.tflite").read_bytes()
            model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
            for tensor in (one for graph in model.subgraphs for one in graph.tensors):
                data = model.buffers[tensor.buffer].data
                is_array = data is not None and len(data) and np.prod(tensor.shape) > 1
                if is_array and tensor.type == schema.TensorType.FLOAT32:
                    array = np.frombuffer(bytes(data), np.float32).reshape(tensor.shape)
                    if array.any():
                        yield f"{name}.tflite: {tensor.name.decode()}", array


RUNTIMES: dict[str, type[Runtime]] = {"savedmodel": SavedModel, "onnx": OnnxFiles, "litert": LiteRTFiles}
