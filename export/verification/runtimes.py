"""The files of an export in each runtime: opened from a folder, and called by endpoint with arrays.

Each is used as its users will: ONNX files by ONNX Runtime without TensorFlow; a SavedModel in a session, which reads
graph, signatures and variables by the rules of the C++ loader and knows nothing of Python objects, so that what only
Python can load does not open.
"""

from __future__ import annotations

import abc
import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from tfdecouple.errors import one_line
from tfdecouple.runtime.devices import cores

# This provider sends calls to a service elsewhere and computes nothing here.
REMOTE = "AzureExecutionProvider"
# With these options a provider of ONNX Runtime computes in full float32; without them images are lost.
_PROVIDER_OPTIONS = {
    "CUDAExecutionProvider": {"use_tf32": "0"},
    "TensorrtExecutionProvider": {"trt_fp16_enable": "0"},
    "OpenVINOExecutionProvider": {"precision": "FP32"},
}
_DEFAULT = "serving_default"

Arrays = dict[str, np.ndarray]


class Runtime(contextlib.ExitStack, abc.ABC):
    """The endpoints of a folder, open in a runtime while it is entered.

    Args:
        folder: holds the files.
        names: of the files, without suffix, by endpoints.

    Attributes:
        title: for messages.
        package: that computes.
        layout: order of axes of the deployed weights in the files.
        sorts_outputs: whether outputs come in the order of their names, instead of the endpoint's own.
        share: of the numbers in the weights that must be the deployed ones, to the last bit.
        aliases: other names of endpoints, by which they can be called.
        available: whether the runtime can compute here.
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
        """Returns the outputs of an endpoint, by name."""

    @abc.abstractmethod
    def read_weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the weights in the files, each with a name for messages."""


