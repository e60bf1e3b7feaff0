"""The GPU's online benchmark, tried on the null device; and its bars."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from online_bars import judge, verdict_table
from online_gpu import main
from serve_null import CONFIG
from serve_soak import soak_options

from thranite.bench.online_figures import OnlineFigures

RUN = OnlineFigures(4.0, 80, 0, 20.0, 640.0, 19.0, 44.0, 4.6, 5.0, 4.9, 9.0, 700.0, 1300.0)


def test_a_bar_holds_by_the_mean_of_the_runs_that_count() -> None:
    held = judge([RUN, replace(RUN, ttft_p50=21.0), replace(RUN, failed=1, ttft_p50=1.0)])
    assert [(bar.figure, bar.values, bar.holds) for bar in held] == [
        ("ttft_p50", (19.0, 21.0), True),
        ("ttft_p99", (44.0, 44.0), True),
        ("tpot_p50", (4.6, 4.6), True),
    ]
    missed = judge([RUN, replace(RUN, ttft_p50=21.1)])
    assert [bar.holds for bar in missed] == [False, True, True]
    assert "| 4 | ttft_p50 | 19.00, 21.10 | 20.05 | 20 | 16 | MISSED |" in verdict_table(missed)
    none = judge([replace(RUN, rate=math.inf, failed=1)])
    assert [(bar.figure, bar.holds) for bar in none] == [("seconds", False)]
    assert "| inf | seconds |  | none counts | 9.4 | 8.5 | MISSED |" in verdict_table(none)


def test_the_whole_way_on_the_null_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("thranite.bench.serve.START_SECONDS", 0.3)
    command = ["online_gpu.py", "--model", "tiny", "--device", "null", "--processes", "2", "--runs", "inf:8"]
    monkeypatch.setattr(sys, "argv", [*command, "--", "--max-num-seqs", "32"])
    assert main() == 0
    said = capsys.readouterr().out
    assert "running at most   32 sequences" in said
    assert "| all at once | 8 | 0 |" in said
    assert "engine's means: TTFT" in said


def test_a_soak_s_pool_is_so_many_tokens_whatever_the_model() -> None:
    assert soak_options(CONFIG, 4)[-1] == str(3840 * 2 * 2 * 2 * 16 * 4)
    assert soak_options({**CONFIG, "head_dim": 128}, 2)[-1] == str(3840 * 2 * 2 * 2 * 128 * 2)
