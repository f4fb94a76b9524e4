"""Hooks of MkDocs that add pages from outside docs/, the notebooks and the API to the site, and rewrite links.

The start page is README.md with the table of wishes of docs/understanding.md.

mkdocs.yml names this file; MkDocs calls the functions whose names begin with `on_`.
"""

from __future__ import annotations

import ast
import base64
import json
import logging
import pathlib
import posixpath
import re
from collections.abc import Callable, Iterator
from typing import Any

import griffe
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent
# {path in the repository: path in the site} of the pages whose files are not in docs/.
SITE_PATHS = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security_policy.md",
    **{f"examples/{path.name}": f"{path.stem}.md" for path in sorted(ROOT.glob("examples/*.ipynb"))},
}
# The packages and modules below tfdecouple that get a page in the site's API, with the names in their `__all__`.
PUBLIC_PACKAGES = ("config", "layers", "bijectors", "training", "corpus")
# The names on the API's pages of packages that have no `__all__`, because their names are imported from their modules.
MODULE_NAMES = {
    "data": (
        "sources.open_source",
        "sources.choose_user_crop",
        "sources.Source",
        "batches.make_training_batches",
        "batches.make_evaluation_batches",
        "batches.load_images",
        "batches.read_chosen_batches",
        "batches.slice_for_replicas",
        "batches.count_epoch_steps",
    ),
    "networks": ("flow.Flow", "encoder.Encoder", "prior.PriorFlow", "dequantizer.Dequantizer"),
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\](?:\([^)]*\))?)*)\]\(([^)\s]+)\)")
_LOG = logging.getLogger("mkdocs.plugins.tfdecouple")


def on_files(files: Any, config: Any) -> Any:
    """Adds pages from outside docs/, pictures of notebooks and pages of the API to MkDocs' `files`; returns these."""
    pages = {path: (ROOT / source).read_text(encoding="utf-8") for source, path in SITE_PATHS.items()}
    pages["index.md"] = add_wishes(pages["index.md"])
    pictures: dict[str, bytes] = {}
    for source, path in SITE_PATHS.items():
        if source.endswith(".ipynb"):
            pages[path], drawn = convert_notebook(json.loads(pages[path]), path.removesuffix(".md"))
            pictures |= drawn
    for path, content in {**pages, **dict(make_api_pages()), **pictures}.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Returns the Markdown of a page with its links to files of the repository replaced by links to pages of the site.

    A link to a file that is not in the site becomes plain text, with a warning if the repository lacks the file, too.
    """
    sources = {path: source for source, path in SITE_PATHS.items()}
    own_source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def rewrite_link(match: re.Match) -> str:
        mark, text, target = match.groups()
        # The text of a link can contain a picture, whose path needs rewriting, too.
        text = _LINK.sub(rewrite_link, text)
        if re.match(r"[a-z]+:|#", target) or own_source.endswith(".ipynb") and files.get_file_from_path(target):
            return f"{mark}[{text}]({target})"
        path, hash_, anchor = target.partition("#")
        source = posixpath.normpath(posixpath.join(posixpath.dirname(own_source), path))
        default_path = source.removeprefix("docs/") if source.startswith("docs/") else None
        site_path = SITE_PATHS.get(source, default_path)
        file = None if site_path is None else files.get_file_from_path(site_path)
        if site_path is None or file is None or file.inclusion.is_excluded():
            if not (ROOT / source).exists():
                _LOG.warning("%s links to %s, which is not in the repository", own_source, target)
            return text
        relative = posixpath.relpath(site_path, posixpath.dirname(page.file.src_uri) or ".")
        return f"{mark}[{text}]({relative}{hash_}{anchor})"

    return _change_outside_code(markdown, lambda text: _LINK.sub(rewrite_link, text))


class Doctests(griffe.Extension):
    """An extension of griffe, which reads docstrings for the site, that turns the examples in them into code blocks."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Puts the examples (lines from `>>>` on) in the docstring of `obj` between the fences of a code block."""
        if obj.docstring is not None:
            example = re.compile(r"^>>> .*(?:\n(?! *$).*)*", re.M)
            obj.docstring.value = example.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)


def _change_outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Applies the function `change` to all parts of a Markdown text outside code blocks; returns the new text."""
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.M | re.S)
    return "".join(part if index % 2 else change(part) for index, part in enumerate(parts))


def add_wishes(readme: str) -> str:
    """Returns the README with the table "I want to ..." of docs/understanding.md before its first heading."""
    page = (ROOT / "docs" / "understanding.md").read_text(encoding="utf-8")
    table = page.partition("<!-- wishes -->")[2].partition("<!-- end wishes -->")[0]
    # Links of the table are relative to docs/understanding.md, and those of the README to its own folder.
    table = table.replace("](#", "](understanding.md#").replace("](", "](docs/")
    introduction, heading, rest = readme.partition("\n## ")
    return f"{introduction}\n{table}{heading}{rest}"


def convert_notebook(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """Converts a Jupyter notebook (a dict) with its outputs to Markdown and {path in the site: bytes of a PNG file}.

    The pictures are in the folder `name` of the site.
    """
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
                path = f"{name}/{len(pictures)}.png"
                pictures[path] = base64.b64decode("".join(data["image/png"]))
                lines += [f"![The picture that the cell above draws]({path})", ""]
            elif printed:
                lines += ["```text", printed.rstrip(), "```", ""]
    return "\n".join(lines), pictures


def list_public_names() -> dict[str, list[str]]:
    """Returns {name of an API page: full names of the public classes and functions that the page documents}."""
    pages = {"tfdecouple": [f"tfdecouple.{name}" for name in _read_all("tfdecouple")]}
    for package in PUBLIC_PACKAGES:
        pages[package] = [f"tfdecouple.{package}.{name}" for name in _read_all(f"tfdecouple/{package}")]
    pages |= {package: [f"tfdecouple.{package}.{name}" for name in names] for package, names in MODULE_NAMES.items()}
    return pages


def _read_all(folder: str) -> list[str]:
    """Returns the names in the `__all__` of a package or module, read from its source without importing it."""
    module = _parse_source(folder)
    (value,) = (
        node.value
        for node in module.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__"
    )
    return ast.literal_eval(value)


def _parse_source(folder: str) -> ast.Module:
    path = ROOT / folder / "__init__.py"
    return ast.parse((path if path.exists() else ROOT / f"{folder}.py").read_text(encoding="utf-8"))


def make_api_pages() -> Iterator[tuple[str, str]]:
    """Yields (path in the site, Markdown) of each page of the API."""
    for page, names in list_public_names().items():
        title = page if page == "tfdecouple" else f"tfdecouple.{page}"
        about = ast.get_docstring(_parse_source(title.replace(".", "/"))) or ""
        description = about.split("\n>>>")[0]
        lines = [f"# {title}", "", description, ""]
        for name in names:
            lines += [f"::: {name}", ""]
        yield f"api/{page}.md", "\n".join(lines)
