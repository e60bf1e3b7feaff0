"""`thranite-operator simulate`: a recorded trace gives the same decisions again, and says where others differ."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from autoscaling.plant import Plant
from autoscaling.policies.ours import Ours
from autoscaling.service import recorded
from autoscaling.trace_set import TUNE

from thranite_operator.autoscaling.spec import AutoscalingSpec
from thranite_operator.autoscaling.trace import to_line
from thranite_operator.main import main

OBJECT = "apiVersion: thranite.dev/v1alpha1\nkind: InferenceService\nspec:\n  autoscaling: {maxReplicas: 12%s}\n"


@pytest.fixture(scope="module")
def recorded_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the operator would have recorded while the load of a step went over simulated replicas."""
    policy = Ours(AutoscalingSpec(max_replicas=12))
    Plant(TUNE[0], policy, recorded(), cold_start=120.0).run()
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    path.write_text("\n".join(to_line(moment) for moment in policy.moments) + "\n")
    return path


def spec_file(folder: Path, text: str) -> str:
    path = folder / "spec.yaml"
    path.write_text(text)
    return str(path)


def test_the_same_spec_decides_the_same_again(
    recorded_trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", str(recorded_trace), "--spec", spec_file(tmp_path, OBJECT % "")]) == 0
    printed = capsys.readouterr().out
    count = len(recorded_trace.read_text().splitlines())
    assert re.search(rf"^{count} moments, \d+ changes, 0 decided otherwise", printed, re.MULTILINE)
    assert "QueueDepth: " in printed
    assert "*" not in printed.splitlines()[1]


def test_another_spec_is_marked_where_it_differs(
    recorded_trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = spec_file(tmp_path, "{maxReplicas: 3, minReplicas: 2}")
    assert main(["simulate", str(recorded_trace), "--spec", spec, "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(recorded_trace.read_text().splitlines())
    marked = [line for line in lines[1:-1] if re.search(r"\d\*", line)]
    assert f"{len(marked)} decided otherwise" in lines[-1]
    assert any("TooManyReplicas" in line for line in marked)
    assert any("TooFewReplicas" in line for line in marked)


def test_what_is_learned_comes_back_with_the_trace(recorded_trace: Path) -> None:
    moments = [json.loads(line) for line in recorded_trace.read_text().splitlines()]
    starts = {moment["start_seconds"] for moment in moments}
    assert None in starts
    assert any(108 <= start <= 132 for start in starts - {None})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"time": 0, "current": 1, "pods": []}', "{"], "line 2: no moment of a trace"),
        (['{"time": 0, "current": 1, "pods": [{"uid": "a"}]}'], "line 1: no moment of a trace"),
        (
            ['{"time": 9, "current": 1, "pods": []}', '{"time": 8, "current": 1, "pods": []}'],
            "line 2: its time 8 lies before",
        ),
        (["", ""], "there is no line in it"),
    ],
)
def test_a_bad_trace_is_answered_with_the_line(
    lines: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text("\n".join(lines))
    assert main(["simulate", str(trace), "--spec", spec_file(tmp_path, "{maxReplicas: 3}")]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no YAML"),
        ("[]", "needs an InferenceService with spec.autoscaling"),
        ("kind: InferenceService\nspec: {}", "has no spec.autoscaling"),
        ("{minReplicas: 3}", "maxReplicas has no default"),
        ("{maxReplicas: many}", "autoscaling.maxReplicas must be int, not 'many'"),
        ("{maxReplica: 3}", "autoscaling.maxReplica is no field; there are behavior, "),
        ("{maxReplicas: 3, mode: External}", "only mode Internal decides"),
        ("{maxReplicas: 3, mode: Other}", "autoscaling.mode must not be 'Other'"),
        ("{maxReplicas: 3, behavior: {scaleUp: {pod: 1}}}", "autoscaling.behavior.scaleUp.pod is no field"),
        (
            "{maxReplicas: 3, schedules: [{name: day, start: x, durationSeconds: 60, minReplicas: 2}]}",
            "schedule day: 'x' must have five fields",
        ),
    ],
)
def test_a_bad_spec_is_answered_with_the_field(
    text: str, message: str, recorded_trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", str(recorded_trace), "--spec", spec_file(tmp_path, text)]) == 1
    assert message in capsys.readouterr().err


def test_a_plot(recorded_trace: Path, tmp_path: Path) -> None:
    png = tmp_path / "out.png"
    spec = spec_file(tmp_path, "{maxReplicas: 12}")
    assert main(["simulate", str(recorded_trace), "--spec", spec, "--plot", str(png)]) == 0
    assert png.read_bytes().startswith(b"\x89PNG")


def test_no_plot_without_matplotlib(
    recorded_trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    spec = spec_file(tmp_path, "{maxReplicas: 12}")
    assert main(["simulate", str(recorded_trace), "--spec", spec, "--plot", str(tmp_path / "out.png")]) == 1
    assert "pip install 'thranite[plot]'" in capsys.readouterr().err
