"""Functions that assert that a program or a function fails with a message of one line, and return the message."""

import pytest

from tfdecouple.errors import ConfigError


def refused(capsys, call, *, begun=False, status=2) -> str:
    """Asserts that `call()`, a program, returns `status` and prints one line "error: ..."; returns the line.

    Nothing is allowed on standard output, unless the program had `begun`.
    """
    assert call() == status
    out, err = capsys.readouterr()
    assert begun or out == ""
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert err.rstrip("\n").isprintable() and len(err) < 1000 and "Traceback" not in err, err
    return err


def message_of(error, call) -> str:
    """Asserts that `call()` raises the exception class `error` with a message of one line; returns the message."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 1000
    return message


def refusal(call) -> str:
    """Asserts that `call()` raises ConfigError with a message of one line; returns the message."""
    return message_of(ConfigError, call)
