"""The site is built without a warning, has every public name and the tour, and fetches nothing from elsewhere."""

import importlib.util
import re
import subprocess
import sys

import pytest
from helpers.places import ROOT, user_environment


@pytest.mark.slow
def test_site_builds_without_warnings_and_fetches_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("site_hook", ROOT / ".ci" / "site_pages.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    # A broken link is a warning, and mkdocs.yml makes warnings errors.
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=user_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    for page, names in hook.list_public_names().items():
        anchors = re.findall(r'id="([^"]+)"', pages[tmp_path / "api" / page / "index.html"])
        assert set(names) <= set(anchors), page
    for path, text in pages.items():
        # A browser fetches scripts, pictures and these kinds of links with the page.
        links = [
            tag for tag in re.findall(r"<link[^>]*>", text) if re.search("stylesheet|icon|preload|preconnect", tag)
        ]
        fetched = [*re.findall(r'\bsrc="([^"]+)"', text), *re.findall(r'href="([^"]+)"', " ".join(links))]
        assert fetched and not [link for link in fetched if link.strip().lower().startswith(("http", "//"))], path
        assert "fonts.googleapis" not in text, path
    tour = pages[tmp_path / "tour" / "index.html"]
    # The page has the pictures and what the cells print.
    assert len(re.findall(r'src="[^"]+\.png"', tour)) >= 5 and "0 of 49152 values differ" in tour
