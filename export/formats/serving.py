"""The files that TensorFlow Serving reads: requests to warm a model up with, and the configuration of a server."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from export.endpoint import Endpoint
from tfdecouple.storage.files import write_text

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

# Batches are padded to the next of these: few sizes, so that what depends on the size (choice of convolution
# algorithms, memory) settles soon. Ascending; the last must equal max_batch_size.
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
