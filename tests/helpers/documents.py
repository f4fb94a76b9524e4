"""Functions that read code blocks, inline code, links and headings from the project's Markdown files."""

from __future__ import annotations

import dataclasses
import re

from helpers.places import ROOT

# The project's documentation; model cards are left out, because their commands run in an export folder.
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/*/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "MODEL_CARD.md" and "node_modules" not in path.parts
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code in a Markdown document.

    Attributes:
        language: the word after the fence, or "" for an indented block.
        text: the lines of the block without its indentation.
        line: the number of the first line in the document, from 1.
    """

    language: str
    text: str
    line: int


def split_code(text: str) -> tuple[list[Block], str]:
    """Returns the code blocks of a document, and the document with empty lines instead of the blocks."""
    blocks: list[Block] = []
    kept: list[str] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        fence = re.match(r"(`{3,}|~{3,})\s*([\w+-]*)", line)
        if fence:
            end = next(n for n in range(number + 1, len(lines) + 1) if lines[n].startswith(fence[1]))
            blocks.append(Block(fence[2], "\n".join(lines[number + 1 : end]), number + 2))
            kept += [""] * (end + 1 - number)
            number = end + 1
        elif line.startswith("    ") and (number == 0 or not lines[number - 1].strip()) and not _in_list(kept):
            end = number
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            blocks.append(Block("", "\n".join(each[4:] for each in lines[number:end]).rstrip(), number + 1))
            kept += [""] * (end - number)
            number = end
        else:
            kept.append(line)
            number += 1
    return blocks, "\n".join(kept)


def _in_list(lines: list[str]) -> bool:
    """Returns whether an indented line after these lines continues an item of a list."""
    last = next((line for line in reversed(lines) if line.strip()), "")
    return bool(re.match(r"\s*([-*]|\d+\.) |  ", last))


def inline_code(text: str) -> list[str]:
    """Returns the pieces of code between backquotes in the text of a document."""
    found = re.findall(r"(?<!`)`([^`]+)`(?!`)", split_code(text)[1])
    return [" ".join(code.split()) for code in found]


def links(text: str) -> list[str]:
    """Returns the targets of the links and pictures of a document, in Markdown and in HTML."""
    prose = re.sub(r"(?<!`)`[^`]+`(?!`)", "`code`", split_code(text)[1])
    return re.findall(r"\]\(<?([^)\s>]+)>?[^)]*\)", prose) + re.findall(r"(?:href|src)=\"([^\"]+)\"", prose)


def anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub gives the headings of a document."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?)\s*#*$", split_code(text)[1], re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        repeated = next(n for n in range(1000) if (f"{anchor}-{n}" if n else anchor) not in found)
        found.add(f"{anchor}-{repeated}" if repeated else anchor)
    return found


def command_lines(block: str) -> list[str]:
    """Returns the commands in a code block, with continued lines joined and explanations after wide gaps removed."""
    joined: list[str] = []
    goes_on = False
    for line in block.splitlines():
        if joined and (goes_on or re.match(r"\s+(\[?-|\|)", line)):
            joined[-1] += " " + line.strip()
        elif line.strip():
            joined.append(line.rstrip())
        goes_on = line.rstrip().endswith(("\\", "|"))
        if joined:
            joined[-1] = joined[-1].removesuffix("\\").rstrip()
    return [re.sub(r"\s{3,}(#|[A-Za-z]).*$", "", line) for line in joined]
