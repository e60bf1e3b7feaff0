"""Memory of the host and of a container, and amounts as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thranite.errors import ConfigError
from thranite.loader.device_memory import GIB, KIB, MIB, format_bytes, host_memory, parse_bytes


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Path, Path]:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir()
    cgroup.mkdir()
    (proc / "meminfo").write_text("MemTotal:  8388608 kB\nMemFree:  100 kB\nMemAvailable:  4194304 kB\n")
    return proc, cgroup


def test_a_machine_without_limits(machine: tuple[Path, Path]) -> None:
    memory = host_memory(*machine)
    assert (memory.kind, memory.total_bytes, memory.available_bytes) == ("cpu", 8 * GIB, 4 * GIB)
    (machine[1] / "memory.max").write_text("max\n")
    assert host_memory(*machine) == memory


def test_a_container_of_cgroup_version_2(machine: tuple[Path, Path]) -> None:
    for name, text in (("max", 2 * GIB), ("current", 1 * GIB), ("stat", f"anon 1\ninactive_file {512 * MIB}\n")):
        (machine[1] / f"memory.{name}").write_text(str(text))
    memory = host_memory(*machine)
    assert (memory.total_bytes, memory.available_bytes) == (2 * GIB, 2 * GIB - GIB + 512 * MIB)


def test_a_container_of_cgroup_version_1(machine: tuple[Path, Path]) -> None:
    folder = machine[1] / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text(str(3 * GIB))
    (folder / "memory.usage_in_bytes").write_text(str(1 * GIB))
    memory = host_memory(*machine)
    assert (memory.total_bytes, memory.available_bytes) == (3 * GIB, 2 * GIB)


def test_a_limit_above_the_machine_is_none(machine: tuple[Path, Path]) -> None:
    (machine[1] / "memory.max").write_text(str(2**63 - 4096))
    assert host_memory(*machine).total_bytes == 8 * GIB


def test_this_machine_has_memory() -> None:
    memory = host_memory()
    assert memory.total_bytes >= memory.available_bytes > 0


@pytest.mark.parametrize(
    ("text", "count"),
    [("1024", 1024), ("1.5GiB", 3 * GIB // 2), ("80 GB", 80 * 10**9), ("24Gi", 24 * GIB), ("7kib", 7 * KIB)],
)
def test_amounts_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1 potato", "1e9"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="amount of memory"):
        parse_bytes(text)


@given(st.integers(0, 2**50))
def test_amounts_survive_being_written(count: int) -> None:
    assert parse_bytes(format_bytes(count).replace(" ", "")) == pytest.approx(count, rel=0.05, abs=1)
