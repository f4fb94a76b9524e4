"""Pages whose every sentence has a test: the sentences of a page, and the mark on the tests that hold them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from helpers.documents import split_code

_SAYS: dict[str, list[str]] = {}


def says(*texts: str) -> Callable[[Any], Any]:
    """Marks a test with the sentences of a page that it holds, as they stand there but for line breaks."""

    def mark(test: Any) -> Any:
        for text in texts:
            _SAYS.setdefault(text, []).append(test.__name__)
        return test

    return mark


def held() -> set[str]:
    """The sentences that marked tests hold, of all test modules that were imported."""
    return set(_SAYS)


def sentences(text: str) -> list[str]:
    """The sentences of a page, without headings and blocks of code."""
    prose = split_code(text)[1]
    paragraphs = re.split(r"\n\s*\n", "\n".join("" if line.startswith("#") else line for line in prose.splitlines()))
    joined = [" ".join(paragraph.split()) for paragraph in paragraphs]
    # A sentence ends before a capital, or what stands in the place of one.
    return [each for paragraph in joined if paragraph for each in re.split(r"(?<=\.)\s+(?=[A-Z`])", paragraph)]
