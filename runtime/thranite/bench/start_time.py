"""How long a start took, from the process's exec on, stage by stage, and whether kernels had to be compiled for it."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class StartTimes:
    """A `thranite.engine.progress.Progress` that keeps the stages' seconds; `imports` counts from exec, if known."""

    imports: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    compiled: int | None = None  # kernels that Triton compiled, not found in its cache on disk; None: not on a GPU
    _stage: tuple[str, float] | None = None

    def stage(self, name: str) -> None:
        self.finish()
        self._stage = (name, time.perf_counter())

    def advance(self, done: int, total: int) -> None:
        return

    def note(self, text: str) -> None:
        return

    def finish(self) -> None:
        """The last stage is over."""
        if self._stage is not None:
            name, began = self._stage
            self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - began
            self._stage = None

    @property
    def ready_seconds(self) -> float:
        """From exec; where that is not known, from the first stage."""
        return (self.imports or 0.0) + sum(self.stages.values())

    def line(self) -> str:
        stages = dict(self.stages) if self.imports is None else {"Python and imports": self.imports, **self.stages}
        since = "the load's beginning" if self.imports is None else "exec"
        kind = " (Triton's cache was warm)" if self.compiled == 0 else ""
        if self.compiled:
            kind = f" (first start: {self.compiled} kernels compiled)"
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items())
        return f"ready {self.ready_seconds:.1f} s after {since}{kind}: {parts}"


def seconds_since_exec() -> float | None:
    """Of this process, from Linux's process table (to a hundredth of a second); None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22, the state being field 3
    return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 0.0)
