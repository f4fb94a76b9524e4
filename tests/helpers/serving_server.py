"""A server for tests that answers gRPC and REST requests by the rules of TensorFlow Serving.

The gRPC services use the official stubs. A comment's file name, such as predict_util.cc, is that of TensorFlow
Serving's source file with the rule. The server has no batching, and knows only the newest version.
"""

import http.server
import json
import re
import threading
from concurrent import futures

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format, text_format
from tensorflow_serving.apis import get_model_metadata_pb2 as metadata_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2, prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
# Patterns of the URL paths that REST requests can have, as in TensorFlow Serving's http_rest_api_util.cc.
PREDICT_URL = re.compile(r"/v1/models/([^/:]+):predict", re.IGNORECASE)
METADATA_URL = re.compile(r"/v1/models/([^/:]+)/metadata", re.IGNORECASE)


class Refusal(Exception):
    """The exception for a request that the server refuses; `args` are a gRPC status code and a message."""


class Servable:
    """A version of a SavedModel, loaded into a TensorFlow 1 session as TensorFlow Serving loads it."""

    def __init__(self, folder):
        self.session = tf.compat.v1.Session(graph=tf.Graph())
        with self.session.graph.as_default():
            meta_graph = tf.compat.v1.saved_model.load(self.session, ["serve"], str(folder))
        self.signatures = meta_graph.signature_def
        # A SavedModel needs no file of warmup requests, but if one fails, loading fails (saved_model_warmup_util.cc).
        path = folder / "assets.extra" / "tf_serving_warmup_requests"
        records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()) if path.exists() else []
        for record in records:
            self.predict(prediction_log_pb2.PredictionLog.FromString(record).predict_log.request)

    def predict(self, request):
        """Runs this model for a `PredictRequest`; returns a `PredictResponse`; raises Refusal for wrong inputs."""
        name = request.model_spec.signature_name or "serving_default"
        if name not in self.signatures:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        signature = self.signatures[name]
        if set(request.inputs) != set(signature.inputs):
            raise Refusal(INVALID, f"input size does not match signature: needed are {sorted(signature.inputs)}")
        for key, info in signature.inputs.items():
            # TensorFlow Serving refuses a wrong dtype, which the Python session below would convert silently.
            if request.inputs[key].dtype != info.dtype:
                raise Refusal(INVALID, f"Expects {key} to be {tf.as_dtype(info.dtype).name}")
        try:
            feeds = {info.name: tf.make_ndarray(request.inputs[key]) for key, info in signature.inputs.items()}
            outputs = self.session.run({key: info.name for key, info in signature.outputs.items()}, feeds)
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            raise Refusal(INVALID, str(error)) from error
        response = predict_pb2.PredictResponse(model_spec=request.model_spec)
        for key, array in outputs.items():
            response.outputs[key].CopyFrom(to_proto(array, signature.outputs[key].dtype))
        return response


def to_proto(array, dtype):
    """Returns an array as a `TensorProto` with its values in `int_val` or `float_val`, as TensorFlow Serving writes."""
    proto = tf.make_tensor_proto(np.zeros([0]), dtype, [0])
    proto.ClearField("tensor_content")
    proto.tensor_shape.CopyFrom(tf.TensorShape(np.shape(array)).as_proto())
    (proto.int_val if tf.as_dtype(dtype).is_integer else proto.float_val).extend(np.ravel(array).tolist())
    return proto


def from_json(value, info):
    """Converts nested JSON lists to a `TensorProto`; raises Refusal for wrong types, as json_tensor.cc does."""
    dtype, array = tf.as_dtype(info.dtype), np.array(value)
    if array.dtype.kind not in ("i" if dtype.is_integer else "if"):
        raise Refusal(INVALID, f"JSON Value: {str(value)[:40]} is not of expected type: {dtype.name}")
    return to_proto(array, info.dtype)


def inputs_from_json(body, inputs):
    """Returns {input name: TensorProto} of a JSON request, and whether it has "instances" (rows) or "inputs"."""
    if ("instances" in body) == ("inputs" in body):
        raise Refusal(INVALID, "expecting only one of 'inputs' or 'instances' keys to exist")
    if by_row := "instances" in body:
        rows = [row if isinstance(row, dict) or len(inputs) > 1 else {min(inputs): row} for row in body["instances"]]
        if not all(isinstance(row, dict) and set(row) == set(inputs) for row in rows):
            raise Refusal(INVALID, f"Failed to process element: keys must be equal to: {sorted(inputs)}")
        columns = {name: [row[name] for row in rows] for name in inputs}
    else:
        columns = body["inputs"] if isinstance(body["inputs"], dict) else {min(inputs): body["inputs"]}
        if missing := set(inputs) - set(columns):
            raise Refusal(INVALID, f"Missing named input: {min(missing)} in 'inputs' object.")
    return {name: from_json(columns[name], info) for name, info in inputs.items()}, by_row


