"""Exporting a run: SavedModel and ONNX."""
