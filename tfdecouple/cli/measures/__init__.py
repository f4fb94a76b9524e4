"""What `python -m tfdecouple evaluate` measures: a module each, found by being in this folder."""

import importlib
import pkgutil

from tfdecouple.cli.measures.base import Measure


def all_measures() -> list[type[Measure]]:
    """Returns the measures, in their order. None of their modules imports TensorFlow."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return sorted(Measure.__subclasses__(), key=lambda measure: (measure.order, measure.name))
