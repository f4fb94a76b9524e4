"""A run's files: its config, its weights and how it ended, found by its folder or by the name of known weights."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tfdecouple.config import Config
from tfdecouple.errors import RunError, one_line
from tfdecouple.networks.plan import count_by_network, require_memory, weight_shapes
from tfdecouple.runs.pretrained import HUB, folder_of, pretrained_names
from tfdecouple.storage.checkpoints import CheckpointFolder, DamagedCheckpointError
from tfdecouple.storage.files import read_json, require_own_files, write_json

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
SUMMARY = "summary.json"
# The names of the labels of a model that knows labels, in their order.
LABELS = "labels.json"
# How many images each split had when the run last trained.
SIZES = "data.json"


def is_folder(run: str | pathlib.Path) -> bool:
    """Whether a run is named by its folder, not by the name or address of weights that were trained already."""
    text = str(run)
    return not text.startswith(HUB) and ((pathlib.Path(run) / CONFIG).is_file() or text not in pretrained_names())


def find_run(run: str | pathlib.Path) -> pathlib.Path:
    """Returns the folder of a run.

    Args:
        run: a run folder; or the name of weights that come along, such as "photographs", unless a run folder has that
            name here; or an address `hf://OWNER/NAME[@REVISION]`.

    Raises:
        UserError: where the Hub does not have what the address says; see `pretrained.folder_of`.
    """
    return pathlib.Path(run) if is_folder(run) else folder_of(str(run)) or pathlib.Path(run)


def run_name(run: str | pathlib.Path) -> str:
    """Returns the name of a run, however its path was written; on the Hub, of its repository.

    >>> run_name("runs/faces/"), run_name("hf://ada/faces@v1"), run_name("hf://ada/faces@refs/pr/1")
    ('faces', 'faces', 'faces')
    """
    text = str(run)
    if not text.startswith(HUB):
        return pathlib.Path(run).resolve().name
    return text.partition("@")[0].rpartition("/")[2]


def load_config(run: str | pathlib.Path) -> Config:
    """Returns the config of a run; see `find_run`. All that opens a run begins with it.

    Raises:
        RunError: where there is no such run.
        UntrustedError: where its folder holds links that lead out of it, or anything but files and folders.
        ConfigError: where its config does not hold.
    """
    folder = find_run(run)
    if not folder.is_dir():
        raise RunError(
            f"there is no run folder {run}; python train.py makes one, and {', '.join(pretrained_names())} comes along"
        )
    if not (folder / CONFIG).is_file():
        raise RunError(f"{run} is no run folder: it has no {CONFIG}")
    if is_folder(run):
        # The store of the Hub's client is made of links.
        require_own_files(folder)
    return Config.from_json(folder / CONFIG)


def require_fitting(run: str | pathlib.Path, config: Config) -> None:
    """Refuses a config whose model has not the run's weights, by name and shape, or is larger than this machine holds.

    Neither config nor checkpoints need be right: a config can ask for any size in a few characters.

    Raises:
        ConfigError: where this machine has too little memory for the model.
        RunError: where the newest of the whole checkpoints has other numbers of parameters, or lacks a weight.
    """
    require_memory(config.model)
    folder = CheckpointFolder(find_run(run) / CHECKPOINTS)
    planned = weight_shapes(config.model)
    for kind, step in [(name, number) for name in ("best", "step") for number in folder.steps(name)]:
        try:
            held = folder.weights(kind, step)
        except DamagedCheckpointError:
            continue
        misfit = f"the checkpoint {folder.prefix(kind, step)} does not fit the config beside it"
        counts = count_by_network(held)
        for network, count in count_by_network(planned).items():
            if (found := counts.get(network, 0)) != count:
                raise RunError(
                    f"{misfit}: the {network} has {count:,} parameters by the config, and {found:,} in the checkpoint"
                )
        for name, shape in planned.items():
            if held.get(name) != shape:
                raise RunError(
                    f"{misfit}: the weight {name} has the shape {shape} by the config, "
                    f"and {held.get(name, 'is not')} in the checkpoint"
                )
        break


def load_weights(run: str | pathlib.Path, model: Any, averaged: bool, names: Collection[str] | None = None) -> int:
    """Reads the best weights of a run into a model of the same config.

    Args:
        run: a run; see `find_run`.
        model: the model to fill.
        averaged: whether the checkpoints of the run hold averaged weights.
        names: of the weights to read, the others stay as they are; None for all.

    Returns:
        The step, in updates, at which these weights were saved.

    Raises:
        RunError: where there is no whole checkpoint, or it does not fit the model.
    """
    folder = CheckpointFolder(find_run(run) / CHECKPOINTS)
    variables = {n: variable for n, variable in model.named_variables().items() if names is None or n in names}
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


def fitting_weights(run: str | pathlib.Path, model: Any) -> set[str]:
    """Returns the names of the weights of all layers whose weights a run has in the same shapes.

    A layer fits as a whole or not at all: scales and biases mean nothing beside a kernel that was drawn anew.

    Args:
        run: a run; see `find_run`.
        model: another model, of any config.

    Raises:
        DamagedCheckpointError: where none of its checkpoints can be read.
    """
    folder = CheckpointFolder(find_run(run) / CHECKPOINTS)
    held: dict[str, tuple[int, ...]] = {}
    for kind, step in [(name, number) for name in ("best", "step") for number in folder.steps(name)]:
        with contextlib.suppress(DamagedCheckpointError):
            held = folder.weights(kind, step)
            break
    own = model.named_variables()
    other = {name.rpartition("/")[0] for name, variable in own.items() if held.get(name) != tuple(variable.shape)}
    return {name for name in own if name.rpartition("/")[0] not in other}


def averaged_names(model: Any) -> set[str]:
    """Returns the names of the weights that averaging covers.

    These are all that training moves: the trainable weights and the moving statistics of batch normalisation. The
    statistics are averaged with the weights they belong to.
    """
    return {name for name, variable in model.named_variables().items() if variable.dtype == "float32"}


def write_label_names(run: str | pathlib.Path, names: Sequence[str]) -> None:
    """Keeps the names of the labels in a run folder.

    Raises:
        OSError: where they cannot be written.
    """
    write_json(pathlib.Path(run) / LABELS, list(names))


def read_label_names(run: str | pathlib.Path, classes: int) -> tuple[str, ...]:
    """Returns the names of the labels that a run was trained on; of an import, their numbers.

    Args:
        run: a run; see `find_run`.
        classes: how many labels its model knows.

    Raises:
        RunError: where the file is damaged.
    """
    path = find_run(run) / LABELS
    if not path.is_file():
        return tuple(map(str, range(classes)))
    try:
        names = read_json(path)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {one_line(error)}") from error
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names) and len(names) == classes):
        raise RunError(f"{path} is damaged: it must be a list of {classes} names of labels")
    return tuple(names)


def changed_label(run: str | pathlib.Path, classes: int, names: Sequence[str]) -> tuple[str, str] | None:
    """Returns the first label of a run whose name is another in `names`, by both names; None where there is none.

    The labels of an import have no names.

    Args:
        run: a run; see `find_run`.
        classes: how many labels its model knows.
        names: as many.

    Raises:
        RunError: where the file of the run's is damaged.
    """
    if not (find_run(run) / LABELS).is_file():
        return None
    pairs = zip(read_label_names(run, classes), names, strict=True)
    return next((pair for pair in pairs if pair[0] != pair[1]), None)


def read_summary(run: str | pathlib.Path) -> dict[str, Any] | None:
    """Returns what a run folder says of how its training, or its import, ended; None where it says nothing yet.

    Raises:
        ValueError: where it is damaged.
    """
    path = find_run(run) / SUMMARY
    if not path.is_file():
        return None
    summary = read_json(path)
    if not isinstance(summary, dict) or not ("imported_from" in summary or "test" in summary):
        raise ValueError(f"it has no figures of a test: {json.dumps(summary)[:60]}")
    test = summary.get("test")
    figures = test if isinstance(test, dict) else {}
    # Null stands for a figure that is not finite.
    is_number = isinstance(figures.get("bits_per_dim", ""), int | float | None)
    if test is not None and not (is_number and type(figures.get("images")) is int):
        raise ValueError(f"its figures of a test are none: {json.dumps(test)[:60]}")
    for name in ("imported_from", "data", "reconstruction"):
        if not isinstance(summary.get(name), str | None):
            raise ValueError(f"its {name} is no text: {json.dumps(summary[name])[:60]}")
    return summary


def figures_of_test(summary: Mapping[str, Any], step: int) -> Mapping[str, Any] | None:
    """Returns the figures of the test of a summary, where they are of the weights of a step and finite; else None."""
    test = summary.get("test") if summary.get("best_step") == step else None
    return test if test and test["bits_per_dim"] is not None else None


def unknown_data(config: Config) -> str:
    """Returns what is said of the images of a run that are not known."""
    return f"data unknown ({config.description})" if config.description else "data unknown"


def images_known(summary: Mapping[str, Any] | None, step: int) -> bool:
    """Whether it is known what images weights were trained on.

    It is not of imports, nor of a model that `save_run` was given alone: their configs have the default in its place.

    Args:
        summary: what `read_summary` returns.
        step: in updates, at which the weights were saved.
    """
    said = summary or {}
    return "imported_from" not in said and (step > 0 or said.get("data") is not None)
