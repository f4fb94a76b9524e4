"""A run, opened as a model: with its weights, its images and its directions."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from tfdecouple.config import Config, DataConfig, override
from tfdecouple.data import Source, open_source
from tfdecouple.data.labels import require_classes
from tfdecouple.data.sources import with_source
from tfdecouple.errors import ConfigError, DataError, RunError, UserError, nearest, one_line
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.latent_directions import Directions
from tfdecouple.runs.pretrained import folder_of, pretrained_names
from tfdecouple.runs.run_folder import (
    CHECKPOINTS,
    CONFIG,
    SUMMARY,
    changed_label,
    find_run,
    load_config,
    load_weights,
    read_label_names,
    require_fitting,
    run_name,
)
from tfdecouple.storage.checkpoints import CheckpointFolder
from tfdecouple.storage.files import write_json, write_text


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder, opened: its config, and its model with the best weights so far (averaged, where the run averages).

    Attributes:
        path: of the folder, or the name or address of weights that were trained already, as the user wrote it.
        config: of the run.
        model: with these weights.
        step: in updates, at which they were saved.
    """

    path: str
    config: Config
    model: DecoupledModel
    step: int

    @classmethod
    def open(cls, run: str | pathlib.Path, z_for: str = "", jit_compile: bool = False) -> Self:
        """Opens a run folder, which may be a stranger's (docs/security.md).

        Args:
            run: a run folder, of a training that has ended or still goes on, or of an import; or weights that were
                trained already (`run_folder.find_run`).
            z_for: what needs z, such as "switch"; empty where a model without z will do.
            jit_compile: of the `DecoupledModel`.

        Raises:
            RunError: where the folder is none of ours, or holds no whole checkpoint yet.
            ConfigError: where its config does not hold, or asks for more memory than there is.
            UserError: for a model without z, where it is needed.
        """
        config = load_config(run)
        if z_for and not config.model.has_latent:
            raise UserError(
                f"the model of {run} has no z (model.conditioning is 'none'), and {z_for} needs one; "
                "take the run of a model with z"
            )
        require_fitting(run, config)
        model = DecoupledModel(config.model, jit_compile=jit_compile)
        step = load_weights(run, model, averaged=config.training.ema_decay > 0)
        return cls(str(run), config, model, step)

    @property
    def name(self) -> str:
        """Name of the run, however its path was written."""
        return run_name(self.path)

    @property
    def folder(self) -> pathlib.Path:
        """Where its files lie."""
        return find_run(self.path)

    @property
    def averaged(self) -> bool:
        """Whether the weights are averaged ones."""
        return self.config.training.ema_decay > 0

    def directions(self) -> Directions | None:
        """Returns the directions in z that were found for these weights, None where none were found yet.

        Raises:
            RunError: where the file is damaged, or they were found with other weights.
        """
        found = Directions.read(self.folder, self.config.model.latent_dim)
        if found is not None:
            found.require_of(weights_sha256(self.model), self.path)
        return found

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels that the model knows; () for a model that knows none.

        Raises:
            RunError: where their file is damaged.
        """
        classes = self.config.model.classes
        return read_label_names(self.path, classes) if classes else ()

    def require_labels(self, source: Source) -> None:
        """Refuses a data set whose labels mean something else than those that the model knows.

        Raises:
            DataError: naming a label.
        """
        if not self.config.model.has_classes:
            return
        require_classes(source, self.config.model)
        if changed := changed_label(self.path, self.config.model.classes, source.label_names):
            here, other = changed
            raise DataError(
                f"{source.title} has the label {other!r} where the run {self.path} has {here!r}; it must have the same "
                f"labels: {', '.join(self.label_names[:20])}"
            )

    def open_source(
        self, source: str | None = None, data_dir: str | None = None, download: bool = False, **others: Any
    ) -> Source:
        """Opens the data set of the run, or another that the user names.

        Args:
            source: `data.source` as the user named it; None for that of the run.
            data_dir: `data.data_dir` likewise.
            download: see `tfdecouple.data.open_source`.
            **others: options of the config's `data` to be changed; None leaves one as it is.

        Raises:
            DataError: for missing data.
            ConfigError: for an option of a wrong value.
        """
        data = self.data_of(source, data_dir=data_dir, **others)
        return open_source(data, self.config.model.image_shape, download=download)

    def data_of(self, source: str | None, **others: Any) -> DataConfig:
        """Returns how the run's data are read, or those of another source; see `open_source`."""
        config = self.config
        if source is not None:
            config = dataclasses.replace(config, data=with_source(config.data, source))
        changes = [f"data.{name}={json.dumps(value)}" for name, value in others.items() if value is not None]
        return override(config, changes).data


