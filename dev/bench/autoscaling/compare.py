"""Every autoscaler against every trace: first tokens missed, replica-hours, and who is better on both.

python -m autoscaling.compare --half held-out --json results.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from autoscaling.plant import Outcome, Plant, Policy
from autoscaling.policies.aibrix import AIBrix
from autoscaling.policies.fixed import AlwaysMax, NeverScale
from autoscaling.policies.hpa import Behavior, Hpa, kv_cache, queue
from autoscaling.policies.keda import Keda
from autoscaling.policies.kubeai import KubeAI
from autoscaling.policies.ours import Ours
from autoscaling.policies.wva import Wva
from autoscaling.service import recorded
from autoscaling.trace_set import ALL
from autoscaling.traces import COLD_STARTS, MAX_REPLICAS, Trace

from thranite_operator.autoscaling.spec import AutoscalingSpec

OURS = "thranite"
HOURS_ALLOWED = 1.1  # of ours: rivals that use no more are those we must not miss more than

POLICIES: dict[str, Callable[[], Policy]] = {
    OURS: lambda: Ours(AutoscalingSpec(max_replicas=MAX_REPLICAS)),
    "HPA, queue": lambda: Hpa("HPA, queue", [(queue, 4.0)]),
    "HPA, KV cache": lambda: Hpa("HPA, KV cache", [(kv_cache, 0.75)]),
    "HPA, both": lambda: Hpa("HPA, both", [(queue, 4.0), (kv_cache, 0.75)]),
    "KEDA": Keda,
    "AIBrix APA": lambda: AIBrix("AIBrix APA", "APA", kv_cache, 0.5),
    "AIBrix KPA": lambda: AIBrix("AIBrix KPA", "KPA", kv_cache, 0.5),
    "AIBrix KPA, summed": lambda: AIBrix("AIBrix KPA, summed", "KPA", kv_cache, 0.5, summed=True),
    "WVA": lambda: Wva("WVA", Behavior()),
    "WVA, its chart's HPA": lambda: Wva(
        "WVA, its chart's HPA", Behavior(up_window=240.0, down_window=240.0, pods_up=10, percent_up=0, period=150.0)
    ),
    "KubeAI": lambda: KubeAI(recorded().slots),
    "never scale": NeverScale,
    "always max": lambda: AlwaysMax(MAX_REPLICAS),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run."""

    policy: str
    trace: str
    kind: str
    half: str
    cold_start: float
    requests: int
    misses: int
    replica_hours: float
    changes: int
    flips: int


def play(trace: Trace, policy: str, cold_start: float) -> Outcome:
    return Plant(trace, POLICIES[policy](), recorded(), cold_start).run()


def _row(job: tuple[str, str, float]) -> Row:
    name, policy, cold_start = job
    trace = next(item for item in ALL if item.name == name)
    outcome = play(trace, policy, cold_start)
    return Row(
        policy=policy,
        trace=name,
        kind=trace.kind,
        half=trace.half,
        cold_start=cold_start,
        requests=outcome.requests,
        misses=outcome.misses,
        replica_hours=outcome.replica_hours,
        changes=outcome.changes,
        flips=outcome.flips,
    )


def run_all(
    traces: Sequence[Trace], policies: Iterable[str], cold_starts: Sequence[float] = COLD_STARTS, jobs: int = 1
) -> list[Row]:
    work = [(trace.name, policy, cold) for policy in policies for trace in traces for cold in cold_starts]
    if jobs == 1:
        return [_row(job) for job in work]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(_row, work, chunksize=4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    policy: str
    requests: int
    misses: int
    replica_hours: float
    changes: int
    flips: int


def total(rows: Iterable[Row], policy: str) -> Total:
    own = [row for row in rows if row.policy == policy]
    return Total(
        policy=policy,
        requests=sum(row.requests for row in own),
        misses=sum(row.misses for row in own),
        replica_hours=sum(row.replica_hours for row in own),
        changes=sum(row.changes for row in own),
        flips=sum(row.flips for row in own),
    )


def shortfalls(rows: Sequence[Row]) -> list[str]:
    """Rivals that miss less with at most 1.1 times our replica-hours; one that is better on both is among them."""
    names = list(dict.fromkeys(row.policy for row in rows))
    ours = total(rows, OURS)
    found = []
    for rival in (total(rows, name) for name in names if name != OURS):
        words = f"{rival.policy}: {rival.misses} misses in {rival.replica_hours:.1f} replica-hours"
        if rival.replica_hours <= HOURS_ALLOWED * ours.replica_hours and rival.misses < ours.misses:
            found.append(f"{words}; ours {ours.misses} in {ours.replica_hours:.1f}")
    return found


def table(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(row.policy for row in rows))
    lines = [
        "| autoscaler | misses | of requests | replica-hours | changes | flips |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for one in sorted((total(rows, name) for name in names), key=lambda item: item.misses):
        share = 100 * one.misses / one.requests
        lines.append(
            f"| {one.policy} | {one.misses:,} | {share:.1f} % | {one.replica_hours:.1f} | {one.changes} | {one.flips} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("tune", "held-out", "both"), default="both")
    parser.add_argument("--policy", action="append", choices=tuple(POLICIES), help="repeatable (default: all)")
    parser.add_argument("--kind", action="append", help="of trace, repeatable (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write every run there")
    args = parser.parse_args(argv)
    traces = [
        trace for trace in ALL if args.half in ("both", trace.half) and (not args.kind or trace.kind in args.kind)
    ]
    rows = run_all(traces, args.policy or POLICIES, jobs=args.jobs)
    for half in dict.fromkeys(row.half for row in rows):
        own = [row for row in rows if row.half == half]
        print(f"\n{half}, {len(own)} runs\n\n{table(own)}\n")
        for words in shortfalls(own) if any(row.policy == OURS for row in own) else ():
            print(f"falls short: {words}")
    if args.json:
        Path(args.json).write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
