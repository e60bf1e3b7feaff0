"""How many sequences may run at once for a token to come as often as it should.

Pure. A step takes longer the more sequences it computes, and no less than their share: time grows at most in proportion
to them. So rows * target / measured never exceeds the number that meets the target while steps are faster than it, and
following it climbs there without passing it; where steps are slower it is what to fall back to. Measured are medians:
a long prompt's steps are bounded by the token budget, and fewer sequences would not make them shorter.
"""

from __future__ import annotations

from statistics import median

WINDOW_STEPS = 8
FIRST = 8  # sequences at the beginning, and never fewer: a target out of reach must not end the service
FASTEST_GROWTH = 2.0  # a window; measured at few sequences, the proportion says little about many
AIM = 0.94  # of the target, in the engine: a step's tokens leave one after another, so clients see a spread besides
TOLERANCE = 0.02  # a measured time so close to the target changes nothing


class ConcurrencyLimit:
    """`limit` is to be kept by the scheduler. `target`: seconds between a sequence's tokens; `most`: the slots."""

    def __init__(self, target: float, most: int) -> None:
        self.limit = min(FIRST, most)
        self._aim, self._least, self._most = AIM * target, min(FIRST, most), most
        self._intervals: list[float] = []
        self._rows: list[int] = []

    def observe(self, interval: float, rows: int, limited: bool) -> None:
        """A step's sequences got their tokens `interval` after their last. `limited`: more would run, were they let."""
        self._intervals.append(interval)
        self._rows.append(rows)
        if len(self._intervals) < WINDOW_STEPS:
            return
        self.limit = self._decide(median(self._intervals), round(median(self._rows)), limited)
        self._intervals.clear()
        self._rows.clear()

    def _decide(self, interval: float, rows: int, limited: bool) -> int:
        ratio = self._aim / max(interval, 1e-9)
        if ratio < 1.0 - TOLERANCE:
            return max(self._least, min(self.limit, int(rows * ratio)))
        if ratio <= 1.0 + TOLERANCE or not limited:
            return self.limit
        wish = int(rows * min(ratio, FASTEST_GROWTH))
        return min(max(wish, self.limit + 1), self._most)
