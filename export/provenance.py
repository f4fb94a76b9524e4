"""The provenance of exported weights: the training run, its config, its data and its metrics."""

import dataclasses
import importlib.metadata
import json
import pathlib
import re

from export import LOG
from tfdecouple.config import Config, DataConfig
from tfdecouple.data.image_formats import describe_cropping, describe_resizing
from tfdecouple.data.sources import choose_user_crop
from tfdecouple.errors import RunError, one_line
from tfdecouple.model import DecoupledModel
from tfdecouple.runs import latent_directions
from tfdecouple.runs.latent_directions import Directions
from tfdecouple.runs.opened_run import Run
from tfdecouple.runs.publishing import describe_training_images
from tfdecouple.runs.run_folder import CONFIG, SUMMARY, find_test_metrics, find_training_data
from tfdecouple.storage.files import Facts, hash_file

_PACKAGES = ("tfdecouple", "tensorflow", "keras", "tf2onnx", "onnx")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """The run and the weights that are exported, as facts for the files and for the model card.

    Attributes:
        name: the name of the exported model, safe in a URL and a path.
        metadata: facts about run and model, {name: text}, for the metadata of ONNX files and for the model card.
        crop: the side in pixels of the centre square to crop from an image of the export's user; 0: the largest square.
        data, rights: descriptions of the training images, and of the rights in them.
        training_data: the data options of the training; None if unknown, as for imported weights.
        bits_per_dim: {"validation": bits/dim, "test": bits/dim, "test_images": count} of these weights, as far as the
            run recorded them; None if it recorded none.
    """

    name: str
    config: Config
    metadata: dict[str, str]
    crop: int
    parameters: int
    data: str
    rights: str
    training_data: DataConfig | None
    bits_per_dim: Facts | None
    directions: Directions | None = None
    label_names: tuple[str, ...] = ()


def open_run(run: str | pathlib.Path, name: str | None = None) -> tuple[DecoupledModel, Provenance]:
    """Returns the model of a run with the run's best weights, and their provenance; `run` and errors as of `Run.open`.

    `name` is the name of the exported model, by default the name of the run. Other files that cannot be read are logged
    and left out.
    """
    opened = Run.open(run)
    model, config, step = opened.model, opened.config, opened.step
    summary: Facts = {}
    directions = None
    try:
        summary = opened.folder.read_summary() or {}
    except (OSError, ValueError) as error:
        LOG.info("%s cannot be used and is left out: %s", SUMMARY, one_line(error))
    try:
        directions = opened.directions() if config.model.has_latent else None
    except RunError as error:
        LOG.info("%s cannot be used and is left out: %s", latent_directions.FILE, error)
    bits: Facts = {}
    if summary.get("best_step") == step and isinstance(summary.get("validation_bits_per_dim"), float):
        bits["validation"] = summary["validation_bits_per_dim"]
    if test := find_test_metrics(summary, step):
        bits |= {"test": test["bits_per_dim"], "test_images": test["images"]}
    data, rights = describe_training_images(config, summary, step)
    crop, shape = choose_user_crop(config.data), config.model.image_shape
    metadata = {
        "run": opened.folder.name,
        "step": str(step),
        "averaged": str(opened.averaged).lower(),
        "image_shape": json.dumps(shape),
        "n_bits": str(config.model.n_bits),
        "d_z": str(config.model.latent_dim if config.model.has_latent else 0),
        "colours": str(config.model.colour_numbers),
        "value_range": "uint8 0..255",
        "crop": describe_cropping(shape, crop),
        "resize": describe_resizing(shape),
        "precision": "float32",
        # As `sha256sum` prints it.
        "config_sha256": hash_file(opened.folder.path / CONFIG),
        "versions": ", ".join(f"{package} {read_version(package)}" for package in _PACKAGES),
    }
    return model, Provenance(
        name=make_safe_name(name or opened.folder.name),
        config=config,
        metadata=metadata,
        crop=crop,
        parameters=model.parameter_count()["total"],
        data=data,
        rights=rights,
        training_data=find_training_data(config, summary, step),
        bits_per_dim=bits or None,
        directions=directions,
        label_names=opened.label_names,
    )


def make_safe_name(name: str) -> str:
    """Returns `name` reduced to ASCII letters, digits, `_` and `-`, so that it is safe in a URL and as a file name.

    >>> make_safe_name("quickstart"), make_safe_name("faces, 2nd try/ema"), make_safe_name("..")
    ('quickstart', 'faces-2nd-try-ema', 'model')
    """
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "model"


def read_version(package: str) -> str:
    """Returns the version of an installed package, or "unknown" if the package is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
