"""How many server processes a machine gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from thranite.supervisor.cores import MAX_SERVERS, available_cores, default_server_processes


def test_a_container_s_limit_counts(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    unlimited = available_cores(quota)
    assert unlimited >= 1
    quota.write_text("max 100000\n")
    assert available_cores(quota) == unlimited
    quota.write_text("50000 100000\n")
    assert available_cores(quota) == 0.5


@pytest.mark.parametrize(("cores", "count"), [(0.5, 1), (2, 1), (7.9, 1), (8, 2), (16, 4), (256, MAX_SERVERS)])
def test_one_process_for_every_four_cores(cores: float, count: int) -> None:
    assert default_server_processes(cores) == count
