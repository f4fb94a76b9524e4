"""Commands and configs that must be refused in one line."""

from __future__ import annotations

import pytest

from tfdecouple.errors import ConfigError


def refused(capsys, call):
    """Runs a command that must end with status 2 and one line on standard error, and returns the line."""
    assert call() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    assert "Traceback" not in err
    return err


def refusal(call):
    """The message of the ConfigError that `call` raises; it is one line."""
    with pytest.raises(ConfigError) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message
    return message
