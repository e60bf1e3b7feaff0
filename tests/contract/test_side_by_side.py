"""`make test` runs two parts at once: the output stays apart, and neither's failure is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dev.side_by_side import INTERRUPTED
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[2]


def start(beside: str, front: str) -> subprocess.Popen[str]:
    """As in a shell's background, where SIGINT is ignored from birth."""
    command = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, "-m", "dev.side_by_side"]
    command += ["sh", "-c", beside, "--", "sh", "-c", front]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("beside", "front", "code"), [(0, 0, 0), (3, 0, 3), (0, 4, 4), (3, 4, 4)])
def test_it_fails_if_either_does(beside: int, front: int, code: int) -> None:
    process = start(f"exit {beside}", f"exit {front}")
    process.communicate(timeout=30)
    assert process.returncode == code


def test_they_run_at_once_and_are_told_one_after_the_other(tmp_path: Path) -> None:
    """Each waits for what the other makes."""
    one, two = tmp_path / "one", tmp_path / "two"
    meet = "echo {name} begins; touch {mine}; until [ -e {other} ]; do sleep 0.01; done; echo {name} ends"
    process = start(meet.format(name="beside", mine=one, other=two), meet.format(name="front", mine=two, other=one))
    told = [line for line in process.communicate(timeout=30)[0].splitlines() if not line.startswith("side by side")]
    assert told == ["front begins", "front ends", "beside begins", "beside ends"]


def test_whoever_ends_it_ends_both_in_order(tmp_path: Path) -> None:
    began = tmp_path / "began"
    wait = "trap 'echo {name} cleaned up; exit 1' INT; {first} while :; do sleep 0.05; done"
    process = start(wait.format(name="beside", first=f"touch {began};"), wait.format(name="front", first=""))
    wait_for(began.exists, "the program beside begins")
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=30)[0]
    assert process.returncode == INTERRUPTED
    assert "front cleaned up" in told
    assert told.index("front cleaned up") < told.index("beside cleaned up")
