"""What the engine's metrics and the processes' CPU time say of one run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serve_process import Server, cpu_seconds

MEANS = {
    "TTFT": "thranite_time_to_first_token_seconds",
    "queue": "thranite_request_queue_time_seconds",
    "prefill": "thranite_request_prefill_time_seconds",
    "inter-token": "thranite_inter_token_latency_seconds",
    "tokens a step": "thranite_iteration_tokens",
}
HOST, STEPS = "thranite_engine_host_seconds_total", "thranite_engine_steps_total"
SAMPLE = re.compile(r"(\w+)\{[^}]*\} (\S+)")
ROLES = {"engine": "engine_process", "rank": "rank_process", "servers": "server.process"}


@dataclass(frozen=True, slots=True)
class Look:
    """Sums so far: samples by name, CPU seconds by role."""

    samples: Mapping[str, float]
    cpu: Mapping[str, float]


def look(server: Server) -> Look:
    names = [*(f"{name}{end}" for name in MEANS.values() for end in ("_sum", "_count")), HOST, STEPS]
    found = dict.fromkeys(names, 0.0)
    for name, value in SAMPLE.findall(server.get("/metrics")):
        if name in found:
            found[name] = float(value)
    cpu = dict.fromkeys(ROLES, 0.0)
    for pid in server.pids:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        for role, module in ROLES.items():
            if module in command:
                cpu[role] += cpu_seconds([pid])
    return Look(found, cpu)


@dataclass(frozen=True, slots=True)
class Inside:
    """`means`: in milliseconds or tokens. `host`: Python's milliseconds a step. `cpu`: seconds by role."""

    means: Mapping[str, float]
    host: float
    steps: int
    cpu: Mapping[str, float]

    @classmethod
    def between(cls, before: Look, after: Look) -> Inside:
        grown = {name: value - before.samples[name] for name, value in after.samples.items()}
        means = {}
        for short, name in MEANS.items():
            scale = 1000.0 if name.endswith("_seconds") else 1.0
            means[short] = scale * grown[name + "_sum"] / max(grown[name + "_count"], 1.0)
        steps = grown[STEPS]
        cpu = {role: seconds - before.cpu[role] for role, seconds in after.cpu.items()}
        return cls(means, 1000 * grown[HOST] / max(steps, 1.0), int(steps), cpu)

    def line(self) -> str:
        means = ", ".join(f"{name} {value:.2f}" for name, value in self.means.items())
        cpu = ", ".join(f"{role} {seconds:.2f}" for role, seconds in self.cpu.items() if seconds)
        return f"engine's means: {means}; {self.steps} steps, host {self.host:.3f} ms each; CPU seconds: {cpu}"