def outputs_to_json(outputs, by_row):
    """Returns the reply, {"predictions": rows} if `by_row`, else {"outputs": columns}; a single output has no name."""
    columns = {}
    for name, proto in outputs.items():
        values = [float(f"{value:.9g}") for value in proto.float_val] or list(proto.int_val)
        columns[name] = np.reshape(values, [dim.size for dim in proto.tensor_shape.dim]).tolist()
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if len(columns) == 1:
        columns = rows = next(iter(columns.values()))
    return {"predictions": rows} if by_row else {"outputs": columns}


class Server(prediction_service_pb2_grpc.PredictionServiceServicer):
    """A context that serves the newest SavedModel version below `base_path`, by gRPC and REST, on free ports."""

    def __init__(self, base_path, name):
        # Each subfolder whose name is a number holds a version (file_system_storage_path_source.cc).
        newest = max(int(path.name) for path in base_path.iterdir() if path.name.isdecimal())
        self.name, self.loaded = name, Servable(base_path / str(newest))

    def __enter__(self):
        self._grpc = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(self, self._grpc)
        self.grpc_port = self._grpc.add_insecure_port("localhost:0")
        self._grpc.start()
        self._http = http.server.ThreadingHTTPServer(("localhost", 0), type("Handler", (_Handler,), {"owner": self}))
        self.rest_port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever).start()
        return self

    def __exit__(self, *exception):
        self._http.shutdown()
        self._http.server_close()
        self._grpc.stop(None).wait()

    def servable(self, name):
        """Returns the served model; raises Refusal unless it has this name."""
        if name != self.name:
            raise Refusal(NOT_FOUND, f"Servable not found for request: Latest({name})")
        return self.loaded

    def metadata(self, name):
        """Returns the signatures as a protocol buffer; raises Refusal unless the model has this name."""
        signatures = metadata_pb2.SignatureDefMap()
        for key, signature in self.servable(name).signatures.items():
            signatures.signature_def[key].CopyFrom(signature)
        return signatures

    def Predict(self, request, context):
        return _or_abort(context, lambda: self.servable(request.model_spec.name).predict(request))

    def GetModelMetadata(self, request, context):
        response = metadata_pb2.GetModelMetadataResponse(model_spec=request.model_spec)
        signatures = _or_abort(context, lambda: self.metadata(request.model_spec.name))
        response.metadata["signature_def"].Pack(signatures)
        return response


def _or_abort(context, answer):
    try:
        return answer()
    except Refusal as refusal:
        return context.abort(*refusal.args)


class _Handler(http.server.BaseHTTPRequestHandler):
    """The handler of the server's REST requests; `owner` is the `Server` whose model it runs."""

    def do_GET(self):
        self._answer(METADATA_URL, self._look)

    def do_POST(self):
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(PREDICT_URL, self._predict)

    def _answer(self, url, answer):
        try:
            if not (match := url.fullmatch(self.path)):
                raise Refusal(INVALID, f"Malformed request: {self.command} {self.path}")
            status, reply = 200, answer(*match.groups())
        except Refusal as refusal:
            status, reply = {INVALID: 400, NOT_FOUND: 404}[refusal.args[0]], {"error": refusal.args[1]}
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(reply, indent=4).encode())

    def _look(self, name):
        # Converting the complete response would add "@type", which TensorFlow Serving's reply lacks.
        options = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
        signatures = json_format.MessageToDict(self.owner.metadata(name), **options)
        return {"model_spec": {"name": name}, "metadata": {"signature_def": signatures}}

    def _predict(self, name):
        servable = self.owner.servable(name)
        try:
            body = json.loads(self.body)
            signature = body.get("signature_name", "serving_default")
            if signature not in servable.signatures:
                raise Refusal(INVALID, f'Serving signature name: "{signature}" not found in signature def')
            tensors, by_row = inputs_from_json(body, servable.signatures[signature].inputs)
        except ValueError as error:  # json raises ValueError for invalid JSON, and NumPy for irregular lists.
            raise Refusal(INVALID, f"JSON Value: not formatted correctly: {error}") from error
        request = predict_pb2.PredictRequest(inputs=tensors)
        request.model_spec.name, request.model_spec.signature_name = name, signature
        return outputs_to_json(servable.predict(request).outputs, by_row)

    def log_message(self, *arguments):
        pass


def read_models(folder):
    """Returns the list of TensorFlow Serving's protocol buffers `ModelConfig` in an export folder's `models.config`."""
    models = text_format.Parse((folder / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    return list(models.model_config_list.config)
