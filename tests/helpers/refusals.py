"""What must be refused in one line: programs, configs, and calls of the library."""

from __future__ import annotations

import pytest

from tfdecouple.errors import ConfigError


def refused(capsys, call, *, begun=False) -> str:
    """Runs a program that must end with status 2 and one line on standard error, and returns the line.

    Args:
        capsys: pytest's.
        call: runs it.
        begun: whether it may have said on standard output what it was about to do.
    """
    assert call() == 2
    out, err = capsys.readouterr()
    assert begun or out == ""
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert err.rstrip("\n").isprintable() and len(err) < 1000 and "Traceback" not in err, err
    return err


def message_of(error, call) -> str:
    """The message of an error that a call must raise, in one line."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 1000
    return message


def refusal(call) -> str:
    """The message of the ConfigError that a call must raise."""
    return message_of(ConfigError, call)
