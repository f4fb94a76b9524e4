"""A hook of MkDocs that adds pages from outside docs/, the tour notebook and the API, and rewrites links.

MkDocs calls the functions named on_*. mkdocs.yml names this file.
"""

from __future__ import annotations

import ast
import base64
import json
import logging
import pathlib
import posixpath
import re
from collections.abc import Iterator
from typing import Any

import griffe
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Pages from outside docs/: their path in the repository, and their path in the site.
ELSEWHERE = {
    "README.md": "index.md",
    "SECURITY.md": "security_policy.md",
    "examples/tour.ipynb": "tour.md",
    **{
        path.relative_to(ROOT).as_posix(): f"examples/{path.parent.name}.md"
        for path in ROOT.glob("examples/*/README.md")
    },
}
# Packages below tfdecouple whose `__all__` is public.
PUBLIC = ("config", "data", "layers", "bijectors", "training", "corpus")
# The networks have no `__all__`; these are the parts of a model.
NETWORKS = (
    "tfdecouple.networks.flow.Flow",
    "tfdecouple.networks.encoder.Encoder",
    "tfdecouple.networks.prior.PriorFlow",
    "tfdecouple.networks.dequantizer.Dequantizer",
)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\](?:\([^)]*\))?)*)\]\(([^)\s]+)\)")
_LOG = logging.getLogger("mkdocs.plugins.tfdecouple")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages from outside docs/, the tour with its pictures, and the pages of the API."""
    made = {place: (ROOT / source).read_text(encoding="utf-8") for source, place in ELSEWHERE.items()}
    made["tour.md"], pictures = tour(json.loads(made["tour.md"]))
    for place, content in {**made, **dict(api()), **pictures}.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turns links within the repository into links within the site.

    A link to a file outside the site becomes plain text, and a link to a missing file is a warning.
    """
    places = {place: source for source, place in ELSEWHERE.items()}
    own = places.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def rewritten(match: re.Match) -> str:
        mark, text, target = match.groups()
        # The text may be a picture with a link of its own.
        text = _LINK.sub(rewritten, text)
        if re.match(r"[a-z]+:|#", target) or page.file.src_uri == "tour.md" and target.startswith("tour/"):
            return f"{mark}[{text}]({target})"
        path, hash_, anchor = target.partition("#")
        source = posixpath.normpath(posixpath.join(posixpath.dirname(own), path))
        place = ELSEWHERE.get(source, source.removeprefix("docs/") if source.startswith("docs/") else None)
        there = None if place is None else files.get_file_from_path(place)
        if place is None or there is None or there.inclusion.is_excluded():
            if not (ROOT / source).exists():
                _LOG.warning("%s links to %s, which is not in the repository", own, target)
            return text
        relative = posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")
        return f"{mark}[{text}]({relative}{hash_}{anchor})"

    return _outside_of_code(markdown, lambda text: _LINK.sub(rewritten, text))


class Doctests(griffe.Extension):
    """Turns the examples of docstrings into blocks of code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of an object."""
        if obj.docstring is not None:
            example = re.compile(r"^>>> .*(?:\n(?! *$).*)*", re.M)
            obj.docstring.value = example.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)


def _outside_of_code(markdown: str, change: Any) -> str:
    """Applies a function to the text between fenced blocks."""
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.M | re.S)
    return "".join(part if index % 2 else change(part) for index, part in enumerate(parts))


def tour(notebook: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """Returns a notebook as Markdown, and its pictures by their paths in the site."""
    lines: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [text, ""]
            continue
        lines += ["```python", text, "```", ""]
        for output in cell["outputs"]:
            if output.get("name") == "stderr":
                continue
            data = output.get("data", {})
            printed = "".join(output.get("text", data.get("text/plain", "")))
            if "image/png" in data:
                place = f"tour/{len(pictures)}.png"
                pictures[place] = base64.b64decode("".join(data["image/png"]))
                lines += [f"![The picture that the cell above draws]({place})", ""]
            elif printed:
                lines += ["```text", printed.rstrip(), "```", ""]
    return "\n".join(lines), pictures


def public_names() -> dict[str, list[str]]:
    """Returns the full public names of the project, by page of the API."""
    pages = {"tfdecouple": [f"tfdecouple.{name}" for name in _all("tfdecouple")]}
    for package in PUBLIC:
        pages[package] = [f"tfdecouple.{package}.{name}" for name in _all(f"tfdecouple/{package}")]
    pages["networks"] = list(NETWORKS)
    return pages


def _all(folder: str) -> list[str]:
    """Returns `__all__` of a package, without importing it."""
    module = ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8"))
    (stated,) = (
        node.value
        for node in module.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__"
    )
    return ast.literal_eval(stated)


def api() -> Iterator[tuple[str, str]]:
    """Yields the path and the text of each page of the API."""
    for page, names in public_names().items():
        package = ROOT / "tfdecouple" / ("" if page == "tfdecouple" else page) / "__init__.py"
        about = ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))) or ""
        title = page if page == "tfdecouple" else f"tfdecouple.{page}"
        # The docstring without its examples.
        lines = [f"# {title}", "", about.split("\n>>>")[0], ""]
        for name in names:
            lines += [f"::: {name}", ""]
        yield f"api/{page}.md", "\n".join(lines)
