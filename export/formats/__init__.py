"""The writers of exported files, with a module for each format."""

# These formats have one file for each endpoint with a file name (`Endpoint.onnx`), instead of one file for all.
FILE_FORMATS = ("onnx", "litert")
FORMATS = ("savedmodel", *FILE_FORMATS, "web")
