"""Registries of all that options, commands and exports can name; other packages add to them by `register`.

Names in configs are looked up here and in the entry points of installed packages; no name is a path of a module.
"""

import functools
import importlib.metadata
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

from tfdecouple.errors import ConfigError, nearest, one_line, warn_user


class Registry(Mapping[str, Any]):
    """The objects of one kind, such as layers, by name: those of this project and those that packages registered.

    A value can be given as the text "module:name", which is imported when the value is read, because importing it may
    import TensorFlow. The first unknown name, or the first listing, imports the entry points of installed packages.
    """

    def __init__(self, kind: str, **entries: str):
        self.kind = kind
        self.entries: dict[str, Any] = {**entries}
        REGISTRIES[kind] = self

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        if isinstance(value := self.entries[name], str):
            value = self.entries[name] = pkgutil.resolve_name(value)
        return value

    def __contains__(self, name: object) -> bool:
        if name not in self.entries:
            _import_installed()
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        _import_installed()
        return iter(self.entries)

    def __len__(self) -> int:
        _import_installed()
        return len(self.entries)

    def require(self, name: str, option: str, *others: str) -> None:
        """Raises ConfigError, with the nearest name, unless `option`'s value `name` is registered, or in `others`."""
        if name not in others and name not in self:
            names = [*others, *self]
            listed = f"one of {', '.join(map(repr, names))}, or " if names else ""
            text = f"{listed}the name of another {self.kind} that an installed package registers"
            raise ConfigError(f"{option} is {one_line(repr(name), 120)}; it must be {text}{nearest(name, names)}")


REGISTRIES: dict[str, Registry] = {}

# Layers at the end of each flow step, for `model.step_layers`.
LAYERS = Registry("layer", actnorm="tfdecouple.layers:ActNorm")
# Nets of the couplings of the image flow, for `model.conditioner`.
CONDITIONERS = Registry("conditioner", convolutional="tfdecouple.layers.conditioners:ConvNet")
TRANSFORMS = Registry("transform", affine="tfdecouple.bijectors:AFFINE", additive="tfdecouple.bijectors:ADDITIVE")
# Functions of (config, name) that make an unbuilt encoder, or a flow from z to N(0, I).
ENCODERS = Registry("encoder", resnet="tfdecouple.networks.encoder:make_encoder")
PRIORS = Registry("prior", flow="tfdecouple.networks.prior:make_prior_flow")
# Functions that return a factor of the learning rate, for `training.schedule`.
SCHEDULES = Registry("schedule")
# Kinds of data sources by the values of `data.source`; a name with a colon stands for all values with its prefix.
_TFDS = ("cifar10", "downsampled_imagenet/64x64", "lsun/bedroom", "celeb_a_hq/256", "tfds:NAME")
SOURCES = Registry(
    "source",
    photographs="tfdecouple.data.sample_images:SamplePhotographs",
    **dict.fromkeys(_TFDS, "tfdecouple.data.tfds:TensorFlowDatasets"),
    **{"folder:PATH": "tfdecouple.data.image_folder:ImageFolder"},
)
LOGGERS = Registry(
    "logger",
    tensorboard="tfdecouple.loggers:TensorBoard",
    wandb="tfdecouple.loggers:WeightsAndBiases",
    mlflow="tfdecouple.loggers:MLflow",
)
# Numbers of each validation: functions of the model and validation images.
DIAGNOSTICS = Registry("diagnostic", model="tfdecouple.model.initialization:diagnose_model")
# Pictures of each validation: functions of `PictureInputs`.
_PICTURES = ("reconstructions", "samples", "classes", "interpolation", "switch")
PICTURES = Registry("picture", **{name: f"tfdecouple.visualization.pictures:_draw_{name}" for name in _PICTURES})
# The metrics of `evaluate`, which computes them in this order; metrics that take longer come later.
METRICS = Registry(
    "metric",
    bits_per_dim="tfdecouple.metrics.bits_per_dim:BitsPerDim",
    importance="tfdecouple.metrics.bits_per_dim:ImportanceWeighted",
    own_size="tfdecouple.metrics.bits_per_dim:OwnSize",
    latent_use="tfdecouple.metrics.latent_use:UseOfZ",
    image_statistics="tfdecouple.metrics.image_statistics:ImageStatistics",
    classify="tfdecouple.metrics.classification:Classification",
    outliers="tfdecouple.metrics.outliers:Outliers",
    probe="tfdecouple.metrics.classification:LinearProbe",
    frechet="tfdecouple.metrics.frechet:FrechetDistance",
)
# Functions from a model's config to a further endpoint of exports.
ENDPOINTS = Registry("endpoint")
FORMATS = Registry(
    "format",
    savedmodel="export.formats:_SavedModelFormat",
    onnx="export.formats:_OnnxFormat",
    litert="export.formats:_LiteRTFormat",
    web="export.formats:_WebFormat",
)


def register(kind: str, name: str, value: Any) -> None:
    """Adds `value` under `name` to all that options, commands and exports can name (docs/extending.md).

    >>> register("schedule", "falling", lambda left, config: left)

    `kind` is "layer", "conditioner", "transform", "encoder", "prior", "schedule", "source", "logger", "diagnostic",
    "picture", "metric", "endpoint" or "format". The text "module:name" stands for an object that is imported when it is
    needed. ConfigError is raised for an unknown kind, or a name that is registered already.
    """
    if kind not in REGISTRIES:
        raise ConfigError(f"there is no kind {kind!r}{nearest(kind, REGISTRIES)}; there are {', '.join(REGISTRIES)}")
    if name in (entries := REGISTRIES[kind].entries):
        raise ConfigError(f"the {kind} {name!r} exists already; register yours under another name")
    entries[name] = value


@functools.cache
def _import_installed() -> None:
    # Each entry point names a module that calls `register` when it is imported.
    for entry in importlib.metadata.entry_points(group="tfdecouple"):
        try:
            entry.load()
        except Exception as error:
            warn_user(f"{entry.value} adds nothing to tfdecouple, because its import failed: {one_line(error)}")
