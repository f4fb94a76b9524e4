"""Opening the model of a run folder."""

from __future__ import annotations

import os
import pathlib

from tfdecouple.config import Config, DataConfig
from tfdecouple.data.opening import place_of
from tfdecouple.errors import RunError, UntrustedError
from tfdecouple.model import DecoupledModel
from tfdecouple.parameters import count_parameters, require_memory
from tfdecouple.storage.checkpoints import CheckpointFolder, DamagedCheckpointError

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"


def load_config(run: str | pathlib.Path) -> Config:
    """Returns the config of a run folder.

    Raises:
        RunError: where the folder is none of ours.
        ConfigError: where its config does not hold.
    """
    folder = pathlib.Path(run)
    if not folder.is_dir():
        raise RunError(f"there is no run folder {run}; python train.py makes one")
    if not (folder / CONFIG).is_file():
        raise RunError(f"{run} is no run folder: it has no {CONFIG}")
    return Config.from_json(folder / CONFIG)


def require_own_images(run: str | pathlib.Path, data: DataConfig) -> str | None:
    """Looks whether the config of a run, which may be a stranger's, names a place for images outside of the run folder.

    Whoever made the run folder made all that lies within it; images are taken from there only where the user says so.

    Args:
        run: a run folder.
        data: of its config.

    Returns:
        The folder of images that it names; None where it names none.

    Raises:
        UntrustedError: where this lies within the run folder.
    """
    place = place_of(data)
    if place is None:
        return None
    inside = any(
        os.path.commonpath([path(run), path(place)]) == path(run) for path in (os.path.abspath, os.path.realpath)
    )
    if inside:
        option = "data.source" if data.source.startswith("folder:") else "data.data_dir"
        raise UntrustedError(
            f"{option} in {pathlib.Path(run) / CONFIG} leads into the run folder itself, to {place}; where you trust "
            "it, name it with --data and --data-dir, or change the config"
        )
    return place


def load_model(run: str | pathlib.Path) -> DecoupledModel:
    """Returns the model of a run with its best weights so far (averaged ones, where the run averages).

    Args:
        run: a run folder, of a training that has ended or still goes on, or of an import.

    Raises:
        RunError: where the folder is none of ours, or holds no whole checkpoint yet.
        ConfigError: where its config does not hold.
    """
    config = load_config(run)
    model = empty_model(run, config)
    load_weights(run, model, averaged=config.training.ema_decay > 0)
    return model


def empty_model(run: str | pathlib.Path, config: Config) -> DecoupledModel:
    """Returns the model that a run's config describes, once its size was found to be that of the run's weights.

    Neither config nor checkpoints need be right: a config can ask for any size in a few characters.

    Raises:
        ConfigError: where this machine has too little memory for the model.
        RunError: where the newest of the whole checkpoints has other numbers of parameters.
    """
    require_memory(config.model)
    folder = CheckpointFolder(pathlib.Path(run) / CHECKPOINTS)
    planned = count_parameters(config.model)
    for kind, step in [(name, number) for name in ("best", "step") for number in folder.steps(name)]:
        try:
            held = folder.parameter_count(kind, step)
        except DamagedCheckpointError:
            continue
        for network, count in planned.items():
            if held[network] != count:
                raise RunError(
                    f"the checkpoint {folder.prefix(kind, step)} does not fit the config beside it: the {network} has "
                    f"{count:,} parameters by the config, and {held[network]:,} in the checkpoint"
                )
        break
    return DecoupledModel(config.model)


def load_weights(run: str | pathlib.Path, model: DecoupledModel, averaged: bool) -> int:
    """Reads the best weights of a run into a model of the same config.

    Args:
        run: a run folder.
        model: the model to fill.
        averaged: whether the checkpoints of the run hold averaged weights.

    Returns:
        The step, in updates, at which these weights were saved.

    Raises:
        RunError: where there is no whole checkpoint, or it does not fit the model.
    """
    folder = CheckpointFolder(pathlib.Path(run) / CHECKPOINTS)
    variables = model.named_variables()
    problem = None
    for kind in ("best", "step"):
        for step in folder.steps(kind):
            try:
                folder.read(kind, step, {"model": variables})
                if kind == "step" and averaged:
                    covered = averaged_names(model)
                    folder.read(kind, step, {"averages": {n: v for n, v in variables.items() if n in covered}})
                return step
            except DamagedCheckpointError as error:
                problem = error
    raise problem or RunError(f"{run} holds no checkpoint yet; wait for the first one or train it on")


def averaged_names(model: DecoupledModel) -> set[str]:
    """Returns the names of the weights that averaging covers.

    These are all that training moves: the trainable weights and the moving statistics of batch normalisation. The
    statistics are averaged with the weights they belong to.
    """
    return {name for name, variable in model.named_variables().items() if variable.dtype == "float32"}
