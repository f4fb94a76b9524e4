"""The writers of exported files, with a module for each format."""

import pathlib

# These formats have a file for each endpoint that has a file name (`Endpoint.onnx`); a SavedModel has all endpoints.
FILE_FORMATS = ("onnx", "litert")
FORMATS = ("savedmodel", *FILE_FORMATS, "web")
# Path of the requests with which TensorFlow Serving warms a model up, below the folder of a SavedModel.
WARMUP_FILE = pathlib.Path("assets.extra", "tf_serving_warmup_requests")
