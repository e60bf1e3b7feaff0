"""The plots of docs/autoscaling.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoscaling.compare import BY_HAND, HOURS_ALLOWED, OURS, POLICIES, Row, play, total
from autoscaling.plant import FIRST_TOKEN_SECONDS
from autoscaling.replica import Replica, Request
from autoscaling.service import Service, recorded
from autoscaling.trace_set import HELD_OUT, UNIT, steps, trace
from autoscaling.traces import Trace
from matplotlib import pyplot as plt

plt.switch_backend("Agg")  # files alone, no window
FOLLOWED = (OURS, "KubeAI", "HPA, both", "KEDA")
DPI = 80
LEVELS = (0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)


def draw_all(rows: Sequence[Row], folder: Path) -> None:
    frontier([row for row in rows if row.half == "held-out"], folder / "autoscaling-frontier.png")
    for kind in ("step", "diurnal"):
        shown = next(item for item in HELD_OUT if item.kind == kind)
        follow(shown, 120.0, folder / f"autoscaling-{kind}.png")
    utilization(folder / "autoscaling-utilization.png")


def frontier(rows: Sequence[Row], path: Path) -> None:
    """Misses over replica-hours; what lies left of the dashed line is within our allowance."""
    _, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for one in (total(rows, name) for name in POLICIES):
        share = 100 * one.misses / one.requests
        color = "tab:red" if one.policy == OURS else "tab:gray" if one.policy in BY_HAND else "tab:blue"
        axes.scatter(one.replica_hours, share, color=color, zorder=2)
        axes.annotate(one.policy, (one.replica_hours, share), xytext=(5, 3), textcoords="offset points", fontsize=8)
    axes.axvline(HOURS_ALLOWED * total(rows, OURS).replica_hours, color="gray", linestyle="--", linewidth=1)
    axes.set(xlabel="replica-hours", ylabel="first tokens late or never, %", yscale="log")
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    _save(path)


def follow(shown: Trace, cold_start: float, path: Path) -> None:
    """One trace: wished and ready replicas, and requests that wait."""
    _, axes = plt.subplots(
        len(FOLLOWED) + 1,
        1,
        sharex=True,
        figsize=(8, 8),
        layout="constrained",
        height_ratios=[1] + [1.3] * len(FOLLOWED),
    )
    minutes = [second / 60 for second in range(0, int(shown.seconds), 15)]
    axes[0].plot(minutes, [shown.rate(60 * minute) for minute in minutes], color="black")
    axes[0].set_ylabel("requests/s")
    axes[0].set_title(f"{shown.name}, cold start {cold_start:.0f} s", fontsize=10)
    for name, row in zip(FOLLOWED, axes[1:], strict=True):
        outcome = play(shown, name, cold_start)
        times = [time / 60 for time, _, _, _ in outcome.samples]
        row.step(times, [wish for _, wish, _, _ in outcome.samples], where="post", linestyle=":", label="wished")
        row.step(times, [ready for _, _, ready, _ in outcome.samples], where="post", label="ready")
        row.set_ylabel("replicas")
        row.set_ylim(0, 13)
        right = row.twinx()
        right.fill_between(times, [queue for _, _, _, queue in outcome.samples], color="tab:red", alpha=0.3)
        right.set_ylim(0, 400)
        right.set_ylabel("waiting", color="tab:red")
        row.set_title(f"{name}: {outcome.misses} misses, {outcome.replica_hours:.1f} replica-hours", fontsize=9)
    axes[1].legend(loc="upper right", fontsize=8)
    axes[-1].set_xlabel("minutes")
    _save(path)


def utilization(path: Path) -> None:
    """Late first tokens of one replica by its load; also of one with four times the slots and cache."""
    _, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    small = recorded()
    large = replace(small, slots=4 * small.slots, kv_tokens=4 * small.kv_tokens, max_waiting=4 * small.max_waiting)
    for service in (small, large):
        rate = full_rate(service)
        shares = [100 * late_share(service, level * rate) for level in LEVELS]
        axes.plot(LEVELS, shares, marker="o", label=f"{service.slots} sequences")
    axes.set(xlabel="arrivals ÷ service rate", ylabel="first tokens after 2 s, %")
    axes.legend()
    axes.grid(alpha=0.3)
    _save(path)


def full_rate(service: Service) -> float:
    """Requests per second that a replica finishes when more come than it can take."""
    replica, flood = _under(service, 5.0)
    return replica.scrape(flood.seconds).requests_finished_total / flood.seconds


def late_share(service: Service, rate: float) -> float:
    """Of steady arrivals over four hours."""
    replica, load = _under(service, rate)
    replica.advance(load.seconds + 600)
    late = [request.first_token - request.arrival > FIRST_TOKEN_SECONDS for request in load.requests]
    return sum(late) / len(late)


@dataclass(frozen=True)
class Steady:
    """Requests at one rate."""

    seconds: float
    requests: list[Request]


def _under(service: Service, rate: float) -> tuple[Replica, Steady]:
    level = trace("step", round(100 * rate), "tune", steps([(0, rate / UNIT)]), hours=4.0)
    load = Steady(level.seconds, level.requests())
    replica = Replica(service, 0.0)
    for request in load.requests:
        replica.offer(request)
    return replica, load


def _save(path: Path) -> None:
    plt.savefig(path, dpi=DPI)
    plt.close()
