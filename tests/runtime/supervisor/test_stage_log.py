"""Startup as it is told: stages from a child, lines and bars from the supervisor."""

from __future__ import annotations

import io
import logging

import pytest

from thranite.ipc.control import StageNote, StageProgress
from thranite.ipc.stages import StageReporter
from thranite.supervisor.stage_log import StageLog


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_reporter_tells_when_stages_begin_and_end() -> None:
    sent: list[StageProgress | StageNote] = []
    reporter = StageReporter(sent.append)
    reporter.advance(1, 2)
    reporter.finish()
    assert sent == []
    reporter.stage("load")
    for done in range(1000):
        reporter.advance(done, 1000)
    reporter.stage("warm up")
    reporter.finish()
    reporter.finish()
    reporter.note("a plan")
    assert sent.pop() == StageNote("a plan")
    steps = [event for event in sent if isinstance(event, StageProgress)]
    assert [(event.stage, event.done) for event in steps if event.fraction in (None, 1.0)] == [
        ("load", False),
        ("load", True),
        ("warm up", False),
        ("warm up", True),
    ]
    assert len(sent) < 50  # a thousand steps of progress do not make a thousand messages


def test_one_line_a_stage_with_its_time(caplog: pytest.LogCaptureFixture) -> None:
    log = StageLog(io.StringIO())
    with caplog.at_level(logging.INFO, "thranite"):
        log.update(StageProgress("load weights", 0.5, 1.0))
        log.update(StageProgress("load weights", 1.0, 2.25, done=True))
    assert caplog.messages == ["load weights: 2.25 s"]
    assert log.seconds == {"load weights": 2.25}


def test_a_terminal_sees_a_bar() -> None:
    terminal = Terminal()
    log = StageLog(terminal)
    log.update(StageProgress("load weights", None, 0.0))
    log.update(StageProgress("load weights", 0.5, 1.0))
    log.close()
    assert "load weights" in terminal.getvalue()
    assert "50%" in terminal.getvalue()
