"""A plugin of pytest that compares skipped tests with tests/expected_skips.txt.

A line of that file is `TEST | REASON`; TEST has no parameters, or is the file of a module. A line that ends in * stands
for all reasons with this beginning. With `-o strict_skips=true`, as in `make test-all`, other skips fail the run.
"""

import pytest

from helpers.places import TESTS

EXPECTED = TESTS / "expected_skips.txt"


class SkipChecker:
    """A plugin of pytest; `unexpected` is the set of "TEST | REASON" of skips that expected_skips.txt does not list."""

    def __init__(self, config):
        self.is_strict, self.unexpected = config.getini("strict_skips"), set()
        self.expected = EXPECTED.read_text(encoding="utf-8").splitlines()

    def pytest_runtest_logreport(self, report):
        # Expected failures are no skips; pytest reports them as skipped, too, but with an attribute `wasxfail`.
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            skip = f"{report.nodeid.partition('[')[0]} | {' '.join(reason.removeprefix('Skipped: ').split())}"
            if not any(skip == line or line[-1:] == "*" and skip.startswith(line[:-1]) for line in self.expected):
                self.unexpected.add(skip)

    # If a complete module is skipped, pytest calls the hook `pytest_collectreport` instead.
    pytest_collectreport = pytest_runtest_logreport

    def pytest_sessionfinish(self, session):
        if self.unexpected and self.is_strict and not session.exitstatus:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.unexpected:
            terminalreporter.section(f"skips that are not in tests/{EXPECTED.name}")
            for skip in sorted(self.unexpected):
                terminalreporter.line(skip)
