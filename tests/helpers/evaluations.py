"""Functions that compute one metric of `tfdecouple evaluate` without the command, and write ONNX feature extractors."""

from types import SimpleNamespace

import numpy as np
import onnx.parser
import tensorflow as tf

# Command-line options of `evaluate` that the metrics use, with values for small data sets.
OPTIONS = {"images": 0, "samples": 1, "seed": 0, "temperature": 1.0}
OPTIONS |= {"probe_images": 0, "frechet_images": 10_000, "frechet_split": "test"}


def compute_metric(metric, model, source, *, batch_size=32, **options):
    """Returns what the metric class `metric` computes for a model and a data source; `options` override `OPTIONS`."""
    instance = metric(SimpleNamespace(**{**OPTIONS, **options}))
    config = SimpleNamespace(model=model.config)
    instance.prepare_inputs(config)
    run = SimpleNamespace(model=model, config=config, label_names=source.label_names)
    context = SimpleNamespace(opened=run, source=source, batch_size=batch_size, options=instance.options)
    return instance.compute(context)


def write_onnx(path, *, dtype="uint8", shape="n, h, w, 3", keep_dims=0, outputs=("features",), divide_by=1.0):
    """Writes an ONNX model to `path` whose three features are the mean colour of an image; returns `path`."""
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


class MeanColourModel:
    """A model whose z is an image's mean colour, and v what is left; `batches` has the sizes of encoded batches."""

    def __init__(self):
        self.batches = set()

    def encode(self, images):
        self.batches.add(len(images))
        mean = images.mean((1, 2)).astype(np.float32)
        return SimpleNamespace(z=tf.constant(mean), v=tf.constant(images - mean[:, None, None]))

    def decode(self, z, v):
        return np.clip(np.rint(v + z[:, None, None]), 0, 255).astype(np.uint8)


def compute_mean_colours(images):
    """Returns the mean colour of each image, float64 `[n, channels]`, which the models of `write_onnx` compute, too."""
    return images.mean((1, 2), dtype=np.float64)
