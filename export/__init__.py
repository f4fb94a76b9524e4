"""Exports the model of a training run as a SavedModel, as ONNX or LiteRT files, or as a web page.

All files are compared with the Keras model before the export folder is made. The command is
`tfdecouple export --run RUN --to DIR`; the function is `export.pipeline.export`.
"""
