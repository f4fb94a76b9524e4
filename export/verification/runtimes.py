"""The files of an export in each runtime: opened, called and looked into, all in the same way.

Each is used as its users will: ONNX files by ONNX Runtime and a client's by the client, without TensorFlow; a
SavedModel in a session, which reads graph, signatures and variables by the C++ loader's rules and knows nothing of
Python objects: what only Python can load does not open.
"""

from __future__ import annotations

import abc
import contextlib
import importlib.util
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from export.verification.archive import Arrays, group
from tfdecouple.errors import one_line
from tfdecouple.runtime.settings import cores

# It hands calls over to a service elsewhere and computes nothing here.
REMOTE = "AzureExecutionProvider"
_NAMES = {"encode": "encoder", "decode": "decoder"}
# Images at a time.
_BATCH = 64
# What lets a provider of ONNX Runtime compute in full float32; without it images do not come back.
_PROVIDER_OPTIONS = {
    "CUDAExecutionProvider": {"use_tf32": "0"},
    "TensorrtExecutionProvider": {"trt_fp16_enable": "0"},
    "OpenVINOExecutionProvider": {"precision": "FP32"},
}
_DEFAULT = "serving_default"
_WARM_UP = "assets.extra/tf_serving_warmup_requests"

# By names of inputs or outputs: type and shape, None for a free axis.
Signature = dict[str, tuple[str, tuple[int | None, ...]]]


