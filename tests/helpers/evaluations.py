"""A function that computes a metric of `evaluate` for a model and a data set, without the command."""

from types import SimpleNamespace

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
