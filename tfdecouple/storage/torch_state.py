"""Files of PyTorch, read so that nothing that they hold is run."""

from __future__ import annotations

import importlib.util
import pathlib
import pickle
import re
from typing import Any

from tfdecouple.errors import UserError, one_line

# The first of torch with which weights_only=True keeps a file from running code: CVE-2025-32434.
_SAFE_TORCH = (2, 6)


def require_torch(file_name: str, extra: str, error: type[UserError]) -> None:
    """Refuses to read a file of PyTorch where PyTorch is missing, saying which extra brings it.

    Raises:
        error: of the type that is given.
    """
    if importlib.util.find_spec("torch") is None:
        raise error(f"reading {file_name} needs torch, which is missing: pip install 'tfdecouple[{extra}]'")


def read_torch(path: pathlib.Path, extra: str, error: type[UserError], advice: str = "") -> Any:
    """Reads what `torch.save` wrote of tensors and plain Python values.

    Args:
        path: of the file.
        extra: that brings torch.
        error: type of what is raised.
        advice: on a file that is refused.

    Raises:
        error: where torch is missing or too old, where the file is damaged, or where it holds what would be run.
    """
    require_torch(path.name, extra, error)
    try:
        import torch
    # Whatever an installation that is damaged raises.
    except Exception as fault:
        raise error(f"reading {path.name} needs torch, which cannot be imported: {one_line(fault)}") from fault
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < _SAFE_TORCH:
        raise error(
            f"reading {path.name} needs torch 2.6 or later, and {torch.__version__} is installed, with which such a "
            f"file can run code: pip install -U torch"
        )
    try:
        # Only weights: a pickle could run any code.
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as fault:
        # Torch would advise to run it.
        what = f"torch cannot read {path}: it is damaged, or holds more than tensors, and nothing of that is run"
        raise error(f"{what}; {advice}" if advice else what) from fault
    except Exception as fault:
        raise error(f"torch cannot read {path}: {one_line(fault, first=True)}") from fault
