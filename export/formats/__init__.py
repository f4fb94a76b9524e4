"""The writers of exported files, with a module for each format."""

# These formats have a file for each endpoint that has a file name (`Endpoint.onnx`); a SavedModel has all endpoints.
FILE_FORMATS = ("onnx", "litert")
FORMATS = ("savedmodel", *FILE_FORMATS, "web")
