"""Commands that must be refused in one line."""

from __future__ import annotations


def refused(capsys, call):
    """Runs a command that must end with status 2 and one line on standard error, and returns the line."""
    assert call() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    assert "Traceback" not in err
    return err
