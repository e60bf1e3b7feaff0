"""What a start took: stages, and the time before them."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from thranite.bench.start_time import StartTimes, seconds_since_exec


def test_stages_and_the_time_before_them_add_up() -> None:
    start = StartTimes(2.0)
    start.stage("load weights")
    time.sleep(0.02)
    start.stage("warm up")
    start.finish()
    start.finish()
    assert list(start.stages) == ["load weights", "warm up"]
    assert 2.02 <= start.ready_seconds < 3.0
    start.compiled = 7
    assert start.line().startswith("ready 2.0 s after exec (first start: 7 kernels compiled): Python and imports 2.0, ")


def test_a_later_model_counts_from_its_load() -> None:
    start = StartTimes()
    start.stage("find model")
    start.finish()
    assert start.line() == "ready 0.0 s after the load's beginning: find model 0.0"
    start.compiled = 0
    assert start.line() == "ready 0.0 s after the load's beginning (Triton's cache was warm): find model 0.0"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the process table is Linux's")
def test_the_clock_starts_at_exec() -> None:
    code = "import time; time.sleep(0.5)\nfrom thranite.bench.start_time import seconds_since_exec as s; print(s())"
    began = time.monotonic()
    told = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 0.5 <= told <= time.monotonic() - began + 0.05
    assert seconds_since_exec() is not None
