"""Hooks of pytest, for conftest.py, that report skipped tests and compare them with tests/expected_skips.txt.

A line of that file is `TEST | REASON`. TEST is a test without its parameters, or the file of a module that is skipped.
A REASON that ends in * stands for all reasons with this beginning. With pytest's option `-o strict_skips=true`, as in
`make test-all`, a skip that is not in expected_skips.txt fails the run.
"""

import collections

import pytest

from helpers.places import TESTS

EXPECTED = TESTS / "expected_skips.txt"


class _SkipCounter:
    """A plugin of pytest that counts skipped tests; `counts` is {(test without parameters, reason): count}."""

    def __init__(self) -> None:
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        # Expected failures are not counted; pytest reports them as skipped, too, but with an attribute `wasxfail`.
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reason = " ".join(reason.removeprefix("Skipped: ").split())
            self.counts[report.nodeid.partition("[")[0], reason] += 1

    # If a complete module is skipped, pytest calls the hook `pytest_collectreport` instead.
    pytest_collectreport = pytest_runtest_logreport

    def list_unexpected(self) -> list[tuple[str, str]]:
        """Returns the skips that are not in tests/expected_skips.txt, as a sorted list of (test, reason)."""
        lines = EXPECTED.read_text(encoding="utf-8").splitlines()
        expected = [line.split(" | ", 1) for line in lines if line.strip() and not line.startswith("#")]

        def is_expected(test: str, reason: str) -> bool:
            return any(
                test == listed and (reason == why or (why.endswith("*") and reason.startswith(why[:-1])))
                for listed, why in expected
            )

        return [skip for skip in sorted(self.counts) if not is_expected(*skip)]


_KEY = pytest.StashKey[_SkipCounter]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds pytest's setting `strict_skips`: whether a skip that is not in tests/expected_skips.txt fails the run."""
    parser.addini("strict_skips", "a skip that is not in tests/expected_skips.txt fails the run", "bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Registers a counter of skipped tests, but not in workers of pytest-xdist, whose controller gets all reports."""
    if not hasattr(config, "workerinput"):
        config.stash[_KEY] = _SkipCounter()
        config.pluginmanager.register(config.stash[_KEY], "skips")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails the run of pytest if `strict_skips` is true and a skipped test is not in tests/expected_skips.txt."""
    skips = session.config.stash.get(_KEY, None)
    if skips and session.config.getini("strict_skips") and skips.list_unexpected() and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the skipped tests with their reasons, and marks the skips that are not in tests/expected_skips.txt."""
    skips = config.stash.get(_KEY, None)
    if skips is None or not skips.counts:
        return
    terminalreporter.section("skipped tests")
    unexpected = skips.list_unexpected()
    for (test, reason), count in sorted(skips.counts.items()):
        times = f" ({count} cases)" if count > 1 else ""
        mark = "NOT EXPECTED: " if (test, reason) in unexpected else ""
        terminalreporter.line(f"{mark}{test}{times}: {reason}")
    if unexpected:
        strict = config.getini("strict_skips")
        end = "that fails this run" if strict else "make test-all would fail"
        terminalreporter.line(f"{len(unexpected)} of these are not in tests/{EXPECTED.name}: {end}", red=strict)
