"""How dev/gpu2.py runs its parts; the parts themselves need GPUs."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dev import gpu2
from tests.support.waiting import wait_for


def part(name: str, code: str, *, shown: bool = False) -> gpu2.Part:
    return gpu2.Part(name, [sys.executable, "-c", code], 20, shown)


def test_a_part_that_fails_or_hangs_is_a_line_and_the_next_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    parts = [
        part("wrong", "print('a table'); raise SystemExit(3)"),
        part("slow", "import time; print('begun', flush=True); time.sleep(60)"),
        part("right", "print('quiet'); print('42 sums')"),
    ]
    monkeypatch.setattr(gpu2, "tests", lambda: [parts[0], gpu2.Part("slow", parts[1].command, 2), parts[2]])
    monkeypatch.setenv("THRANITE_GPU2_LOGS", str(tmp_path))
    assert gpu2.main(["test"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert "=== wrong: FAILED (3)" in lines
    assert lines.index("=== wrong: FAILED (3)") < lines.index(lines[-3]) < lines.index(lines[-2]) < len(lines) - 5
    assert "quiet" not in lines
    verdicts = [line.split(maxsplit=1) for line in lines[-3:]]
    assert [name for name, _ in verdicts] == ["wrong", "slow", "right"]
    assert "no end after 2 s" in verdicts[1][1]
    assert verdicts[2][1].startswith("ok")
    assert verdicts[2][1].endswith("42 sums")
    assert "quiet" in (tmp_path / "right.log").read_text()


def test_a_part_that_ends_is_a_line_at_once_and_sigterm_leaves_a_table(tmp_path: Path) -> None:
    """What a time limit from outside does to the whole."""
    rank = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    starts = f"subprocess.run([sys.executable, '-c', {'import os, time; ' + rank!r}], start_new_session=True)"
    code = (
        "import sys\nfrom dev import gpu2\n"
        "def part(name, code): return gpu2.Part(name, [sys.executable, '-c', code], 50)\n"
        f"hangs = {'import subprocess, sys; ' + starts!r}\n"
        "gpu2.tests = lambda: [part('right', \"print('42 sums')\"), part('hangs', hangs), part('never', 'pass')]\n"
        "sys.exit(gpu2.main(['test']))\n"
    )
    whole = subprocess.Popen([sys.executable, "-c", code], cwd=gpu2.ROOT, stdout=subprocess.PIPE, text=True)
    assert whole.stdout is not None
    first = whole.stdout.readline()
    assert first.split()[:2] == ["right", "ok"]
    assert first.endswith("42 sums\n")
    wait_for((tmp_path / "pid").exists, "the part has begun", 10)
    whole.send_signal(signal.SIGTERM)
    out, _ = whole.communicate(timeout=20)
    assert whole.returncode == 2
    table = out.splitlines()[-3:]
    assert table[0] == first.rstrip("\n")
    assert "cut by SIGTERM" in table[1]
    assert "not begun" in table[2]
    wait_for(lambda: has_ended(tmp_path / "pid"), "it lives on", 10)


def has_ended(pid_file: Path) -> bool:
    stat = Path("/proc", pid_file.read_text(), "stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_part_that_hangs_tells_where_all_its_processes_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Ranks have sessions of their own. One that ignores the question ends with its part, too: it holds a GPU."""
    rank = "import time\ndef waits_for_a_peer():\n    time.sleep(60)\nwaits_for_a_peer()"
    stubborn = rank.replace("import time", "import signal, time; signal.signal(signal.SIGABRT, signal.SIG_IGN)")
    for child in (rank, stubborn):
        start = f"rank = subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)"
        say = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(rank.pid)); rank.wait()"
        result = gpu2.run(part("hangs", f"import subprocess, sys\n{start}\n{say}"), 3.0)
        assert "no end after 3 s" in result.verdict
        assert result.seconds < 10
        wait_for(lambda: has_ended(tmp_path / "pid"), "it lives on", 10)
    assert capsys.readouterr().out.count("in waits_for_a_peer") == 1


def test_pytest_keeps_nothing_of_what_ranks_say(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It captures the output of a test, and what it holds is lost with it where a test hangs."""
    hangs = tmp_path / "test_hangs.py"
    hangs.write_text(
        "import subprocess, sys\ndef test_sums():\n"
        "    code = 'import time\\ndef waits_for_a_peer(): time.sleep(60)\\nwaits_for_a_peer()'\n"
        "    subprocess.Popen([sys.executable, '-c', code], start_new_session=True).wait()\n"
    )
    (sums,) = (part for part in gpu2.tests() if part.name == "sums")
    command = [
        {"gpu2": "not gpu2", "tests/runtime/parallel/test_gpu_sums.py": str(hangs)}.get(c, c) for c in sums.command
    ]
    assert "no end" in gpu2.run(gpu2.Part("sums", command, 10), 10.0).verdict
    shown = capsys.readouterr().out
    assert "in waits_for_a_peer" in shown
    assert "in test_sums" in shown


def test_only_the_parts_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu2, "tests", lambda: [part("one", "pass"), part("two", "raise SystemExit(1)")])
    assert gpu2.main(["test", "--parts", "one"]) == 0
    monkeypatch.setenv("THRANITE_GPU2_SECONDS", "1")
    assert gpu2.main(["test"]) == 2
    assert "no time left" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu2.main(["test", "--parts", "three"])


def test_every_test_of_two_gpus_has_a_part() -> None:
    files = {str(path.relative_to(gpu2.ROOT)) for path in (gpu2.ROOT / "tests").rglob("test_*.py")}
    mark = ".".join(("pytest", "mark", "gpu2"))  # not here
    marked = {name for name in files if mark in (gpu2.ROOT / name).read_text()}
    assert marked == {word for part in gpu2.tests() for word in part.command if word in files}


def test_the_benchmark_ends_with_a_warm_start_through_the_library_alone() -> None:
    parts = gpu2.benches("llama-8b/mixed,llama-8b/decode1", ["--dtype", "bfloat16"])
    assert [part.name for part in parts] == ["all-reduce", "workloads", "NCCL alone"]
    assert parts[2].command[-5:] == ["--runs", "1", "--no-peer-all-reduce", "--dtype", "bfloat16"]
    assert "llama-8b/decode1" in parts[2].command
