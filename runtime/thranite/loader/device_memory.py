"""What a device has: total and free bytes. No torch; a CUDA device's figures come from the process that opened it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from thranite.errors import ConfigError

DeviceKind = Literal["cuda", "cpu", "null"]

KIB, MIB, GIB = 1024, 1024**2, 1024**3
_UNITS = {"": 1, "B": 1, "KIB": KIB, "MIB": MIB, "GIB": GIB, "TIB": 1024 * GIB,
          "KI": KIB, "MI": MIB, "GI": GIB, "TI": 1024 * GIB,
          "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}  # fmt: skip


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """One device. `available_bytes`: not used by anyone when the plan is made, before weights are loaded."""

    kind: DeviceKind
    name: str
    total_bytes: int
    available_bytes: int


def null_memory() -> DeviceMemory:
    """The device that only pretends: it holds nothing."""
    return DeviceMemory("null", "null device", 0, 0)


def host_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> DeviceMemory:
    """The machine's memory, or what the container's cgroup (version 2 or 1) leaves of it."""
    meminfo = _table(proc / "meminfo")
    total, available = meminfo["MemTotal"] * KIB, meminfo["MemAvailable"] * KIB
    for limit, usage, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        if (cap := _number(cgroup / limit)) is not None and cap < total:
            # Clean file pages are given back under pressure, so they count as free.
            reclaimable = _table((cgroup / limit).with_name("memory.stat")).get(cache, 0)
            used = max((_number(cgroup / usage) or 0) - reclaimable, 0)
            total, available = cap, min(available, max(cap - used, 0))
    return DeviceMemory("cpu", "CPU", total, available)


def _number(path: Path) -> int | None:
    """The file's number; None if there is no such file or it says "max"."""
    if not path.is_file():
        return None
    text = path.read_text().strip()
    return int(text) if text.isdigit() else None


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number, such as /proc/meminfo and memory.stat."""
    if not path.is_file():
        return {}
    rows = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2 and row[1].isdigit()}


def format_bytes(count: int) -> str:
    """1536 → "1.5 KiB": three significant digits or so, binary units."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def parse_bytes(text: str) -> int:
    """ "141GiB", "80 GB", "24Gi", "1024" → bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ConfigError(f"{text!r} is not an amount of memory", "write a number and a unit: 141GiB, 80GB, 24Gi")
    return int(float(match[1]) * _UNITS[match[2].upper()])
