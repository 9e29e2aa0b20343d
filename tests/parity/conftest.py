"""Ends a run of the parity tests with their largest relative errors, by level."""

import re

import pytest

from tests.parity import agreement

_KEY = "relative errors"
_found: dict[str, dict[str, float]] = {}


@pytest.fixture(autouse=True)
def _told(request):
    agreement.seen.clear()
    yield
    if agreement.seen:
        # Properties travel with the report, from a worker process too.
        request.node.user_properties.append((_KEY, dict(agreement.seen)))


def pytest_runtest_logreport(report):
    if report.when != "teardown":
        return
    family = re.search(r"test_(\w+)\.py", report.nodeid)
    for key, errors in report.user_properties:
        if key == _KEY:
            row = _found.setdefault(family[1], {})
            for level, error in errors.items():
                row[level] = max(error, row.get(level, 0.0))


def pytest_terminal_summary(terminalreporter):
    if _found:
        terminalreporter.section("largest relative errors, float32")
        for line in agreement.lines(_found):
            terminalreporter.write_line(line)
