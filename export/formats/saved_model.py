"""The SavedModel: every endpoint as a signature; and what TensorFlow Serving reads beside it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from export.deployed.deployed_encoder import DeployedEncoder
from export.deployed.deployed_flow import DeployedFlow
from export.deployed.deployed_model import DeployedModel
from export.deployed.graph import Deployed, LogDets
from export.endpoints import Endpoint
from tfdecouple.storage.files import write_text

# Of the names of the variables; the rest is the weight's own, with points for slashes.
PREFIX = "folded/"
_DEFAULT = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY

Kind = TypeVar("Kind", bound=Deployed)


def save_saved_model(
    deployed: DeployedModel,
    endpoints: Sequence[Endpoint],
    folder: pathlib.Path,
    progress: Callable[[str], Any] = lambda name: None,
) -> None:
    """Writes a SavedModel.

    The deployed weights are variables, so that all signatures share them and no limit of a graph's size holds for them;
    what is derived from weights, as the inverses of the 1x1 convolutions, is among them and not computed again.

    Args:
        deployed: the model, in the order NHWC, which TensorFlow runs on every device.
        endpoints: the signatures; the first is `serving_default` as well.
        folder: where to; it must not exist.
        progress: called with the name of each endpoint when it is traced; the files are written after the last.

    Raises:
        OSError, tf.errors.OpError: where the disk is full or the folder cannot be written.
    """
    # Plain variables: those of a Keras layer would be written twice.
    stored = deployed.replaced(
        lambda name, array: tf.Variable(array, trainable=False, name=f"{PREFIX}{name.replace('/', '.')}")
    )
    module = tf.Module()
    module.folded = list(stored.arrays().values())
    shared = dataclasses.replace(
        stored,
        flow=_SharedFlow(stored.flow),  # type: ignore[arg-type]
        encoder=None if stored.encoder is None else _SharedEncoder(stored.encoder),  # type: ignore[arg-type]
    )
    # Concrete functions: `keras.export.ExportArchive` tracks what can be traced, and saving then traces it all again.
    signatures = {endpoint.name: _function(shared, endpoint, progress) for endpoint in endpoints}
    for name, function in signatures.items():
        setattr(module, name, function)
    # Pixels have no gradients; those of the bijectors would be traced once for each place that uses them.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(folder), {**signatures, _DEFAULT: signatures[endpoints[0].name]}, options)


def _function(
    shared: DeployedModel, endpoint: Endpoint, progress: Callable[[str], Any]
) -> tf.types.experimental.ConcreteFunction:
    def call(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        progress(endpoint.name)
        # A server's session checks no shapes, and a convolution ends the process at a wrong rank.
        given = zip(specs, inputs, strict=True)
        checked = {one.name: tf.ensure_shape(tensor, one.shape, f"shape_of_{one.name}") for one, tensor in given}
        with tf.control_dependencies(checked.values()):
            named = {name: tf.identity(tensor) for name, tensor in checked.items()}
        return endpoint.build(_read(shared), named)

    specs = [array.spec() for array in endpoint.inputs]
    return tf.function(call, input_signature=specs, autograph=False).get_concrete_function()


def _read(stored: Kind) -> Kind:
    """Returns a layer of what its variables hold, to compute with."""
    return stored.replaced(lambda name, variable: tf.convert_to_tensor(variable))


class _SharedFlow:
    """The flow, each direction a function of the graph that is traced and written once for all signatures.

    Args:
        flow: of variables.
    """

    def __init__(self, flow: DeployedFlow):
        self._flow, self.parts = flow, flow.parts
        self._forward = tf.function(lambda x, z: _read(flow).forward(x, z), autograph=False)
        self.inverse = tf.function(lambda v, z: _read(flow).inverse(v, z), autograph=False)

    def forward(self, x: tf.Tensor, z: tf.Tensor | None, log_dets: LogDets | None = None) -> tf.Tensor:
        """Maps x to v; with log-determinants, which one signature wants, in a graph of its own."""
        return self._forward(x, z) if log_dets is None else _read(self._flow).forward(x, z, log_dets)


class _SharedEncoder:
    """The encoder, a function of the graph for all signatures.

    Args:
        encoder: of variables.
    """

    def __init__(self, encoder: DeployedEncoder):
        self.scope = encoder.scope
        self._call = tf.function(lambda x: _read(encoder)(x), autograph=False)

    def __call__(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mean and log-variance of z."""
        return self._call(x)


WARMUP_FILE = pathlib.Path("assets.extra", "tf_serving_warmup_requests")

# Where the container finds things; the first is where TensorFlow Serving's own image expects models.
_MODELS = "/models"
_SETTINGS = "/config"

_MODELS_COMMENT = """\
# TensorFlow Serving, --model_config_file: which models to serve.
#
# Of the numbered folders under base_path the newest is served, and a newer one replaces it while the server runs.
# To serve two versions at once, each under a URL of its own (/v1/models/{name}/versions/1), add to config:
#   model_version_policy {{ specific {{ versions: 1 versions: 2 }} }}
"""

