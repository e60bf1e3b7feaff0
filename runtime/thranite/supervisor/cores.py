"""How many processor cores this process may use, and how many server processes suit them."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "QUOTA PERIOD" in microseconds, or "max PERIOD"
CORES_PER_SERVER = 4  # the engine, its socket thread, tokenizer threads and the client's side of the kernel want theirs
MAX_SERVERS = 8


def available_cores(quota: Path = CGROUP_QUOTA) -> float:
    """The smaller of the affinity mask and the container's CPU limit."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        limit, period = quota.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores  # no control group version 2: no limit that could be read
    return cores if limit == "max" else min(cores, int(limit) / int(period))


def default_server_processes(cores: float) -> int:
    """One for each CORES_PER_SERVER cores: one process sends the tokens of an 8B model, more shorten its queues."""
    return max(1, min(MAX_SERVERS, int(cores // CORES_PER_SERVER)))
