"""Replay a recorded trace of the autoscaler through the decision, offline: no cluster, no scraping.

TRACE is a file of JSON lines as the operator records them (docs/autoscaling.md). Each line's pods and replicas are put
to the decision under the given spec, and what it says is printed beside what was decided then. What other decisions
would have done to the load is not computed: every line stands with the replicas that were there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from thranite_operator.autoscaling.decision import Decision, decide
from thranite_operator.autoscaling.spec import AutoscalingSpec
from thranite_operator.autoscaling.specfile import BadSpec, load_spec
from thranite_operator.autoscaling.state import AutoscalerState
from thranite_operator.autoscaling.trace import BadTrace, Moment, from_line


@dataclass(frozen=True, slots=True)
class Replayed:
    """A moment of the trace and what is decided on it now."""

    moment: Moment
    decision: Decision

    @property
    def differs(self) -> bool:
        return self.moment.desired is not None and self.moment.desired != self.decision.desired


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", metavar="TRACE", help="recorded moments, a line of JSON each; - reads stdin")
    parser.add_argument("--spec", required=True, metavar="FILE", help="an InferenceService, or its spec.autoscaling")
    parser.add_argument("--plot", metavar="PNG", help="draw replicas, queue and KV cache use there (needs matplotlib)")
    parser.add_argument("--all", action="store_true", help="print every moment, not only those where something changes")


def run(args: argparse.Namespace) -> int:
    try:
        replayed = list(replay(load_spec(Path(args.spec)), read(args.trace)))
        if args.plot:
            from thranite_operator.autoscaling.plot import draw

            draw(replayed, Path(args.plot))
    except (BadTrace, BadSpec, OSError) as error:
        print(f"thranite-operator simulate: {error}", file=sys.stderr)
        return 1
    for line in report(replayed, everything=args.all):
        print(line)
    return 0


def read(name: str) -> list[Moment]:
    """Raises BadTrace with the line's number."""
    lines = (sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")).splitlines()
    moments: list[Moment] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            moment = from_line(line)
        except BadTrace as error:
            raise BadTrace(f"{name}, line {number}: {error}") from error
        if moments and moment.time < moments[-1].time:
            raise BadTrace(f"{name}, line {number}: its time {moment.time:.0f} lies before that of the line above")
        moments.append(moment)
    if not moments:
        raise BadTrace(f"{name}: there is no line in it")
    return moments


def replay(spec: AutoscalingSpec, moments: Sequence[Moment]) -> Iterator[Replayed]:
    """From an empty state. Where a line says how long replicas take to start, that is what is known from then on."""
    state = AutoscalerState()
    for moment in moments:
        if moment.start_seconds is not None:
            state = replace(state, start_seconds=moment.start_seconds)
        decision = decide(spec, state, moment.pods, moment.current, moment.time)
        state = decision.state
        yield Replayed(moment, decision)


def report(replayed: Sequence[Replayed], *, everything: bool) -> Iterator[str]:
    yield f"{'time':19}  {'replicas':>8}  {'then':>4}  {'now':>4}  reason"
    before = None
    for item in replayed:
        moment, decision = item.moment, item.decision
        if everything or item.differs or decision.desired != moment.current or decision.reason != before:
            when = datetime.fromtimestamp(moment.time, UTC).strftime("%Y-%m-%d %H:%M:%S")
            then = "" if moment.desired is None else str(moment.desired)
            mark = "*" if item.differs else " "
            size = f"{moment.current:8}  {then:>4}  {decision.desired:4}{mark}"
            yield f"{when}  {size} {decision.reason}: {decision.message}"
        before = decision.reason
    changes = sum(item.decision.desired != item.moment.current for item in replayed)
    differing = sum(item.differs for item in replayed)
    yield f"{len(replayed)} moments, {changes} changes, {differing} decided otherwise than then (*)"
