from __future__ import annotations

import logging
import signal
from pathlib import Path

import pytest

from thranite.errors import ConfigError, ExitCode
from thranite.supervisor import termination
from thranite.supervisor.termination import Outcome, check_termination_log, describe_exit, write_termination_log

DIED = Outcome(ExitCode.ENGINE_DIED, "serve", "the engine process was killed by SIGKILL", "give it memory")


def test_the_log_names_stage_cause_and_hint(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write_termination_log(str(path), Outcome(ExitCode.FAILURE, "load", "x" * 9000))
    write_termination_log(str(path), DIED)
    assert path.read_text() == f"stage: serve\ncause: {DIED.cause}\nhint: give it memory\n"
    write_termination_log(str(path), Outcome(ExitCode.FAILURE, "load", "x" * 9000))
    assert path.stat().st_size == 4096  # kubelet's limit


def test_a_path_that_was_given_must_be_writable(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    missing = str(tmp_path / "no" / "log")
    with pytest.raises(ConfigError, match=r"--termination-log-path .* cannot be written"):
        check_termination_log(missing)
    with caplog.at_level(logging.ERROR):
        write_termination_log(missing, DIED)
    assert "cannot be written" in caplog.text
    check_termination_log(str(tmp_path / "log"))


def test_the_default_path_is_never_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    default = tmp_path / "termination-log"
    monkeypatch.setattr(termination, "DEFAULT_TERMINATION_LOG", str(default))
    check_termination_log(str(default))
    with caplog.at_level(logging.INFO):
        write_termination_log(str(default), DIED)
    assert not default.exists()
    assert caplog.text == ""


def test_return_codes_are_described() -> None:
    assert describe_exit("engine", 8) == "the engine process exited with code 8"
    assert "killed by SIGKILL (often" in describe_exit("engine", -signal.SIGKILL)
    assert describe_exit("server", -signal.SIGSEGV) == "the server process was killed by SIGSEGV"