class Runtime(contextlib.ExitStack, abc.ABC):
    """The endpoints of a folder, open in a runtime while it is entered.

    Args:
        folder: holds the files.
        names: of the files, without suffix, by endpoints.

    Attributes:
        title: for messages.
        package: that computes.
        layout: order of axes of the deployed weights in the files.
        ordered: whether callers may take outputs by their order.
        share: of the numbers in the weights that must be the deployed ones, to the last bit.
        aliases: other names of endpoints, as they can be called.
    """

    title: ClassVar[str]
    package: ClassVar[str]
    layout: ClassVar[str] = "NHWC"
    ordered: ClassVar[bool] = False
    share: ClassVar[float] = 1.0

    def __init__(self, folder: pathlib.Path, names: Mapping[str, str]):
        super().__init__()
        self.folder, self.names = folder, dict(names)
        self.aliases: dict[str, str] = {}

    @abc.abstractmethod
    def __call__(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Returns the outputs of an endpoint, by name."""

    def signature(self, endpoint: str) -> tuple[Signature, Signature] | None:
        """Returns the inputs and outputs of an endpoint; None where the files do not say."""
        return None

    def metadata(self, endpoint: str) -> Mapping[str, str] | None:
        """Returns what the file of an endpoint says of its origin; None where it says nothing."""
        return None

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the weights in the files, each with a name for messages."""
        yield from ()

    def problems(self, cases: Arrays) -> Iterator[str]:
        """Yields what else is wrong, once all endpoints have answered."""
        yield from ()


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
            # `__saved_model_init_op` names an operation for the loader; it is no signature that anybody calls.
            self._signatures = {name: one for name, one in meta.signature_def.items() if not name.startswith("__")}
            if {*self._signatures} != {*names, _DEFAULT}:
                found = ", ".join(sorted(self._signatures))
                raise ValueError(f"the signatures are {found}; expected {', '.join(sorted(names))} and {_DEFAULT}")
            self.push(stack.pop_all())
        self.aliases = {_DEFAULT: next(iter(names))}

    def __call__(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Returns the outputs of a signature."""
        signature = self._signatures[endpoint]
        feeds = {signature.inputs[name].name: array for name, array in inputs.items()}
        return self._session.run({name: info.name for name, info in signature.outputs.items()}, feeds)

    def signature(self, endpoint: str) -> tuple[Signature, Signature]:
        """Returns names, types and shapes."""
        import tensorflow as tf

        def plain(infos: Any) -> Signature:
            return {
                name: (
                    tf.as_dtype(info.dtype).name,
                    tuple(None if dim.size == -1 else dim.size for dim in info.tensor_shape.dim),
                )
                for name, info in sorted(infos.items())
            }

        return plain(self._signatures[endpoint].inputs), plain(self._signatures[endpoint].outputs)

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields all variables."""
        names = [one.name for one in self._session.graph.get_operations() if one.type == "VarHandleOp"]
        # All at once: to read one costs a look at the whole graph.
        yield from zip(names, self._session.run([f"{name}/Read/ReadVariableOp:0" for name in names]), strict=True)

    def problems(self, cases: Arrays) -> Iterator[str]:
        """Yields signatures that servers do not find, and requests to warm a server up that it would refuse."""
        import tensorflow as tf
        from tensorflow_serving.apis import prediction_log_pb2

        for name, signature in self._signatures.items():
            if signature.method_name != "tensorflow/serving/predict":
                yield f"{name} is of method {signature.method_name!r}, for which no server asks"
        warmed = []
        try:
            for record in tf.compat.v1.io.tf_record_iterator(str(self.folder / _WARM_UP)):
                request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
                warmed.append(request.model_spec.signature_name)
                given = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
                of = self.aliases.get(warmed[-1], warmed[-1])
                # Labels beyond the last one, as values that are not finite, are no request.
                for name, tried in group(cases, f"in/{of}/").items():
                    right = given[name].shape == (1, *tried.shape[1:]) and np.isfinite(given[name]).all()
                    if not right or (tried.dtype == np.int32 and not np.isin(given[name], tried).all()):
                        yield f"{_WARM_UP} has a request for {warmed[-1]} whose {name} is not such as it takes"
                self(warmed[-1], given)
        except Exception as error:  # noqa: BLE001 - a file that is cut, a message that is none, a request that fails
            yield f"{_WARM_UP} is missing or damaged after {len(warmed)} requests: {one_line(error, first=True)}"
            return
        if sorted(warmed) != sorted(self._signatures):
            yield f"{_WARM_UP} has requests for {', '.join(warmed)}; expected one for each signature"


class OnnxFiles(Runtime):
    """ONNX files in ONNX Runtime.

    Args:
        folder: holds the files.
        names: of the files, without suffix, by endpoints.
        provider: that computes.
    """

    title, package, layout, ordered = "ONNX", "onnxruntime", "NCHW", True

    def __init__(self, folder: pathlib.Path, names: Mapping[str, str], provider: str = "CPUExecutionProvider"):
        super().__init__(folder, names)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        providers = [(provider, _PROVIDER_OPTIONS.get(provider, {}))]
        self._sessions = {
            endpoint: onnxruntime.InferenceSession(self._path(endpoint), options, providers=providers)
            for endpoint in names
        }
        # ONNX Runtime takes another in its place.
        self.available = all(provider in one.get_providers() for one in self._sessions.values())

    def _path(self, endpoint: str) -> str:
        return str(self.folder / f"{self.names[endpoint]}.onnx")

    def __call__(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Returns the outputs of a file."""
        names = [output.name for output in self._sessions[endpoint].get_outputs()]
        return dict(zip(names, self._sessions[endpoint].run(names, inputs), strict=True))

    def signature(self, endpoint: str) -> tuple[Signature, Signature]:
        """Returns names, types and shapes."""
        types = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(int32)": "int32"}

        def plain(values: Any) -> Signature:
            return {
                one.name: (types.get(one.type, one.type), tuple(n if isinstance(n, int) else None for n in one.shape))
                for one in values
            }

        return plain(self._sessions[endpoint].get_inputs()), plain(self._sessions[endpoint].get_outputs())

    def metadata(self, endpoint: str) -> Mapping[str, str]:
        """Returns the properties in the file."""
        return self._sessions[endpoint].get_modelmeta().custom_metadata_map

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields all arrays in the files but integers, which are shapes, positions and axes."""
        import onnx
        from onnx import numpy_helper

        for endpoint in self.names:
            for tensor in onnx.load(self._path(endpoint)).graph.initializer:
                if tensor.dims and tensor.data_type not in (onnx.TensorProto.INT32, onnx.TensorProto.INT64):
                    yield f"{self.names[endpoint]}.onnx: {tensor.name}", numpy_helper.to_array(tensor)

    def problems(self, cases: Arrays) -> Iterator[str]:
        """Yields what other runtimes would not take."""
        import onnx

        for endpoint in self.names:
            path = self._path(endpoint)
            try:
                onnx.checker.check_model(path, full_check=True)
            except Exception as error:  # noqa: BLE001 - the checker raises what it likes
                yield f"{self.names[endpoint]}.onnx is not valid ONNX: {one_line(error, first=True)}"
            if foreign := {node.domain for node in onnx.load(path).graph.node} - {"", "ai.onnx"}:
                yield f"{self.names[endpoint]}.onnx uses operations of {', '.join(sorted(foreign))}"


class LiteRTFiles(Runtime):
    """LiteRT files in the interpreter of the package ai-edge-litert."""

    title, package = "LiteRT", "ai-edge-litert"
    # The converter multiplies some arrays into the ones before them; these are held by the answers alone.
    share = 0.75

    def __init__(self, folder: pathlib.Path, names: Mapping[str, str]):
        super().__init__(folder, names)
        from ai_edge_litert.interpreter import Interpreter

        paths = {endpoint: str(folder / f"{name}.tflite") for endpoint, name in names.items()}
        interpreters = {endpoint: Interpreter(model_path=path, num_threads=cores()) for endpoint, path in paths.items()}
        self._runners = {endpoint: one.get_signature_runner(endpoint) for endpoint, one in interpreters.items()}

    def __call__(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Returns the outputs of a file."""
        return self._runners[endpoint](**inputs)

    def signature(self, endpoint: str) -> tuple[Signature, Signature]:
        """Returns names, types and shapes."""

        def plain(details: Any) -> Signature:
            return {
                name: (
                    np.dtype(one["dtype"]).name,
                    tuple(None if size == -1 else int(size) for size in one["shape_signature"]),
                )
                for name, one in details.items()
            }

        runner = self._runners[endpoint]
        return plain(runner.get_input_details()), plain(runner.get_output_details())

    def _model(self, endpoint: str) -> Any:
        from ai_edge_litert import schema_py_generated as schema

        content = (self.folder / f"{self.names[endpoint]}.tflite").read_bytes()
        return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))

    def metadata(self, endpoint: str) -> Mapping[str, str]:
        """Returns what the metadata of the file say as JSON."""
        from export.formats.litert import METADATA

        model = self._model(endpoint)
        for entry in model.metadata or ():
            if entry.name == METADATA.encode():
                return json.loads(bytes(model.buffers[entry.buffer].data))
        return {}

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields all constant arrays of floats but of zeros, which the converter gives convolutions without a bias."""
        from ai_edge_litert.schema_py_generated import TensorType

        for endpoint, file in self.names.items():
            model = self._model(endpoint)
            for tensor in (one for graph in model.subgraphs for one in graph.tensors):
                data = model.buffers[tensor.buffer].data
                if data is not None and len(data) and tensor.type == TensorType.FLOAT32 and np.prod(tensor.shape) > 1:
                    array = np.frombuffer(bytes(data), np.float32).reshape(tensor.shape)
                    if array.any():
                        yield f"{file}.tflite: {tensor.name.decode()}", array


class Client(Runtime):
    """The client that is published beside ONNX files, `client.py` beside their folder, with the calls of its class."""

    title, package, layout = "client.py", "onnxruntime", "NCHW"

    def __init__(self, folder: pathlib.Path, names: Mapping[str, str], client: str):
        super().__init__(folder, names)
        spec = importlib.util.spec_from_file_location("client", client)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._model = module.Model(folder)

    def __call__(self, endpoint: str, inputs: Arrays) -> Arrays:
        """Returns what the client gives back."""
        if endpoint == "encode":
            return self._model.encode(inputs["images"], inputs.get("labels"))
        if endpoint == "switch":
            ab, ba = self._model.switch(*(inputs.get(f"{what}_{one}") for what in ("images", "labels") for one in "ab"))
            return {"images_ab": ab, "images_ba": ba}
        return {"images": self._model.decode(**inputs)}


RUNTIMES: dict[str, type[Runtime]] = {
    "savedmodel": SavedModel,
    "onnx": OnnxFiles,
    "litert": LiteRTFiles,
    "client": Client,
}


def forms(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yields an array as the deployed weights may have it: in other orders of axes, and with two axes of one before."""
    plain = array.reshape([side for side in array.shape if side != 1])
    for one in (array, plain):
        for order in itertools.permutations(range(one.ndim)):
            turned = one.transpose(order)
            yield turned
            for ones in ((1, 1), (1,)):
                yield turned.reshape(*ones, *turned.shape)


def make(run: str, folder: str) -> Iterator[dict[str, Any]]:
    """Writes a SavedModel and ONNX files that encode and decode, and yields which providers there are for these."""
    import onnxruntime

    from export.deployed.deployed_model import DeployedModel
    from export.endpoints import endpoints
    from export.formats.onnx import build_onnx, save_onnx
    from export.formats.saved_model import save_saved_model
    from tfdecouple.runs.opened_run import load_model
    from tfdecouple.runtime.precision import full_float32

    place, model = pathlib.Path(folder), load_model(run)
    offered = [endpoint for endpoint in endpoints(model.config) if endpoint.name in _NAMES]
    with full_float32():
        yield {"doing": "making a SavedModel"}
        save_saved_model(DeployedModel.from_model(model), offered, place / "savedmodel")
        deployed = DeployedModel.from_model(model, "NCHW")
        for endpoint in offered:
            yield {"doing": f"making ONNX files: {endpoint.name}"}
            save_onnx(build_onnx(deployed, endpoint, {}), place / f"{_NAMES[endpoint.name]}.onnx")
    yield {"providers": [name for name in onnxruntime.get_available_providers() if name != REMOTE]}


def use_saved_model(folder: str, device: str) -> Iterator[dict[str, Any]]:
    """Yields what becomes of the images of a folder in its SavedModel, on a device."""
    import tensorflow as tf

    from tfdecouple.runtime.precision import full_float32

    yield {"doing": f"the SavedModel on {device}"}
    with full_float32(), tf.device(device):
        signatures = tf.saved_model.load(str(pathlib.Path(folder) / "savedmodel")).signatures

        def call(endpoint: str, inputs: Arrays) -> Arrays:
            made = signatures[endpoint](**{name: tf.constant(array) for name, array in inputs.items()})
            return {name: value.numpy() for name, value in made.items()}

        yield {"where": f"SavedModel, {device}", "kinds": _come_back(call, folder)}


def use_onnx(folder: str, provider: str) -> Iterator[dict[str, Any]]:
    """Yields what becomes of the images of a folder in its ONNX files, with a provider of ONNX Runtime."""
    where = f"ONNX, {provider}"
    yield {"doing": f"the ONNX files with {provider}"}
    try:
        files = OnnxFiles(pathlib.Path(folder), _NAMES, provider=provider)
        usable, reason = files.available, "ONNX Runtime takes another in its place"
    except Exception as error:  # noqa: BLE001 - whatever a provider without its device or libraries raises
        usable, reason = False, one_line(error, first=True)
    if usable:
        yield {"where": where, "kinds": _come_back(files, folder)}
    else:
        yield {"where": where, "unavailable": reason}


def _come_back(call: Callable[[str, Arrays], Arrays], folder: str) -> dict[str, list[int]]:
    """Returns of each kind how many images there are, how many are lost, and in how many values."""
    with np.load(pathlib.Path(folder) / "images.npz") as archive:
        images = {str(kind): archive[f"kind_{number}"] for number, kind in enumerate(archive["names"])}
    kinds = {}
    for kind, every in images.items():
        differing = np.zeros(len(every), np.int64)
        for start in range(0, len(every), _BATCH):
            part = every[start : start + _BATCH]
            codes = call("encode", {"images": part})
            back = call("decode", {name: codes[name] for name in ("z", "v")})["images"]
            differing[start : start + _BATCH] = (back != part).reshape(len(part), -1).sum(1)
        kinds[kind] = [len(every), int((differing > 0).sum()), int(differing.sum())]
    return kinds
