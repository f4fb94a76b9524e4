"""What makes a site of the documentation: pages from outside docs/, the tour from its notebook, the API, links.

MkDocs calls the functions named on_*; mkdocs.yml names this file.
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
# Pages that lie elsewhere in the repository, by their place there.
ELSEWHERE = {
    "README.md": "index.md",
    "SECURITY.md": "security_policy.md",
    "examples/tour.ipynb": "tour.md",
    **{
        path.relative_to(ROOT).as_posix(): f"examples/{path.parent.name}.md"
        for path in ROOT.glob("examples/*/README.md")
    },
}
# Packages below tfdecouple whose names are public; each states them in its `__all__`.
PUBLIC = ("config", "data", "layers", "bijectors", "training", "metrics", "corpus")
# Networks have no list of their own: these are what a model is made of.
NETWORKS = (
    "tfdecouple.networks.flow.Flow",
    "tfdecouple.networks.encoder.Encoder",
    "tfdecouple.networks.prior.PriorFlow",
    "tfdecouple.networks.dequantizer.Dequantizer",
)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\](?:\([^)]*\))?)*)\]\(([^)\s]+)\)")
_LOG = logging.getLogger("mkdocs.plugins.tfdecouple")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that lie elsewhere, the tour with its pictures, and those of the API."""
    made = {place: (ROOT / source).read_text(encoding="utf-8") for source, place in ELSEWHERE.items()}
    made["tour.md"], pictures = tour(json.loads(made["tour.md"]))
    for place, content in {**made, **dict(api()), **pictures}.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turns links within the repository into links within the site.

    What is in the repository and not in the site becomes plain text; what is in neither is a warning.
    """
    places = {place: source for source, place in ELSEWHERE.items()}
    own = places.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def rewritten(match: re.Match) -> str:
        mark, text, target = match.groups()
        # A picture that is a link.
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
    """Makes blocks of code of the examples in docstrings."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes the docstring of each object."""
        if obj.docstring is not None:
            example = re.compile(r"^>>> .*(?:\n(?! *$).*)*", re.M)
            obj.docstring.value = example.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)


def _outside_of_code(markdown: str, change: Any) -> str:
    """Applies a function to what lies between fenced blocks."""
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.M | re.S)
    return "".join(part if index % 2 else change(part) for index, part in enumerate(parts))


def tour(notebook: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """Returns a notebook as Markdown, and its pictures by their places in the site."""
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
            said = "".join(output.get("text", data.get("text/plain", "")))
            if "image/png" in data:
                place = f"tour/{len(pictures)}.png"
                pictures[place] = base64.b64decode("".join(data["image/png"]))
                # What it shows is said in the text above.
                lines += [f"![What the cell above draws]({place})", ""]
            elif said:
                lines += ["```text", said.rstrip(), "```", ""]
    return "\n".join(lines), pictures


def public_names() -> dict[str, list[str]]:
    """Returns the public names of the project, in full, by the page of the API that has them."""
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
    """Yields the pages of the API: their places, and their text."""
    for page, names in public_names().items():
        package = ROOT / "tfdecouple" / ("" if page == "tfdecouple" else page) / "__init__.py"
        about = ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))) or ""
        title = page if page == "tfdecouple" else f"tfdecouple.{page}"
        # Of the docstring what stands before its examples.
        lines = [f"# {title}", "", about.split("\n>>>")[0], ""]
        for name in names:
            lines += [f"::: {name}", ""]
        yield f"api/{page}.md", "\n".join(lines)
