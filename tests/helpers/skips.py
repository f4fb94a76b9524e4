"""Hooks of pytest, for conftest.py, that report skipped tests and compare them with tests/expected_skips.txt.

A line of the file is `TEST | REASON`. TEST is a test without its parameters, or a module that is skipped as a whole. A
REASON that ends in * stands for all reasons with this beginning. With `-o strict_skips=true` (`make test-all`) a skip
that is not in the file fails the run.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable

import pytest

from helpers.places import TESTS

EXPECTED = TESTS / "expected_skips.txt"


def read_expected(text: str) -> list[tuple[str, str]]:
    """Returns the pairs of test and reason in a list; raises ValueError if a line is neither a pair nor a comment."""
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        test, separator, reason = line.partition(" | ")
        if not (separator and test.strip() and reason.strip()):
            raise ValueError(f"{EXPECTED.name}, line {number}: {line!r} is not TEST | REASON")
        pairs.append((test.strip(), reason.strip()))
    return pairs


def unexpected(skips: Iterable[tuple[str, str]], expected: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Returns the skips, as pairs of test and reason, that the list does not have."""

    def allowed(test: str, reason: str) -> bool:
        return any(
            test == listed and (reason == why or (why.endswith("*") and reason.startswith(why[:-1])))
            for listed, why in expected
        )

    return [skip for skip in skips if not allowed(*skip)]


class _Skips:
    """A plugin of pytest that counts skips by test and reason."""

    def __init__(self) -> None:
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._add(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._add(report)

    def _add(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        # pytest reports expected failures as skipped, with an attribute `wasxfail`.
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reason = " ".join(reason.removeprefix("Skipped: ").split())
            self.counts[report.nodeid.partition("[")[0], reason] += 1

    def unexpected(self) -> list[tuple[str, str]]:
        return unexpected(sorted(self.counts), read_expected(EXPECTED.read_text(encoding="utf-8")))


_KEY = pytest.StashKey[_Skips]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the setting `strict_skips`, with which a skip that is not in the list fails the run."""
    parser.addini("strict_skips", "a skip that is not in tests/expected_skips.txt fails the run", "bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Starts counting skips; with pytest-xdist only in the controller, which receives the reports of all tests."""
    if not hasattr(config, "workerinput"):
        config.stash[_KEY] = _Skips()
        config.pluginmanager.register(config.stash[_KEY], "skips")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails the run if `strict_skips` is set and a skip is not in the list."""
    skips = session.config.stash.get(_KEY, None)
    if skips is not None and session.config.getini("strict_skips") and skips.unexpected() and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the skipped tests with their reasons, and marks the skips that are not in the list."""
    skips = config.stash.get(_KEY, None)
    if skips is None or not skips.counts:
        return
    terminalreporter.section("skipped tests")
    surprising = skips.unexpected()
    for (test, reason), count in sorted(skips.counts.items()):
        times = f" ({count} cases)" if count > 1 else ""
        mark = "NOT EXPECTED: " if (test, reason) in surprising else ""
        terminalreporter.line(f"{mark}{test}{times}: {reason}")
    if surprising:
        strict = config.getini("strict_skips")
        end = "that fails this run" if strict else "make test-all would fail"
        terminalreporter.line(f"{len(surprising)} of these are not in tests/{EXPECTED.name}: {end}", red=strict)
