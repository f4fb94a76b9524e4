"""Functions that assert that a program or call fails with an error message of one line, and return the message."""

from __future__ import annotations

import pytest

from tfdecouple.errors import ConfigError


def refused(capsys, call, *, begun=False) -> str:
    """Returns the one line that a program prints on standard error, and asserts that it ends with status 2.

    Args:
        capsys: pytest's fixture `capsys`.
        call: function that runs the program and returns its status.
        begun: whether the program may print on standard output before it fails.
    """
    assert call() == 2
    out, err = capsys.readouterr()
    assert begun or out == ""
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert err.rstrip("\n").isprintable() and len(err) < 1000 and "Traceback" not in err, err
    return err


def message_of(error, call) -> str:
    """Returns the message of the error that a call must raise, and asserts that it is one line."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 1000
    return message


def refusal(call) -> str:
    """Returns the message of the ConfigError that a call must raise, and asserts that it is one line."""
    return message_of(ConfigError, call)
