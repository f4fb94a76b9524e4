"""A metric of `evaluate` computed without the command, and feature extractors for the Fréchet distance."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx.parser

OPTIONS = {
    "images": 0,
    "samples": 1,
    "seed": 0,
    "temperature": 1.0,
    "probe_images": 0,
    "frechet_images": 10_000,
    "trust": False,
}


def compute_metric(metric, model, source, *, batch_size=32, **options):
    """Returns the result of a metric class for a model and a source, with `OPTIONS` changed by `options`."""
    taken = metric(SimpleNamespace(**{**OPTIONS, **options}))
    config = SimpleNamespace(model=model.config)
    opened = SimpleNamespace(model=model, config=config, label_names=source.label_names)
    return taken.compute(SimpleNamespace(opened=opened, source=source, batch_size=batch_size, options=taken.options))


def write_onnx(path, *, dtype="uint8", shape="n, h, w, 3", keep_dims=0, outputs=("features",), divide_by=1.0):
    """Writes an ONNX extractor whose features are the mean colour of an image; returns the path."""
    features = f"float[{shape.partition(',')[0]}, {'1, 1, ' * keep_dims}3]"
    means = "\n".join(f"{name} = ReduceMean <keepdims = {keep_dims}> (scaled, axes)" for name in outputs)
    text = f"""<ir_version: 9, opset_import: ["": 18]>
        colours ({dtype}[{shape}] images) => ({", ".join(f"{features} {name}" for name in outputs)}) {{
            values = Cast <to = 1> (images)
            divisor = Constant <value = float {{{divide_by}}}> ()
            scaled = Div (values, divisor)
            axes = Constant <value = int64[2] {{1, 2}}> ()
            {means}
        }}"""
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def compute_mean_colours(images):
    """Returns the features that the extractors compute for images, float64 `[n, channels]`."""
    return images.mean((1, 2), dtype=np.float64)
