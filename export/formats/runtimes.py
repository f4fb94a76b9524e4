"""The runtimes in which exported files are verified: each opens the files of a folder and calls their endpoints.

Files are run as their users run them. ONNX Runtime runs the ONNX files without TensorFlow. A TensorFlow session runs
the SavedModel: it reads graph, signatures and variables as the C++ loader of a server does, so that a SavedModel which
needs Python functions fails.
"""

import abc
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import numpy as np

from tfdecouple.config.shapes import Shape
from tfdecouple.storage.files import Facts, count_records
from tfdecouple.system.devices import count_cores

# Path of the requests with which TensorFlow Serving warms a model up, below the folder of a SavedModel.
WARMUP_FILE = pathlib.Path("assets.extra", "tf_serving_warmup_requests")
# A provider of ONNX Runtime that sends its inputs to a service on another machine.
REMOTE = "AzureExecutionProvider"
# With these options ONNX Runtime's providers compute in full float32. In TF32 or float16 images do not decode exactly.
_PROVIDER_OPTIONS = {
    "CUDAExecutionProvider": {"use_tf32": "0"},
    "TensorrtExecutionProvider": {"trt_fp16_enable": "0"},
    "OpenVINOExecutionProvider": {"precision": "FP32"},
}
_DEFAULT = "serving_default"
# A server refuses requests to a signature of another method.
_METHOD = "tensorflow/serving/predict"

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass
class Report:
    """The result of one comparison of exported files with test vectors.

    Attributes:
        parity: {endpoint: {output: differences of `comparison.Answer`}}; the key is such as "encode 8x8" for files
            that take images of any size.
        round_trip: {type of images, such as "real" or "noise": {"images": count, "identical": count of images that
            encode and decode leave equal, "model": count of images that the Keras model recovers}}.
        problems: the reasons why the files must not be published, a line each.
        notes: the version of the runtime's package by its name, and under "unavailable" a provider that cannot start.
    """

    parity: dict[str, dict[str, dict[str, float]]] = dataclasses.field(default_factory=dict)
    round_trip: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: Facts = dataclasses.field(default_factory=dict)


