"""Export of a run as a SavedModel, as ONNX or LiteRT files, or as a web page, verified before publication.

The command is `python -m export --run RUN --to DIR`; the function is `export.pipeline.export`.
"""
