"""Hooks of pytest, for conftest.py, that compare skipped tests with tests/expected_skips.txt.

A line of that file is `TEST | REASON`. TEST is a test without its parameters, or the file of a module that is skipped.
A line that ends in * stands for all reasons with this beginning. With pytest's option `-o strict_skips=true`, as in
`make test-all`, a skip that is not in expected_skips.txt fails the run.
"""

import pytest

from helpers.places import TESTS

EXPECTED = TESTS / "expected_skips.txt"


class _SkipChecker:
    """A plugin of pytest; `unexpected` is the set of "TEST | REASON" of skips that expected_skips.txt does not list."""

    def __init__(self):
        self.expected, self.unexpected = EXPECTED.read_text(encoding="utf-8").splitlines(), set()

    def pytest_runtest_logreport(self, report):
        # Expected failures are no skips; pytest reports them as skipped, too, but with an attribute `wasxfail`.
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            skip = f"{report.nodeid.partition('[')[0]} | {' '.join(reason.removeprefix('Skipped: ').split())}"
            if not any(skip == line or line[-1:] == "*" and skip.startswith(line[:-1]) for line in self.expected):
                self.unexpected.add(skip)

    # If a complete module is skipped, pytest calls the hook `pytest_collectreport` instead.
    pytest_collectreport = pytest_runtest_logreport


_KEY = pytest.StashKey[_SkipChecker]()


def pytest_addoption(parser):
    parser.addini("strict_skips", "a skip that is not in tests/expected_skips.txt fails the run", "bool", default=False)


def pytest_configure(config):
    """Registers the check, but not in workers of pytest-xdist, whose controller gets all reports."""
    if not hasattr(config, "workerinput"):
        config.stash[_KEY] = _SkipChecker()
        config.pluginmanager.register(config.stash[_KEY], "skips")


def pytest_sessionfinish(session):
    checker = session.config.stash.get(_KEY, None)
    if checker and checker.unexpected and session.config.getini("strict_skips") and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    checker = config.stash.get(_KEY, None)
    if checker and checker.unexpected:
        terminalreporter.section(f"skips that are not in tests/{EXPECTED.name}")
        for skip in sorted(checker.unexpected):
            terminalreporter.line(skip)
