"""How long pods take to start, learned from those that were seen to start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from thranite_operator.pods import Pod, parse_time

WEIGHT = 0.3  # of a new sample


@dataclass(frozen=True, slots=True)
class StartTimes:
    """`since`: readiness from before is no news, unless nothing is known at all. `counted`: pods by uid, each once."""

    since: datetime
    counted: frozenset[str] = frozenset()

    def learn(self, known: int | None, pods: Sequence[Pod]) -> tuple[int | None, StartTimes]:
        counted = self.counted & {pod.uid for pod in pods}
        for pod in sorted(pods, key=lambda item: item.ready_at or ""):
            sample = pod.start_seconds
            if sample is None or pod.uid in counted or pod.ready_at is None:
                continue
            counted |= {pod.uid}
            if known is None:
                known = sample
            elif parse_time(pod.ready_at) >= self.since:
                known = round(known + WEIGHT * (sample - known))
        return known, StartTimes(self.since, counted)
