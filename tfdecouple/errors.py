"""Errors and warnings for users. Each message is one line, with the mistake, the wrong value and the remedy."""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Iterable

# Pattern of the escape sequences of terminals, such as colours, which `one_line` removes from messages.
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
# Packages whose stack frames `warn_user` skips to find the line of the user's code for a warning.
_LIBRARIES = {"contextlib", "keras", "tensorflow", "tensorflow_probability", "tfdecouple"}


class UserError(Exception):
    """The error for a mistake that the user can correct; programs print it as one line, without a traceback."""

    # Keras and AutoGraph replace the messages of errors by long texts, unless the errors have these attributes.
    _keras_call_info_injected = True
    ag_pass_through = True


class ConfigError(UserError, ValueError):
    """The error for a config with an unknown option, a value of a wrong type, or options that contradict each other."""


class DataError(UserError):
    """The error for images or labels that are missing, unreadable or of the wrong type or shape."""


class RunError(UserError):
    """The error for a run folder that cannot be opened, resumed or written."""


class DivergedError(RunError):
    """The error that ends training after `training.max_skipped_steps` skipped steps in a row."""


class UntrustedError(UserError):
    """The error for untrusted files that would run code, or link to files outside the folder that the user named."""


class NotInitializedError(UserError, RuntimeError):
    """The error for the use of a model that has neither run data-dependent initialisation nor loaded weights."""


class InversionError(UserError, ValueError):
    """The error for images that their codes z and v do not reproduce exactly, or whose codes are not finite."""


class WolfError(UserError, ValueError):
    """The error for a checkpoint of wolf, the authors' PyTorch code, that cannot be imported."""


class ExtractorError(UserError):
    """The error for an unusable feature extractor, the network whose features the Frechet distance compares."""


class ExactnessWarning(UserWarning):
    """The warning that some images are possibly not recovered exactly from their codes z and v."""


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Issues a warning located at a line of the user's code, not at one of TensorFlow, Keras or tfdecouple."""
    frame, level = sys._getframe(0), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def one_line(error: BaseException | str, limit: int = 400, first: bool = False) -> str:
    r"""Returns an error's message as one line of at most `limit` characters; the error's type if the message is empty.

    With `first`, all lines of the message except the first are left out: TensorFlow adds lines for its developers.

    >>> one_line(ValueError("no \x1b[1msuch\x1b[0m\n  file")), one_line(OSError())
    ('no such file', 'OSError')
    """
    text = _ESCAPE.sub("", str(error)).strip()
    if first:
        text = text.partition("\n")[0]
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns the text "; did you mean X?" with the name that is most similar to `name`; "" if none is similar.

    >>> nearest("cifar", ["cifar10", "mnist"])
    '; did you mean cifar10?'
    """
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""