# tensorflow-serving-api has no message for this file.
_BATCHING = """\
# TensorFlow Serving, --batching_parameters_file: requests that arrive together run as one batch, per signature.

# The flow is convolutions throughout: beyond a few images a batch gains little, while its memory grows with every
# image. A request of more images than this is refused.
max_batch_size { value: 16 }

# How long a request waits for others, in microseconds: short beside the time the model takes for one image.
batch_timeout_micros { value: 2000 }

# How many batches of a signature may wait. Beyond that the server refuses at once (UNAVAILABLE), which a client can
# act on, where a longer queue would only let it time out.
max_enqueued_batches { value: 64 }

# Batches that run at the same time. On a CPU about as many as cores; on a GPU one or two keep it busy.
num_batch_threads { value: 4 }

# A batch is padded to the next of these sizes. They are few, so that TensorFlow soon has a convolution algorithm and
# memory for each. Ascending; the last must equal max_batch_size.
allowed_batch_sizes: 1
allowed_batch_sizes: 2
allowed_batch_sizes: 4
allowed_batch_sizes: 8
allowed_batch_sizes: 16
"""

# Nor for this one.
_MONITORING = """\
# TensorFlow Serving, --monitoring_config_file: metrics for Prometheus, on the REST port.
prometheus_config {
  enable: true
  path: "/monitoring/prometheus/metrics"
}
"""

_COMPOSE = """\
# TensorFlow Serving with this model: docker compose up
# On an NVIDIA GPU (with its container toolkit): docker compose up tf-serving-gpu
# Another version of the server: TF_SERVING_TAG=2.19.1 docker compose up
services:
  tf-serving:
    image: "tensorflow/serving:${{TF_SERVING_TAG:-latest}}"
    ports:
      # For this machine only, because the server asks no one for a password. Without the address: for every machine.
      - "127.0.0.1:8500:8500"  # gRPC
      - "127.0.0.1:8501:8501"  # REST
    volumes:
      - "./savedmodel:{models}/{name}:ro"
      - "./models.config:{settings}/models.config:ro"
      - "./batching.config:{settings}/batching.config:ro"
      - "./monitoring.config:{settings}/monitoring.config:ro"
    command:
      - "--model_config_file={settings}/models.config"
      - "--monitoring_config_file={settings}/monitoring.config"
      - "--enable_batching=true"
      - "--batching_parameters_file={settings}/batching.config"
  tf-serving-gpu:
    extends:
      service: "tf-serving"
    # Starts only where it is named.
    profiles:
      - "gpu"
    image: "tensorflow/serving:${{TF_SERVING_TAG:-latest}}-gpu"
    environment:
      # Full float32: cards since Ampere round products to 10 bits of mantissa otherwise (TF32), and images are lost.
      NVIDIA_TF32_OVERRIDE: "0"
    deploy:
      resources:
        reservations:
          devices:
            - driver: "nvidia"
              count: "all"
              capabilities:
                - "gpu"
"""


def write_warmup(folder: pathlib.Path, name: str, endpoints: Sequence[Endpoint]) -> None:
    """Writes requests into a SavedModel that TensorFlow Serving runs before it calls a version available.

    Without them the first real request of each signature waits while TensorFlow optimises its graph.

    Args:
        folder: of the SavedModel, before it gets the name under which a server would find it.
        name: from `safe_name`.
        endpoints: the SavedModel's; the first is `serving_default` as well, whose graph is a copy of its own.

    Raises:
        OSError, tf.errors.OpError: where the disk is full or the folder cannot be written.
    """
    path = folder / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    signatures = [("serving_default", endpoints[0]), *((endpoint.name, endpoint) for endpoint in endpoints)]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, endpoint in signatures:
            writer.write(_request(name, signature, endpoint).SerializeToString())


def _request(name: str, signature: str, endpoint: Endpoint) -> prediction_log_pb2.PredictionLog:
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = name, signature
    rng = np.random.default_rng(0)
    for array in endpoint.inputs:
        request.inputs[array.name].CopyFrom(tf.make_tensor_proto(array.plausible(rng)))
    return log


def write_serving_files(folder: pathlib.Path, name: str) -> None:
    """Writes models.config, batching.config, monitoring.config and docker-compose.yml.

    Args:
        folder: of the export; the SavedModel's versions are in its folder `savedmodel`.
        name: from `safe_name`.

    Raises:
        OSError: where the disk is full or the folder cannot be written.
    """
    models = model_server_config_pb2.ModelServerConfig()
    models.model_config_list.config.add(name=name, base_path=f"{_MODELS}/{name}", model_platform="tensorflow")
    files = {
        "models.config": _MODELS_COMMENT.format(name=name) + text_format.MessageToString(models),
        "batching.config": _BATCHING,
        "monitoring.config": _MONITORING,
        "docker-compose.yml": _COMPOSE.format(name=name, models=_MODELS, settings=_SETTINGS),
    }
    for file, text in files.items():
        write_text(folder / file, text)


def served_others(folder: pathlib.Path, name: str) -> str:
    """Returns the names of the models that a folder's models.config serves where `name` is none; "" where it is one."""
    try:
        text = (folder / "models.config").read_text(encoding="utf-8", errors="replace")
        config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except (OSError, text_format.ParseError):
        return "what a server cannot read"
    names = [model.name for model in config.model_config_list.config]
    return "" if name in names else ", ".join(names) or "nothing"
