"""Opening of run folders, with their model, data set and directions in z; and saving of models as run folders."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Self

import numpy as np

from tfdecouple.config import Config
from tfdecouple.data.batches import read_chosen_batches
from tfdecouple.data.labels import require_label_count
from tfdecouple.data.sources import Source, open_source, replace_source
from tfdecouple.errors import ConfigError, DataError, RunError, UserError
from tfdecouple.model import DecoupledModel
from tfdecouple.model.base_model import require_initialized
from tfdecouple.networks.architecture import Architecture
from tfdecouple.runs.latent_directions import Directions
from tfdecouple.runs.run_folder import RunFolder
from tfdecouple.storage.files import Facts


@dataclasses.dataclass(frozen=True)
class Run:
    """An opened run: its config, and its model with the best weights so far (averaged, if the run averages weights).

    Attributes:
        folder: the files of the run; `folder.run` is its path, name or address, as the user wrote it.
        step: count of training steps after which the weights were saved.
    """

    folder: RunFolder
    config: Config
    model: DecoupledModel
    step: int

    @classmethod
    def open(cls, run: str | pathlib.Path, z_for: str = "", jit_compile: bool = False) -> Self:
        """Reads a run's config, builds the model, loads the best weights; the run may be untrusted (SECURITY.md).

        `run` and the errors are those of `load_model`. UserError is also raised if the model has no z and `z_for` is
        given, the name of a command that needs z.
        """
        folder = RunFolder(run)
        config = folder.read_config()
        if z_for and not config.model.has_latent:
            raise UserError(f"the model of {run} has no z (model.conditioning is 'none'), and {z_for} needs one")
        folder.require_fitting_weights(Architecture(config.model).compute_weight_shapes())
        model = DecoupledModel(config.model, jit_compile=jit_compile)
        step = folder.load_weights(model, averaged=config.training.ema_decay > 0)
        return cls(folder, config, model, step)

    @property
    def averaged(self) -> bool:
        """Whether this run's weights were averaged over training steps (`training.ema_decay` is above 0)."""
        return self.config.training.ema_decay > 0

    def facts(self) -> Facts:
        """Returns a dict that identifies this run in a JSON file: path, step, and whether weights are averaged."""
        return {"run": self.folder.run, "step": self.step, "averaged": self.averaged}

    def note(self) -> str:
        """Returns a sentence with this run's name and count of updates, for the end of a picture's caption."""
        return f"Run {self.folder.name}, update {self.step:,}{', averaged weights' if self.averaged else ''}."

    def encode_z(self, images: np.ndarray) -> np.ndarray:
        """Returns the means of q(z|x) of uint8 images, float32 `[n, d_z]`, without computing v."""
        return np.asarray(self.model.posterior(images).mean())

    def encode_split(self, source: Source, split: str, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns means of q(z|x), float32 `[n, d_z]`, and labels, int32 `[n]`; `indices` must ascend."""
        codes, labels = [], []
        for batch in read_chosen_batches(source, split, indices, batch_size=128, title=f"encoding {split}"):
            codes.append(self.encode_z(batch["image"]))
            labels.append(batch["label"])
        return np.concatenate(codes), np.concatenate(labels)

    def directions(self) -> Directions | None:
        """Returns the `Directions` in directions.json, None without it; RunError if they belong to other weights."""
        directions = Directions.read(self.folder.path, self.config.model.latent_dim)
        if directions is not None and directions.weights_sha256 != hash_weights(self.model):
            raise RunError(
                f"the directions in {self.folder.run} were found with other weights than its best ones now; "
                "find them again with tfdecouple directions"
            )
        return directions

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the model's labels, a tuple of texts; () for a model without labels."""
        return self.folder.read_label_names(self.config.model.classes) if self.config.model.has_labels else ()

    def require_labels(self, source: Source) -> None:
        """Raises DataError if a data set has other labels than the model; the message names the first difference."""
        if not self.config.model.has_labels:
            return
        require_label_count(source, self.config.model)
        if changed := self.folder.find_changed_label(self.config.model.classes, source.label_names):
            here, other = changed
            raise DataError(
                f"{source.title} has the label {other!r} where the run {self.folder.run} has {here!r}; it must have "
                f"the same labels: {', '.join(self.label_names[:20])}"
            )

    def open_source(
        self, source: str | None = None, data_dir: str | None = None, download: bool = False, **others: object
    ) -> Source:
        """Opens the data set of the run, or the data set `source`, with images in the shape that the model expects.

        `source` has the form of the option `data.source`. Further keywords are other options of `DataConfig`; an option
        that is None keeps the run's value. With `download` TFDS downloads and prepares missing data.
        """
        data = replace_source(self.config.data, source, data_dir=data_dir, **others)
        return open_source(data, self.config.model.image_shape, download=download)


def load_model(run: str | pathlib.Path, *, jit_compile: bool = False) -> DecoupledModel:
    """Returns the model of a run with its best weights (averaged, if the run averages weights).

    >>> load_model("photographs").config.image_shape
    (64, 64, 3)

    Args:
        run: a run folder, even of a training that is still running; the name of weights that are bundled with the
            installation; or an address `hf://OWNER/NAME[@REVISION]` on the Hugging Face Hub, from which config and
            weights are downloaded and compared with their digests. No downloaded code is run.
        jit_compile: whether XLA compiles the model's functions when they are first used with a batch size.

    Raises:
        RunError: where nothing has this name, or no complete checkpoint fits the config, or a digest is wrong.
        ConfigError: where the config is invalid, or its model needs more memory than the machine has.
        UserError: where the Hub's client is missing.
    """
    return Run.open(run, jit_compile=jit_compile).model


def save_run(model: DecoupledModel, run: str | pathlib.Path, config: Config | None = None) -> None:
    """Writes a model as a run folder, which all commands and `tfdecouple export` accept.

    >>> import tempfile
    >>> from tfdecouple import ModelConfig
    >>> config = ModelConfig(image_shape=(4, 4, 3), conditioning="none", steps=(1, 1), hidden_channels=(4, 4))
    >>> model = DecoupledModel(config)
    >>> model.initialize(np.zeros([2, 4, 4, 3], np.uint8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_run(model, f"{folder}/mine")
    ...     load_model(f"{folder}/mine").config == model.config
    True

    `config` names the images on which the model was trained. Without `config` the images count as unknown.

    Raises:
        RunError: where the folder is not empty or cannot be written.
        ConfigError: where `config` is of another model, or the folder's name cannot be the name of a run.
        NotInitializedError: where the model has no weights yet.
    """
    require_initialized(model)
    folder, data = pathlib.Path(run), config.data.source if config else None
    config = config or Config(name=RunFolder(folder).name, model=model.config)
    if config.model != model.config:
        raise ConfigError("the config passed to save_run describes another model")
    # An `ema_decay` above 0 would mark the weights as averaged over training steps, which is not known here.
    training = dataclasses.replace(config.training, ema_decay=0.0)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{run} exists and is not empty; name a new folder")
        summary = {"data": data, "test": None, "parameters": model.parameter_count()}
        write_run(folder, model, dataclasses.replace(config, training=training), 0, summary)
    except OSError as error:
        raise RunError(f"cannot write the run {run}: {error.strerror or error}; name another folder") from error


def write_run(
    folder: pathlib.Path,
    model: DecoupledModel,
    config: Config,
    step: int,
    summary: Facts | None = None,
    label_names: Sequence[str] = (),
) -> None:
    """Writes a run folder with a config and the weights of `model`, as the best weights, after `step` training steps.

    The folder also gets summary.json with the content `summary`, and labels.json with `label_names`, unless empty.
    """
    config.to_json()  # A config that cannot be written raises its error here, before the folder is made.
    folder.mkdir(parents=True, exist_ok=True)
    run = RunFolder(folder, is_written=True)
    run.checkpoints.write_checkpoint("best", step, {"model": model.named_variables()})
    run.write_config(config, label_names)
    if summary:
        run.write_summary(summary)


def load_directions(run: str | pathlib.Path) -> Directions:
    """Returns the `Directions` in z that `tfdecouple directions` found for a run.

    Unlike `Run.directions`, the function does not check that the directions were found with the run's present weights.
    RunError is raised if the folder is no run folder, or its directions are missing or damaged.

    >>> sorted({direction.name for direction in load_directions("photographs")})[:2]
    ['brighter', 'more contrast']
    """
    folder = RunFolder(run)
    directions = Directions.read(folder.path, folder.read_config().model.latent_dim)
    if directions is None:
        command = f"tfdecouple directions --statistics --run {run}"
        raise RunError(f"{run} has no directions yet; find them with {command}")
    return directions


def hash_weights(model: DecoupledModel) -> str:
    """Returns the SHA-256 of all weights of a model, with their names, shapes and types, hexadecimal."""
    digest = hashlib.sha256()
    for name, variable in sorted(model.named_variables().items()):
        array = np.ascontiguousarray(variable.numpy())
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
