"""Errors and warnings for users. Each message is one line that names the mistake, the value and the remedy."""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Iterable

# Pattern of the escape sequences of terminals, such as colours, which `one_line` removes from messages.
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
# Names of packages whose lines `warn_user` never names as the place of a warning.
_LIBRARIES = {"contextlib", "keras", "tensorflow", "tensorflow_probability", "tfdecouple"}


class UserError(Exception):
    """The error for a mistake that the user can correct; programs print it as one line, without a traceback."""

    # Keras and AutoGraph replace the messages of errors by long texts, unless the errors have these attributes.
    _keras_call_info_injected = True
    ag_pass_through = True


class ConfigError(UserError, ValueError):
    """The error for an unknown option of a config, a value of the wrong type or an impossible combination."""


class DataError(UserError):
    """The error for images or labels that are missing, unreadable or of the wrong type or shape."""


class RunError(UserError):
    """The error for a run folder that cannot be opened, resumed or written."""


class DivergedError(RunError):
    """The error after too many training steps in a row that were not applied."""


class UntrustedError(UserError):
    """The error for untrusted files that would run code, or link to files outside the folder that the user named."""


class NotInitializedError(UserError, RuntimeError):
    """The error for a model without data-dependent initialisation or loaded weights."""


class InversionError(UserError, ValueError):
    """The error for images that cannot be recovered exactly from their codes, or whose codes are not finite."""


class WolfError(UserError, ValueError):
    """The error for a checkpoint of the paper's code that cannot be imported."""


class ExtractorError(UserError):
    """The error for a feature extractor (for the FID) that cannot be used."""


class ExactnessWarning(UserWarning):
    """The warning that some images are possibly not recovered exactly from their codes."""


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Issues a warning that points at the line of the user's own code, not at TensorFlow, Keras or this package."""
    frame, level = sys._getframe(0), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def one_line(error: BaseException | str, limit: int = 400, first: bool = False) -> str:
    r"""Returns the message of an error as one line of at most `limit` characters; the error's type if it has none.

    With `first` only the first line of the message is used, because TensorFlow adds lines for its developers.

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
