"""Export of a run: a SavedModel for TensorFlow Serving, ONNX files, a web page, each verified before it is published.

`python -m export --run RUN --to DIR`, or `export.pipeline.export(Request(run=..., to=...))`.
"""
