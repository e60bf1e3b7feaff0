"""A load over time, and what goes wrong meanwhile. All of it follows from names and fixed figures."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from autoscaling.replica import Request

Half = Literal["tune", "held-out"]

HOUR = 3600.0
PROMPT_TOKENS, OUTPUT_TOKENS = (8, 64), (16, 112)
COLD_STARTS = (30.0, 120.0, 300.0)
MAX_REPLICAS = 12
PLENTY = 100  # GPUs


@dataclass(frozen=True)
class Outage:
    """From `start` to `end` no metrics come from `share` of the pods (by their names)."""

    start: float
    end: float
    share: float

    def covers(self, uid: str, now: float) -> bool:
        return self.start <= now < self.end and random.Random(uid).random() < self.share


@dataclass(frozen=True)
class Trace:
    """`rate`: requests per second over time; `peak` bounds it. `replicas`: there when it begins."""

    name: str
    kind: str
    half: Half
    seconds: float
    rate: Callable[[float], float]
    peak: float
    replicas: int
    outages: tuple[Outage, ...] = ()
    gpus: int = PLENTY
    max_replicas: int = MAX_REPLICAS

    def requests(self) -> list[Request]:
        """A Poisson process of this rate, thinned; lengths are drawn evenly."""
        draw = random.Random(f"{self.name}/arrivals")
        return list(self._thinned(draw))

    def _thinned(self, draw: random.Random) -> Iterator[Request]:
        now = 0.0
        while (now := now + draw.expovariate(self.peak)) < self.seconds:
            if draw.random() * self.peak < self.rate(now):
                yield Request(now, draw.randint(*PROMPT_TOKENS), draw.randint(*OUTPUT_TOKENS))

    def lost(self, uid: str, now: float) -> bool:
        return any(outage.covers(uid, now) for outage in self.outages)
