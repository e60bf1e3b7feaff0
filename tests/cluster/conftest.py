"""Shows what was in a test's namespace when the test failed."""

from __future__ import annotations

import subprocess
from collections.abc import Generator

import pytest

from tests.cluster.access import CommandFailedError, Namespace
from tests.cluster.fixtures import namespace

__all__ = ["namespace"]
LOG_LINES = 40


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    found = item.funcargs.get("namespace")
    if report.when == "call" and report.failed and isinstance(found, Namespace):
        for title, text in describe(found):
            report.sections.append((f"{title} of namespace {found.name}", text))
    return report


def describe(namespace: Namespace) -> list[tuple[str, str]]:
    sections = [
        ("objects", _output(namespace, "get", "all,persistentvolumeclaims,endpointslices", "-o", "wide")),
        ("events", _output(namespace, "get", "events", "--sort-by=.lastTimestamp")),
        ("description of pods", _output(namespace, "describe", "pods")),
    ]
    for pod in _output(namespace, "get", "pods", "-o", "name").split():
        for more in ((), ("--previous",)):
            text = _output(namespace, "logs", pod, "--all-containers", "--prefix", f"--tail={LOG_LINES}", *more)
            if text.strip() and "not found" not in text:
                sections.append((f"log {' '.join(more)} of {pod}", text))
    return sections


def _output(namespace: Namespace, *words: str) -> str:
    try:
        return namespace.kubectl(*words, timeout=20)
    except (CommandFailedError, subprocess.TimeoutExpired) as error:
        return str(error)
