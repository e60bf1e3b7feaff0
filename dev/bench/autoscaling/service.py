"""Service times as recorded from the engine (`record_service.py`), and the limits of a replica made of them."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

RECORDED = Path(__file__).with_name("service.json")


@dataclass(frozen=True)
class Service:
    """One replica. `table`: seconds of an engine step by the tokens it computes (decoding sequences count one each).

    `kv_tokens`: of the KV cache; `max_waiting`: beyond it requests are refused (429).
    """

    table: tuple[tuple[int, float], ...]
    slots: int
    kv_tokens: int
    max_waiting: int

    def step_seconds(self, tokens: int) -> float:
        return self._seconds[tokens] if tokens < len(self._seconds) else self._interpolated(tokens)

    @cached_property
    def _seconds(self) -> tuple[float, ...]:
        return tuple(self._interpolated(tokens) for tokens in range(2048))

    def _interpolated(self, tokens: int) -> float:
        """Linear between the recorded points, and beyond them as the last two go on."""
        counts = [count for count, _ in self.table]
        right = min(max(bisect_left(counts, tokens), 1), len(counts) - 1)
        (x0, y0), (x1, y1) = self.table[right - 1], self.table[right]
        return y0 + (y1 - y0) * (max(tokens, counts[0]) - x0) / (x1 - x0)


def recorded(path: Path = RECORDED, *, kv_tokens: int = 1152, max_waiting: int = 64) -> Service:
    """The KV cache is nearly full when all slots are taken, as on a GPU whose memory sets the number of sequences."""
    record = json.loads(path.read_text())
    return Service(step_table(record), record["slots"], kv_tokens, max_waiting)


def step_table(record: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    """Seconds by tokens. A step costs what its tokens cost, prompt or not; contexts are averaged. Made monotonic: a
    step with more tokens never takes less."""
    by_tokens: dict[int, list[float]] = {}
    for rows, _, seconds in record["decode"]:
        by_tokens.setdefault(rows, []).append(seconds)
    for tokens, seconds in record["prompt"]:
        by_tokens.setdefault(tokens, []).append(seconds)
    table: list[tuple[int, float]] = []
    for tokens in sorted(by_tokens):
        seconds = mean(by_tokens[tokens])
        table.append((tokens, max(seconds, table[-1][1] if table else 0.0)))
    return tuple(table)