class Runtime(abc.ABC):
    """The base class of runtimes, which open the files of a folder; `names` is {endpoint: name of its file}.

    Attributes:
        package: the name of the Python package that runs the files.
        suffix: the suffix of the files, of which there is one for each name; "" if all endpoints share their files.
        sorts_outputs: whether `call_endpoint` returns outputs sorted by name, not in the endpoint's order.
        share: the fraction of values in the files' weights that must equal the model's folded weights to the last bit.
        attachments: what the files hold besides graphs and weights, for messages.
        aliases: {further name of an endpoint: its name}.
        available: whether the runtime can compute on this machine.
    """

    package: ClassVar[str]
    suffix: ClassVar[str] = ""
    sorts_outputs: ClassVar[bool] = True
    share: ClassVar[float] = 1.0
    attachments: ClassVar[str] = ""

    def __init__(self, folder: pathlib.Path, names: Mapping[str, str]):
        self.folder, self.names = folder, names
        found = {path.name for path in folder.glob(f"*{self.suffix}")}
        expected = {f"{name}{self.suffix}" for name in names.values()}
        if self.suffix and found != expected:
            raise ValueError(f"the files are {', '.join(sorted(found))}; expected {', '.join(sorted(expected))}")
        self.aliases: dict[str, str] = {}
        self.available = True

    @abc.abstractmethod
    def call_endpoint(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Runs an endpoint of the exported files on `inputs`, {input name: array}; returns {output name: array}."""

    @abc.abstractmethod
    def read_shapes(self, endpoint: str) -> dict[str, Shape]:
        """Returns {name: shape that the files declare} of an endpoint's inputs and outputs; None: a free size."""

    def check_attachments(self, vectors: Arrays) -> None:
        """Raises an error for a fault in the `attachments`; `vectors` are those of `comparison.compare_files`."""
        return

    @abc.abstractmethod
    def read_weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (name for messages, array) of each weight in the exported files."""


class SavedModel(Runtime):
    """A runtime for the verification that runs a SavedModel in a TensorFlow session."""

    package, attachments = "tensorflow", "warm-up requests"

    def __init__(self, folder: pathlib.Path, names: Mapping[str, str]):
        super().__init__(folder, names)
        from tfdecouple.system.process import start_tensorflow

        start_tensorflow()
        import tensorflow as tf
        from tensorflow.core.protobuf.config_pb2 import CallableOptions

        from tfdecouple.numerics.tf32 import full_float32

        self._graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=self._graph)
        with self._graph.as_default():
            meta = tf.compat.v1.saved_model.load(self._session, ["serve"], str(folder))
        # `__saved_model_init_op` is left out, because it is an operation for the loader and no signature.
        self._signatures = {name: one for name, one in meta.signature_def.items() if not name.startswith("__")}
        if {*self._signatures} != {*names, _DEFAULT}:
            found = ", ".join(sorted(self._signatures))
            raise ValueError(f"the signatures are {found}; expected {', '.join(sorted(names))} and {_DEFAULT}")
        self._functions: dict[str, Callable[..., list[np.ndarray]]] = {}
        for name, signature in self._signatures.items():
            if (method := signature.method_name) != _METHOD:
                raise ValueError(f"the signature {name} has the method {method!r}; expected {_METHOD}")
            # `Session.run` would compare inputs with placeholders and convert their types; a server does neither.
            inputs, outputs = signature.inputs.values(), signature.outputs.values()
            options = CallableOptions(feed=[i.name for i in inputs], fetch=[o.name for o in outputs])
            self._functions[name] = full_float32()(self._session._make_callable_from_options(options))
        self.aliases = {_DEFAULT: next(iter(names))}

    def call_endpoint(self, endpoint: str, inputs: Arrays) -> Arrays:
        signature = self._signatures[endpoint]
        if {*inputs} != {*signature.inputs}:
            raise ValueError(f"the inputs are {', '.join(inputs)}; expected {', '.join(signature.inputs)}")
        outputs = self._functions[endpoint](*(inputs[name] for name in signature.inputs))
        return dict(zip(signature.outputs, outputs, strict=True))

    def read_shapes(self, endpoint: str) -> dict[str, Shape]:
        import tensorflow as tf

        infos = [*self._signatures[endpoint].inputs.items(), *self._signatures[endpoint].outputs.items()]
        return {name: tuple(tf.TensorShape(info.tensor_shape).as_list()) for name, info in infos}

    def check_attachments(self, vectors: Arrays) -> None:
        """Runs the warm-up requests; raises an error if one fails, as a server does, or a signature has none."""
        import tensorflow as tf
        from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

        asked = []
        count_records(self.folder / WARMUP_FILE)
        for record in tf.compat.v1.io.tf_record_iterator(str(self.folder / WARMUP_FILE)):
            request = PredictionLog.FromString(record).predict_log.request
            asked.append(request.model_spec.signature_name)
            self.call_endpoint(asked[-1], {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()})
        if sorted(asked) != sorted(self._signatures):
            raise ValueError(f"they are for {', '.join(asked)}; expected is one for each signature")

    def read_weights(self) -> Iterator[tuple[str, np.ndarray]]:
        names = [op.name for op in self._graph.get_operations() if op.type == "VarHandleOp"]
        # All variables are read in one call, because every call of a session takes time for the whole graph.
        yield from zip(names, self._session.run([f"{name}/Read/ReadVariableOp:0" for name in names]), strict=True)


class OnnxFiles(Runtime):
    """A runtime for the verification that runs ONNX files with one execution provider of ONNX Runtime."""

    package, suffix = "onnxruntime", ".onnx"
    sorts_outputs, attachments = False, "metadata"

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
        self.available = all(provider in session.get_providers() for session in self._sessions.values())

    def call_endpoint(self, endpoint: str, inputs: Arrays) -> Arrays:
        names = [output.name for output in self._sessions[endpoint].get_outputs()]
        return dict(zip(names, self._sessions[endpoint].run(names, inputs), strict=True))

    def read_shapes(self, endpoint: str) -> dict[str, Shape]:
        arrays = [*self._sessions[endpoint].get_inputs(), *self._sessions[endpoint].get_outputs()]
        return {array.name: tuple(size if isinstance(size, int) else None for size in array.shape) for array in arrays}

    def check_attachments(self, vectors: Arrays) -> None:
        """Raises ValueError if an ONNX file has wrong metadata, or the client crops a picture by them wrongly."""
        from export.client import Model

        for endpoint, session in self._sessions.items():
            found = session.get_modelmeta().custom_metadata_map
            for name, right in {**json.loads(str(vectors["metadata"])), "endpoint": endpoint}.items():
                if found.get(name) != right:
                    raise ValueError(f"{self.names[endpoint]}.onnx has {name} = {found.get(name)}; expected {right}")
        if {"encode", "decode"} <= {*self._sessions} and not np.array_equal(
            Model(self.folder).crop_and_resize(vectors["picture"]), vectors["fitted"]
        ):
            raise ValueError(f"by crop = {found.get('crop')} a picture gets other pixels than by the model's own code")

    def read_weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (name, array) of each initializer of the ONNX files, except scalars and integers (shapes, axes)."""
        import onnx
        from onnx import numpy_helper

        for name in self.names.values():
            for tensor in onnx.load(str(self.folder / f"{name}.onnx")).graph.initializer:
                if tensor.dims and tensor.data_type not in (onnx.TensorProto.INT32, onnx.TensorProto.INT64):
                    yield f"{name}.onnx: {tensor.name}", numpy_helper.to_array(tensor)


class LiteRTFiles(Runtime):
    """A runtime for the verification that runs LiteRT files with the interpreter of the package ai-edge-litert."""

    package, suffix = "ai-edge-litert", ".tflite"
    # LiteRT's converter multiplies some weights into others, so not all weights equal the model's folded weights.
    share = 0.75

    def __init__(self, folder: pathlib.Path, names: Mapping[str, str]):
        super().__init__(folder, names)
        from ai_edge_litert.interpreter import Interpreter

        paths = {endpoint: str(folder / f"{name}.tflite") for endpoint, name in names.items()}
        threads = count_cores()
        interpreters = {endpoint: Interpreter(model_path=path, num_threads=threads) for endpoint, path in paths.items()}
        self._runners = {endpoint: opened.get_signature_runner(endpoint) for endpoint, opened in interpreters.items()}

    def call_endpoint(self, endpoint: str, inputs: Arrays) -> Arrays:
        return self._runners[endpoint](**inputs)

    def read_shapes(self, endpoint: str) -> dict[str, Shape]:
        runner = self._runners[endpoint]
        details = {**runner.get_input_details(), **runner.get_output_details()}
        shapes = {name: one["shape_signature"].tolist() for name, one in details.items()}
        return {name: tuple(size if size >= 0 else None for size in shape) for name, shape in shapes.items()}

    def read_weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (name, array) of each float constant in the LiteRT files, except zeros that the converter adds."""
        from ai_edge_litert import schema_py_generated as schema

        for name in self.names.values():
            content = (self.folder / f"{name}.tflite").read_bytes()
            model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
            for tensor in (inner for graph in model.subgraphs for inner in graph.tensors):
                data = model.buffers[tensor.buffer].data
                is_array = data is not None and len(data) and np.prod(tensor.shape) > 1
                if is_array and tensor.type == schema.TensorType.FLOAT32:
                    array = np.frombuffer(bytes(data), np.float32).reshape(tensor.shape)
                    if array.any():
                        yield f"{name}.tflite: {tensor.name.decode()}", array
