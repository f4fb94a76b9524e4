"""The writers of exported files, with a module for each format."""

# Formats that are a folder of files, one for each endpoint that has a file name (`Endpoint.onnx`).
FILE_FORMATS = ("onnx", "litert")
FORMATS = ("savedmodel", *FILE_FORMATS, "web")