class SavedModel(Runtime):
    """A SavedModel in a session."""

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
            # `__saved_model_init_op` names an operation for the loader and is no signature that anybody calls.
            self._signatures = {name: one for name, one in meta.signature_def.items() if not name.startswith("__")}
            if {*self._signatures} != {*names, _DEFAULT}:
                found = ", ".join(sorted(self._signatures))
                raise ValueError(f"the signatures are {found}; expected {', '.join(sorted(names))} and {_DEFAULT}")
            self.push(stack.pop_all())
        self.aliases = {_DEFAULT: next(iter(names))}

    def call(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Returns the outputs of a signature."""
        import tensorflow as tf

        signature = self._signatures[endpoint]
        for name, array in inputs.items():
            # A session feeds the tensor whatever the shape in the signature, by which servers refuse requests.
            tf.TensorShape(signature.inputs[name].tensor_shape).assert_is_compatible_with(array.shape)
        feeds = {signature.inputs[name].name: array for name, array in inputs.items()}
        return self._session.run({name: info.name for name, info in signature.outputs.items()}, feeds)

    def read_weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields all variables."""
        names = [one.name for one in self._session.graph.get_operations() if one.type == "VarHandleOp"]
        # All variables are read at once, because each call of the session looks at the whole graph.
        yield from zip(names, self._session.run([f"{name}/Read/ReadVariableOp:0" for name in names]), strict=True)


class OnnxFiles(Runtime):
    """ONNX files in ONNX Runtime, computed by one of its execution providers."""

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
        # Where a provider cannot start, ONNX Runtime takes another one instead.
        self.available = all(provider in one.get_providers() for one in self._sessions.values())

    def call(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Returns the outputs of a file."""
        names = [output.name for output in self._sessions[endpoint].get_outputs()]
        return dict(zip(names, self._sessions[endpoint].run(names, inputs), strict=True))

    def read_weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields all arrays in the files but integers, which are shapes, positions and axes."""
        import onnx
        from onnx import numpy_helper

        for name in self.names.values():
            for tensor in onnx.load(str(self.folder / f"{name}.onnx")).graph.initializer:
                if tensor.dims and tensor.data_type not in (onnx.TensorProto.INT32, onnx.TensorProto.INT64):
                    yield f"{name}.onnx: {tensor.name}", numpy_helper.to_array(tensor)


class LiteRTFiles(Runtime):
    """LiteRT files in the interpreter of the package ai-edge-litert."""

    title, package = "LiteRT", "ai-edge-litert"
    # The converter multiplies some arrays into the ones before them; only the answers show whether those are right.
    share = 0.75

    def __init__(self, folder: pathlib.Path, names: Mapping[str, str]):
        super().__init__(folder, names)
        from ai_edge_litert.interpreter import Interpreter

        paths = {endpoint: str(folder / f"{name}.tflite") for endpoint, name in names.items()}
        interpreters = {endpoint: Interpreter(model_path=path, num_threads=cores()) for endpoint, path in paths.items()}
        self._runners = {endpoint: one.get_signature_runner(endpoint) for endpoint, one in interpreters.items()}

    def call(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Returns the outputs of a file."""
        return self._runners[endpoint](**inputs)

    def read_weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields all constant arrays of floats but of zeros, which the converter gives convolutions without a bias."""
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


# --- for `tfdecouple doctor` ---

_FILES = {"encode": "encoder", "decode": "decoder"}
# Images that are encoded and decoded at once.
_BATCH = 64


def make_files(run: str, folder: pathlib.Path) -> list[str]:
    """Writes a SavedModel and ONNX files that encode and decode; returns the providers of ONNX Runtime for these."""
    import onnxruntime

    from export.deployed.deployed_model import DeployedModel
    from export.endpoints import endpoints
    from export.formats.onnx import build_onnx, save_onnx
    from export.formats.saved_model import save_saved_model
    from tfdecouple.runs.opened_run import load_model
    from tfdecouple.runtime.precision import full_float32

    model = load_model(run)
    offered = [endpoint for endpoint in endpoints(model.config) if endpoint.name in _FILES]
    with full_float32():
        save_saved_model(DeployedModel(model), offered, folder / "savedmodel")
        deployed = DeployedModel(model, "NCHW")
        for endpoint in offered:
            save_onnx(build_onnx(deployed, endpoint, {}), folder / f"{_FILES[endpoint.name]}.onnx")
    return [name for name in onnxruntime.get_available_providers() if name != REMOTE]


def round_trip_saved_model(folder: pathlib.Path, device: str, kinds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns {"where": ..., "kinds": ...} for the SavedModel in a folder, on a device; see `_count_losses`."""
    import tensorflow as tf

    from tfdecouple.runtime.precision import full_float32

    with full_float32(), tf.device(device):
        signatures = tf.saved_model.load(str(folder / "savedmodel")).signatures

        def call(endpoint: str, inputs: Arrays) -> Arrays:
            outputs = signatures[endpoint](**{name: tf.constant(array) for name, array in inputs.items()})
            return {name: value.numpy() for name, value in outputs.items()}

        return {"where": f"SavedModel, {device}", "kinds": _count_losses(call, kinds)}


def round_trip_onnx(folder: pathlib.Path, provider: str, kinds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns {"where": ..., "kinds": ...} or {"where": ..., "unavailable": reason} for a provider of ONNX Runtime."""
    where, reason = f"ONNX, {provider}", "ONNX Runtime takes another provider instead"
    try:
        files = OnnxFiles(folder, _FILES, provider)
        if files.available:
            return {"where": where, "kinds": _count_losses(files.call, kinds)}
    except Exception as error:  # noqa: BLE001 - a provider without its device or libraries raises anything
        reason = one_line(error, first=True)
    return {"where": where, "unavailable": reason}


def _count_losses(call: Callable[[str, Arrays], Arrays], kinds: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    """Returns three numbers for each kind of images: all images, lost images, and values that differ."""
    counts = {}
    for kind, images in kinds.items():
        differing = np.zeros(len(images), np.int64)
        for start in range(0, len(images), _BATCH):
            part = images[start : start + _BATCH]
            codes = call("encode", {"images": part})
            decoded = call("decode", {name: codes[name] for name in ("z", "v")})["images"]
            differing[start : start + _BATCH] = (decoded != part).reshape(len(part), -1).sum(1)
        counts[kind] = [len(images), int((differing > 0).sum()), int(differing.sum())]
    return counts
