"""The site is built without a warning, has every public name, and its links lead somewhere."""

from __future__ import annotations

import html.parser
import importlib
import importlib.util
import pathlib
import subprocess
import sys
import urllib.parse

import pytest
from helpers.places import ROOT, user_environment

import tfdecouple

EXTERNAL = ("http:", "https:", "mailto:", "data:")
# Kinds of `<link>` that a browser fetches with the page.
FETCHED = {"stylesheet", "icon", "preload", "modulepreload", "preconnect"}


class Page(html.parser.HTMLParser):
    """The anchors of a page, its links, and the addresses that a browser fetches with it."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.targets, self.fetched = {""}, [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        """Notes them."""
        found = dict(attributes)
        self.anchors.add(found.get("id") or found.get("name") or "")
        for name in ("href", "src"):
            if found.get(name):
                self.targets.append(found[name])
        is_fetched = tag == "link" and FETCHED & set((found.get("rel") or "").lower().split())
        self.fetched += [found[name] for name in ("src", *(["href"] if is_fetched else [])) if found.get(name)]

    def from_elsewhere(self):
        """The fetched addresses that lie on another server."""
        return [address for address in self.fetched if address.strip().lower().startswith(("http", "//"))]


@pytest.fixture(scope="module")
def hook():
    """The module that makes the pages."""
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("site_hook", ROOT / ".ci" / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(hook, tmp_path_factory):
    """The pages of the site by their paths."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=user_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html") if path.name != "404.html"}
    return folder, pages


def test_the_api_has_all_public_names(hook):
    found = hook.public_names()
    assert found["tfdecouple"] == [f"tfdecouple.{name}" for name in tfdecouple.__all__]
    for package in hook.PUBLIC:
        names = importlib.import_module(f"tfdecouple.{package}").__all__
        assert found[package] == [f"tfdecouple.{package}.{name}" for name in names]
    # The names of these packages are not for users.
    others = {path.parent.name for path in (ROOT / "tfdecouple").glob("*/__init__.py") if "__all__" in path.read_text()}
    assert others - set(hook.PUBLIC) == {"cli", "model"}
    for name in hook.NETWORKS:
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last)


@pytest.mark.slow
class TestSite:
    def test_has_every_public_name(self, hook, site):
        folder, pages = site
        for page, names in hook.public_names().items():
            anchors = pages[folder / "api" / page / "index.html"].anchors
            assert set(names) <= anchors, page

    def test_links_lead_somewhere(self, site):
        folder, pages = site
        broken = []
        for path, page in pages.items():
            for target in page.targets:
                if target.startswith(EXTERNAL):
                    continue
                address, _, anchor = urllib.parse.unquote(target).partition("#")
                there = pathlib.Path(folder / address.lstrip("/") if address.startswith("/") else path.parent / address)
                there = (there / "index.html" if there.is_dir() else there).resolve() if address else path
                is_there = there in pages or there.is_file()
                if not is_there or (there in pages and anchor not in pages[there].anchors):
                    broken.append(f"{path.relative_to(folder)}: {target}")
        assert not broken, broken
        assert sum(len(page.targets) for page in pages.values()) > 1000

    def test_fetches_nothing_from_elsewhere(self, site):
        _, pages = site
        for path, page in pages.items():
            assert page.fetched and page.from_elsewhere() == [], path
            assert "fonts.googleapis" not in path.read_text(encoding="utf-8"), path

    def test_has_the_tour_with_its_pictures(self, site):
        folder, pages = site
        tour = pages[folder / "tour" / "index.html"]
        assert sum(target.endswith(".png") for target in tour.targets) >= 5
        # What the cells print is part of the page.
        assert "0 of 49152 values differ" in (folder / "tour" / "index.html").read_text(encoding="utf-8")
