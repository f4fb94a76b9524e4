"""Helpers for error messages of one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def one_line(error: BaseException, limit: int = 400) -> str:
    """Returns an exception's text on a single line of at most `limit` characters; its type where it has no text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns the hint `"; did you mean X?"` with the name most like `name`, or `""` where none is like it."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""
