"""Import of checkpoints of wolf, the PyTorch code of the paper's authors, which is called the reference here."""

from __future__ import annotations

import pathlib
import pickle
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdecouple.config import Config, DataConfig, TrainingConfig
from tfdecouple.config.shapes import Shape
from tfdecouple.errors import WolfError, one_line
from tfdecouple.interop.wolf_config import translate_config
from tfdecouple.interop.wolf_names import match_weights
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.opened_run import write_run
from tfdecouple.runs.run_folder import SUMMARY
from tfdecouple.runtime.requirements import require
from tfdecouple.storage.files import read_json, write_json

Arrays = Mapping[str, np.ndarray]

_SAVE = "save the model's state dict alone: torch.save(model.state_dict(), FILE)"
# Endings of the names of the reference's caches and counters, which are not imported.
_DERIVED = ("weight_inv", "num_batches_tracked")


def import_wolf(
    config_path: str | pathlib.Path,
    weights_path: str | pathlib.Path,
    *,
    image_shape: Shape,
    n_bits: int = 8,
    workdir: str | pathlib.Path,
) -> DecoupledModel:
    """Returns the model of a checkpoint of the reference, after writing it as a run folder.

    Args:
        config_path: path of the reference's JSON config.
        weights_path: path of the reference's state dict, `.npz` (one array per name) or `.pt` (needs torch).
        image_shape: height, width and channels of the images; the reference's config has no height and width.
        n_bits: bits per colour channel, which the reference's config lacks, too.
        workdir: the run folder to make.

    Raises:
        WolfError: where the config has parts that this project lacks, such as MaCow flows, the weights do not fit the
            config, or the folder is not empty.
        ConfigError: where the folder has a name that no run can have.
    """
    folder = pathlib.Path(workdir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WolfError(f"--workdir {workdir} exists and is not empty; name a new folder")
    try:
        values = read_json(config_path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise WolfError(f"{config_path} cannot be read: {reason}") from error
    model_config = translate_config(values, image_shape=image_shape, n_bits=n_bits)
    # The config is made before the weights are read, so that an impossible name raises its error at once.
    config = Config(
        name=folder.absolute().name,
        description=f"imported from a checkpoint of the reference, {pathlib.Path(weights_path).name}",
        model=model_config,
        data=DataConfig(),
        training=TrainingConfig(init_images=1),
    )
    model = DecoupledModel(model_config)
    assign_weights(model, read_state(weights_path))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / SUMMARY, {"imported_from": pathlib.Path(weights_path).name, "parameters": model.parameter_count()}
    )
    write_run(folder, model, config, 0)
    return model


def read_state(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays in a state dict of the reference, by name.

    Raises:
        WolfError: where the file is missing, damaged or of another kind, torch is too old, or the file holds an object
            that is no tensor or runs code when it is loaded.
        MissingPackageError: where the file needs torch, which is not installed.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise WolfError(f"there is no file {path}")
    if path.suffix == ".npz":
        try:
            loaded = np.load(path, allow_pickle=False)
            if not isinstance(loaded, np.ndarray):
                with loaded:
                    return {name: loaded[name] for name in loaded.files}
        # Every exception is caught, because NumPy raises many kinds for damaged archives: zlib.error, BadZipFile ...
        except Exception as error:
            raise WolfError(f"{path} is no readable .npz file: {one_line(error)}") from error
        raise WolfError(f"{path} is a single array without a name, as .npy files are; save it with np.savez")
    if path.suffix not in (".pt", ".pth"):
        raise WolfError(f"{path} is neither .npz nor .pt; these two can be read")
    state = _load_torch_file(path)
    if isinstance(state, Mapping):
        state = state.get("core", state)
    if not isinstance(state, Mapping):
        raise WolfError(f"{path} is of type {type(state).__name__}, no mapping of names to tensors; {_SAVE}")
    import torch

    arrays = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise WolfError(f"{path} holds {name!r}, of type {type(tensor).__name__}, which is no tensor; {_SAVE}")
        # bfloat16 is converted to float32, because NumPy has no bfloat16.
        tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        arrays[name.removeprefix("module.")] = tensor.detach().numpy()
    return arrays


def _load_torch_file(path: pathlib.Path) -> Any:
    """Returns the tensors and plain Python values in a file of `torch.save`; no code in the file is run."""
    require("torch", what=f"reading {path.name}")
    import torch

    # Earlier versions are refused because they can run code of a file in spite of weights_only=True: CVE-2025-32434.
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < (2, 6):
        raise WolfError(
            f"reading {path.name} needs torch 2.6 or later, and {torch.__version__} is installed, with which such a "
            f"file can run code: pip install -U torch"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The message of torch is replaced because it advises to run the code.
        raise WolfError(
            f"torch cannot read {path}: it is damaged, or holds more than tensors, and nothing of that is run; {_SAVE}"
        ) from error
    except Exception as error:
        raise WolfError(f"torch cannot read {path}: {one_line(error, first=True)}") from error


def assign_weights(model: DecoupledModel, state: Arrays) -> None:
    """Copies the weights of the reference into a model and marks the model as initialised.

    Raises:
        WolfError: where a weight is missing, superfluous or of another shape; the message names the weight.
    """
    variables = model.named_variables()
    left = {name for name in state if not name.endswith(_DERIVED)}
    for theirs, ours, convert in match_weights(model):
        if theirs not in state:
            raise WolfError(f"the weights lack {theirs}, which the config asks for")
        variable = variables.pop(ours)
        try:
            value = convert(np.asarray(state[theirs]))
        except ValueError:
            value = None  # The conversion fails for a weight of another rank or size, which is reported below.
        if value is None or value.shape != tuple(variable.shape):
            raise WolfError(f"{theirs} has the shape {state[theirs].shape}, which does not fit the config")
        variable.assign(value)
        left.discard(theirs)
    if left:
        raise WolfError(f"the weights hold {sorted(left)[0]}, which has no place in this model ({len(left)} in all)")
    variables.pop("initialized").assign(True)
    assert not variables, f"weights without a source: {sorted(variables)}"
