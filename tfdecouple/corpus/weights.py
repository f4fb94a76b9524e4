"""The weights that a folder of codes keeps: codes are decoded by the very weights that made them, or not at all."""

from __future__ import annotations

import pathlib
from typing import Any

from tfdecouple.config import Config
from tfdecouple.corpus.folder import RUN, CodesFolder
from tfdecouple.corpus.manifest import Manifest
from tfdecouple.errors import RunError, UserError
from tfdecouple.model import DecoupledModel
from tfdecouple.runs import load_config, load_model, load_weights, weights_sha256, write_run


def keep_weights(folder: CodesFolder, model: DecoupledModel, config: Config, step: int) -> None:
    """Writes a run folder with the weights beside the codes.

    Raises:
        UserError: where it cannot be written.
    """
    run = folder.clear_run()
    with folder.writing():
        write_run(run, model, config, step)


def kept_weights(
    folder: CodesFolder, manifest: Manifest, model: DecoupledModel, config: Config, asked: dict[str, Any]
) -> str:
    """Makes a model's weights those that the folder was begun with.

    Args:
        folder: the codes.
        manifest: of the folder.
        model: of the run that is asked for, with its best weights.
        config: of that run.
        asked: what the manifest would say of that model.

    Returns:
        What is to be told, or "".

    Raises:
        UserError: where the run is another, or the kept weights are damaged.
    """
    begun = manifest.model
    if begun["weights_sha256"] == asked["weights_sha256"]:
        return ""
    # A run of that name whose weights are older, or that has another model, is no continuation of the one then.
    trained_on = asked["run"] == begun["run"] and asked["step"] > begun["step"]
    if not trained_on or config.model != _kept_config(folder.path).model:
        raise UserError(
            f"{folder.path} was begun with the weights of update {begun['step']} of the run {begun['run']}, and those "
            f"of update {asked['step']} of {asked['run']} are others; take the old run, or another folder with --out"
        )
    load_weights(folder.path / RUN, model, averaged=False)
    if weights_sha256(model) != begun["weights_sha256"]:
        raise RunError(f"the weights in {folder.path / RUN} were changed; name another folder with --out")
    return (
        f"{begun['run']} has trained on to update {asked['step']}; the codes go on with the weights of update "
        f"{begun['step']}, which they were begun with"
    )


def problem_of_weights(folder: pathlib.Path, manifest: Manifest) -> str | None:
    """Returns why the weights beside codes are not those that made them, None where they are or none are kept."""
    # A pipeline keeps none.
    if "weights_sha256" not in manifest.model:
        return None
    try:
        model = load_model(folder / RUN)
    except UserError as error:
        return f"the weights of these codes cannot be read: {error}"
    same = weights_sha256(model) == manifest.model["weights_sha256"]
    return None if same else f"{folder / RUN} holds other weights than made these codes"


def _kept_config(folder: pathlib.Path) -> Config:
    return load_config(folder / RUN)
