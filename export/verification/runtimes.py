"""The runtimes in which exported files are verified: each opens the files of a folder and calls their endpoints.

Files are run as their users run them. ONNX Runtime runs the ONNX files without TensorFlow. A TensorFlow session runs
the SavedModel: it reads graph, signatures and variables as the C++ loader of a server does, so that a SavedModel which
needs Python functions fails.
"""

from __future__ import annotations

import abc
import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np

from tfdecouple.runtime.devices import count_cores

# A provider of ONNX Runtime that sends its inputs to a service on another machine.
REMOTE = "AzureExecutionProvider"
# With these options ONNX Runtime's providers compute in full float32. In TF32 or float16 images do not decode exactly.
_PROVIDER_OPTIONS = {
    "CUDAExecutionProvider": {"use_tf32": "0"},
    "TensorrtExecutionProvider": {"trt_fp16_enable": "0"},
    "OpenVINOExecutionProvider": {"precision": "FP32"},
}
_DEFAULT = "serving_default"

Arrays = dict[str, np.ndarray]


class Runtime(contextlib.ExitStack, abc.ABC):
    """The base class of runtimes: a context manager that opens the files of a folder and closes them at its end.

    Attributes:
        names: {endpoint: name of its file, without suffix}.
        title: the name of the file format in messages.
        package: the name of the Python package that runs the files.
        layout: the order of the image axes for which the weights in the files are made, "NHWC" or "NCHW".
        sorts_outputs: whether `call_endpoint` returns outputs sorted by name, not in the endpoint's order.
        share: the fraction of values in the files' weights that must equal the model's folded weights to the last bit.
        aliases: {further name of an endpoint: its name}.
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
    def call_endpoint(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Runs an endpoint of the exported files on `inputs`, {input name: array}; returns {output name: array}."""

    @abc.abstractmethod
    def read_weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (name for messages, array) of each weight in the exported files."""


class SavedModel(Runtime):
    """A runtime for the verification that runs a SavedModel in a TensorFlow session."""

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
            # `__saved_model_init_op` is left out, because it is an operation for the loader and no signature.
            self._signatures = {name: one for name, one in meta.signature_def.items() if not name.startswith("__")}
            if {*self._signatures} != {*names, _DEFAULT}:
                found = ", ".join(sorted(self._signatures))
                raise ValueError(f"the signatures are {found}; expected {', '.join(sorted(names))} and {_DEFAULT}")
            self.push(stack.pop_all())
        self.aliases = {_DEFAULT: next(iter(names))}

    def call_endpoint(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Runs a signature of the SavedModel on `inputs`, {input name: array}; returns {output name: array}."""
        import tensorflow as tf

        signature = self._signatures[endpoint]
        for name, array in inputs.items():
            # A server checks shapes against the signature, but a session does not; so they are checked here.
            tf.TensorShape(signature.inputs[name].tensor_shape).assert_is_compatible_with(array.shape)
        feeds = {signature.inputs[name].name: array for name, array in inputs.items()}
        return self._session.run({name: info.name for name, info in signature.outputs.items()}, feeds)

    def read_weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (name, array) of each weight, a variable of the SavedModel."""
        names = [one.name for one in self._session.graph.get_operations() if one.type == "VarHandleOp"]
        # All variables are read in one call, because every call of a session takes time for the whole graph.
        yield from zip(names, self._session.run([f"{name}/Read/ReadVariableOp:0" for name in names]), strict=True)


class OnnxFiles(Runtime):
    """A runtime for the verification that runs ONNX files with one execution provider of ONNX Runtime."""

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
        # If a provider cannot start, ONNX Runtime silently uses another provider.
        self.available = all(provider in one.get_providers() for one in self._sessions.values())

    def call_endpoint(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Runs the ONNX file of an endpoint on `inputs`, {input name: array}; returns {output name: array}."""
        names = [output.name for output in self._sessions[endpoint].get_outputs()]
        return dict(zip(names, self._sessions[endpoint].run(names, inputs), strict=True))

    def read_weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (name, array) of each initializer of the ONNX files, except scalars and integers (shapes, axes)."""
        import onnx
        from onnx import numpy_helper

        for name in self.names.values():
            for tensor in onnx.load(str(self.folder / f"{name}.onnx")).graph.initializer:
                if tensor.dims and tensor.data_type not in (onnx.TensorProto.INT32, onnx.TensorProto.INT64):
                    yield f"{name}.onnx: {tensor.name}", numpy_helper.to_array(tensor)


class LiteRTFiles(Runtime):
    """A runtime for the verification that runs LiteRT files with the interpreter of the package ai-edge-litert.

    As long as TensorFlow contains it, `tf.lite.Interpreter` has the same methods.
    """

    title, package = "LiteRT", "ai-edge-litert"
    # LiteRT's converter multiplies some weights into others, so not all weights equal the model's folded weights.
    share = 0.75

    def __init__(self, folder: pathlib.Path, names: Mapping[str, str]):
        super().__init__(folder, names)
        from ai_edge_litert.interpreter import Interpreter

        paths = {endpoint: str(folder / f"{name}.tflite") for endpoint, name in names.items()}
        threads = count_cores()
        interpreters = {endpoint: Interpreter(model_path=path, num_threads=threads) for endpoint, path in paths.items()}
        self._runners = {endpoint: one.get_signature_runner(endpoint) for endpoint, one in interpreters.items()}

    def call_endpoint(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Runs the LiteRT file of an endpoint on `inputs`, {input name: array}; returns {output name: array}."""
        return self._runners[endpoint](**inputs)

    def read_weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (name, array) of each float constant in the LiteRT files, except zeros that the converter adds."""
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
