"""Errors and warnings for users: each is a single line with what was wrong, the value and what to do."""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Iterable

# Escape sequences of terminals, such as colours.
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
# The packages between the user's own code and a warning.
_LIBRARIES = {"contextlib", "keras", "tensorflow", "tensorflow_probability", "tfdecouple"}


class UserError(Exception):
    """A mistake that the user can mend; programs print it as one line, without a traceback."""

    # Keras would turn the line into a page with escape codes, and AutoGraph into another; both leave errors with these
    # attributes alone.
    _keras_call_info_injected = True
    ag_pass_through = True


class ConfigError(UserError, ValueError):
    """An unknown option, a value of the wrong type or an impossible combination."""


class DataError(UserError):
    """Images that are missing, unreadable or of the wrong shape."""


class RunError(UserError):
    """A run folder that cannot be opened, continued or written."""


class DivergedError(RunError):
    """Too many steps of training in a row were not applied."""


class UntrustedError(UserError):
    """Untrusted files that would run code, or lead outside the folder that the user named."""


class NotInitializedError(UserError, RuntimeError):
    """A model whose data-dependent initialisation has not been done."""


class InversionError(UserError, ValueError):
    """Images that do not come back from their codes."""


class WolfError(UserError, ValueError):
    """A checkpoint of the paper's code that cannot be imported."""


class ExtractorError(UserError):
    """A feature extractor that cannot be used."""


class ExactnessWarning(UserWarning):
    """Images that may not come back exactly from their codes; no error, since most of them do."""


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the line of the user's own code, past the lines of TensorFlow, Keras and this package.

    Args:
        message: the mistake and its remedy.
        category: the class of the warning.
    """
    frame, level = sys._getframe(0), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def one_line(error: BaseException | str, limit: int = 400, first: bool = False) -> str:
    r"""Returns the text of an exception as a single line; its type where it has no text.

    >>> one_line(ValueError("no \x1b[1msuch\x1b[0m\n  file")), one_line(OSError())
    ('no such file', 'OSError')
    >>> one_line(ValueError("bad\ntraceback"), first=True)
    'bad'

    Args:
        error: the exception, or a text.
        limit: the most characters.
        first: whether the first line is enough: TensorFlow adds lines that only its developers read.
    """
    text = _ESCAPE.sub("", str(error)).strip()
    if first:
        text = text.partition("\n")[0]
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns the hint `"; did you mean X?"` with the name most like `name`, or `""` where no name is like it.

    >>> nearest("cifar", ["cifar10", "mnist"])
    '; did you mean cifar10?'
    """
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""
