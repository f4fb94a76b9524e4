"""Exceptions and warnings for users. Each message is one line that names the mistake, the wrong value and a remedy."""

import difflib
import re
import sys
import warnings
from collections.abc import Iterable

# Escape sequences of terminals, such as colours, match this pattern; `one_line` removes them from messages.
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
# Names of TensorFlow's operations in the first line of its messages, which `one_line` removes, too.
_OPERATION = re.compile(r"^\{\{.*?\}\} | \[Op:\w+\].*")
# `warn_user` skips stack frames of these packages, to find the line of the user's code that caused a warning.
_LIBRARIES = {"contextlib", "keras", "tensorflow", "tensorflow_probability", "tfdecouple"}
# Exit status of a program whose check fails: of the machine, of exported files or of codes.
EXIT_FAILED = 5


class UserError(Exception):
    """The base class of errors that a user can correct; programs print them as one line, without a traceback.

    Messages can contain names from untrusted files, so `make_printable` removes unprintable characters.

    Attributes:
        status: exit status of a program that ends with the error (docs/troubleshooting.md).
        prefix: text before the message.
    """

    status, prefix = 2, "error: "
    # Without these attributes, Keras and AutoGraph would replace the error's message by a long text.
    _keras_call_info_injected = True
    ag_pass_through = True

    def __init__(self, message: object = "") -> None:
        super().__init__(make_printable(str(message)))


class ConfigError(UserError, ValueError):
    """The error for a config with an unknown option, a value of a wrong type, or options that contradict each other."""


class DataError(UserError):
    """The error for images or labels that are missing, unreadable or of the wrong type or shape."""


class RunError(UserError):
    """The error for a run folder that cannot be opened, resumed or written."""


class DivergedError(RunError):
    """The error that ends training after `training.max_skipped_steps` steps in a row without an update of weights."""

    status = 3


class UntrustedError(UserError):
    """The error for a file from an untrusted source that would run code, or links to a file outside its folder."""


class NotInitializedError(UserError, RuntimeError):
    """The error for the use of a model without weights: none were loaded, and no images have initialised the model."""


class UnsupportedError(UserError, NotImplementedError):
    """The error for a method of Keras that the model and its layers cannot have, such as `quantize`."""


class InversionError(UserError, ValueError):
    """The error if decoding z and v does not give exactly the encoded images, or if codes or images are not finite."""


class WolfError(UserError, ValueError):
    """The error for a checkpoint of wolf, the authors' PyTorch code, that cannot be imported."""


class ExactnessWarning(UserWarning):
    """The warning that decoding the codes z and v possibly does not give exactly the encoded images."""


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Issues a warning that points to the line of the user's code, not to a line of Keras, TensorFlow or tfdecouple."""
    frame, level = sys._getframe(0), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def make_printable(text: str, limit: int = 2000) -> str:
    r"""Returns `text` as one line of at most `limit` characters, with escapes for characters that cannot be printed.

    >>> make_printable("a name\n with \x1b[2J")
    'a name with \\x1b[2J'
    """
    line = " ".join(text[: 2 * limit].split())
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
    return line if len(line) <= limit and len(text) <= 2 * limit else line[: limit - 3] + "..."


def one_line(error: BaseException | str, limit: int = 400, first: bool = False) -> str:
    r"""Returns an error's message as one line of at most `limit` characters, or the error's type for an empty message.

    If `first` is true, only the first line of the message counts: TensorFlow adds further lines for its developers, and
    names of operations, which are left out.

    >>> one_line(ValueError("no \x1b[1msuch\x1b[0m\n  file")), one_line(OSError())
    ('no such file', 'OSError')
    """
    text = _ESCAPE.sub("", str(error)).strip()
    if first:
        text = _OPERATION.sub("", text.partition("\n")[0])
    return make_printable(text, limit) or type(error).__name__


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns "; did you mean X?", where X is the one of `names` most similar to `name`, or "" if none is similar.

    >>> nearest("cifar", ["cifar10", "mnist"])
    '; did you mean cifar10?'
    """
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""
