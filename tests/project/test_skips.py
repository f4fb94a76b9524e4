"""The list of skips: what it allows, what fails a run, and that it speaks of tests that there are."""

import ast
import os
import subprocess
import sys

import pytest
from helpers.places import TESTS
from helpers.skips import EXPECTED, read_expected, unexpected

LISTED = read_expected(EXPECTED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("test", sorted({test for test, _ in LISTED}))
def test_every_listed_test_exists(test):
    path, *names = test.split("::")
    body = ast.parse((TESTS.parent / path).read_text(encoding="utf-8")).body
    for name in names:
        found = [node for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name]
        assert found, f"{EXPECTED.name} names {test}, which there is not"
        body = found[0].body


def test_a_reason_is_the_whole_or_a_beginning():
    expected = read_expected("# why\n\na.py::test | no GPU\na.py | there is no *\n")
    assert expected == [("a.py::test", "no GPU"), ("a.py", "there is no *")]
    fine = [("a.py::test", "no GPU"), ("a.py", "there is no npm")]
    wrong = [("a.py::test", "no GPU here"), ("a.py::other", "no GPU"), ("a.py", "npm fails")]
    assert unexpected([*fine, *wrong], expected) == wrong


def test_a_line_without_a_reason_is_refused():
    with pytest.raises(ValueError, match=r"line 2: 'a\.py::test' is not TEST \| REASON"):
        read_expected("# comment\na.py::test\n")


SUITE = """
import pytest

@pytest.mark.parametrize("value", ["a", "b[c]"])
def test_listed(value):
    pytest.skip("no  GPU\\nhere")

def test_passes():
    pass

@pytest.mark.xfail
def test_fails_as_expected():
    assert False
"""


@pytest.fixture
def suite(tmp_path):
    """Runs a small suite of its own under the hooks of skips.py, and returns status and output."""
    names = "pytest_addoption, pytest_configure, pytest_sessionfinish, pytest_terminal_summary"
    (tmp_path / "conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(TESTS)!r})\nimport pathlib\nfrom helpers import skips\n"
        f"skips.EXPECTED = pathlib.Path(__file__).with_name('list.txt')\nfrom helpers.skips import {names}\n"
    )
    (tmp_path / "test_it.py").write_text(SUITE)
    (tmp_path / "list.txt").write_text("test_it.py::test_listed | no GPU here\n")

    def run(*arguments):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", *arguments]
        # Of the plugins the one that is needed: Hypothesis alone takes a second.
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin"}
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return ended.returncode, ended.stdout + ended.stderr

    return run


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "two"])
class TestRun:
    def test_listed_skips_are_told_and_pass(self, suite, workers):
        status, out = suite("-o", "strict_skips=true", *workers)
        assert status == 0, out
        assert "test_it.py::test_listed (2 cases): no GPU here\n" in out
        assert "NOT EXPECTED" not in out and "test_fails_as_expected" not in out

    def test_other_skips_fail_a_strict_run_alone(self, suite, workers, tmp_path):
        (tmp_path / "test_other.py").write_text("import pytest\npytest.importorskip('nonsense')\n")
        status, out = suite("-o", "strict_skips=true", *workers)
        assert status == 1, out
        assert "NOT EXPECTED: test_other.py: could not import 'nonsense'" in out
        assert "1 of these are not in tests/list.txt: that fails this run" in out
        status, out = suite(*workers)
        assert status == 0, out
        assert "make test-all would fail" in out