def load_model(run: str | pathlib.Path, *, jit_compile: bool = False) -> DecoupledModel:
    """Returns the model of a run with its best weights so far (averaged ones, where the run averages).

    >>> load_model("docs/results/quickstart").config.latent_dim
    16

    Args:
        run: a run folder, of a training that has ended or still goes on, or of an import.
        jit_compile: whether XLA compiles what the model computes, at its first use for each batch size.

    Raises:
        RunError: where the folder is none of ours, or holds no whole checkpoint yet.
        ConfigError: where its config does not hold.
    """
    return Run.open(run, jit_compile=jit_compile).model


def load_pretrained(name: str, *, jit_compile: bool = False) -> DecoupledModel:
    """Returns a model with weights that were trained already.

    >>> load_pretrained("photographs").config.image_shape
    (64, 64, 3)

    Args:
        name: of weights that come along with the installation: "photographs", of images of 64 x 64 pixels; or
            `hf://OWNER/NAME[@REVISION]` on the Hugging Face Hub, where only a commit stands for the same weights for
            ever. Of these, config and weights are fetched and compared with the digests of their manifest, and nothing
            is run.
        jit_compile: whether XLA compiles what the model computes, at its first use for each batch size.

    Raises:
        RunError: where there are no such weights, or they are not what their manifest says.
        UntrustedError: where the manifest names files that are none of a run's weights.
        MissingPackageError: where the Hub's client is not installed: the extra `hub`.
    """
    if folder_of(name) is None:
        known = pretrained_names()
        raise RunError(
            f"there are no weights {name!r}{nearest(name, known)}; {', '.join(known)} comes along, hf://OWNER/NAME "
            "lies on the Hub, and load_model opens a run folder"
        )
    return Run.open(name, jit_compile=jit_compile).model


def save_run(model: DecoupledModel, run: str | pathlib.Path, config: Config | None = None) -> None:
    """Writes a model, however it was trained, as a run folder, which all commands and `python -m export` take.

    >>> import tempfile
    >>> from tfdecouple import ModelConfig
    >>> model = DecoupledModel(ModelConfig(image_size=4, conditioning="none", steps=(1, 1), hidden_channels=(4, 4)))
    >>> model.initialize(np.zeros([2, 4, 4, 3], np.uint8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_run(model, f"{folder}/mine")
    ...     load_model(f"{folder}/mine").config == model.config
    True

    Args:
        model: initialised or trained.
        run: the folder to make.
        config: of a run with this model, where more is known of it, such as its data; of the model alone by default,
            which says of the images that nobody knows them, and claims no licence.

    Raises:
        RunError: where the folder is not empty or cannot be written.
        ConfigError: for a config of another model, or a folder whose name is none of a run.
        NotInitializedError: for a model without weights.
    """
    model.require_initialized()
    folder = pathlib.Path(run)
    with _writing_errors(run):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{run} exists and is not empty; name a new folder")
    data = config.data.source if config else None
    config = config or Config(name=run_name(folder), model=model.config)
    if config.model != model.config:
        raise ConfigError("the config that save_run was given is of another model")
    # The weights are what they are: no averages of theirs are beside them.
    training = dataclasses.replace(config.training, ema_decay=0.0)
    with _writing_errors(run):
        write_run(folder, model, dataclasses.replace(config, training=training), 0)
        write_json(folder / SUMMARY, {"data": data, "test": None, "parameters": model.parameter_count()})


@contextlib.contextmanager
def _writing_errors(run: str | pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write the run {run}: {error.strerror or one_line(error)}; name another folder"
        ) from error


def write_run(folder: pathlib.Path, model: DecoupledModel, config: Config, step: int) -> None:
    """Writes weights, as the best of a step, and the config that makes a run of the folder.

    Raises:
        RunError: where the weights cannot be written.
        OSError: where the folder cannot be made, or the config not be written.
    """
    text = config.to_json()  # Before anything is written.
    folder.mkdir(parents=True, exist_ok=True)
    CheckpointFolder(folder / CHECKPOINTS).write("best", step, {"model": model.named_variables()})
    write_text(folder / CONFIG, text)


def load_directions(run: str | pathlib.Path) -> Directions:
    """Returns the directions in z that `python -m tfdecouple directions` found for a run, by name.

    Whether they were found with the weights that the run has now is known to `Run.directions`.

    >>> sorted({direction.name for direction in load_directions("docs/results/quickstart")})[:2]
    ['astronaut', 'chelsea']

    Raises:
        RunError: where the folder is none of ours, or has no directions yet, or damaged ones.
        ConfigError: where its config does not hold.
    """
    found = Directions.read(find_run(run), load_config(run).model.latent_dim)
    if found is None:
        raise RunError(no_directions(run))
    return found


def no_directions(run: str | pathlib.Path) -> str:
    """Returns what is said of a run without directions."""
    return f"{run} has no directions yet; find them with python -m tfdecouple directions --run {run}"


def weights_sha256(model: DecoupledModel) -> str:
    """Returns a hash of all weights with their names, shapes and types."""
    digest = hashlib.sha256()
    for name, variable in sorted(model.named_variables().items()):
        array = np.ascontiguousarray(variable.numpy())
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
