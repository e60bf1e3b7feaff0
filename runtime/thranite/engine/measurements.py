"""Where requests' time goes, observed by the step loop: once a step, and once as a request begins and ends.

Sequences that decode together got their last tokens together, so a step's inter-token times are few values with counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from thranite.engine.histograms import BOUNDS, Histogram, HistogramCounts
from thranite.engine.sequence import RequestState, Sequence


class Measurements:
    """All histograms of one engine. Times are seconds of its clock."""

    def __init__(self) -> None:
        self._histograms = {name: Histogram(bounds) for name, bounds in BOUNDS.items()}
        self._step_tokens = self._histograms["step_tokens"]
        self._inter_token = self._histograms["inter_token_seconds"]

    def planned(self, tokens: int, prefills: Iterable[Sequence], now: float) -> None:
        """A step of so many tokens begins; requests whose prompt it begins are scheduled by it."""
        self._step_tokens.observe(tokens)
        for seq in prefills:
            if seq.parent.scheduled is None:
                seq.parent.scheduled = now

    def first_token(self, seq: Sequence, now: float) -> None:
        """A sequence's first token; the request's, if no sibling had one before."""
        if seq.parent.first_token is None:
            seq.parent.first_token = now
            self._observe("first_token_seconds", now - seq.parent.arrival)

    def tokens(self, rows_since: Mapping[float, int], now: float) -> None:
        """So many sequences got news now whose last had come at that time."""
        for since, rows in rows_since.items():
            self._inter_token.observe(now - since, rows)

    def finished(self, parent: RequestState, now: float) -> None:
        """A request ended, for whatever reason; stretches of it that never began are left out."""
        generated = [seq.generated for seq in parent.sequences]
        params = parent.request.params
        self._observe("request_seconds", now - parent.arrival)
        self._observe("prompt_tokens", parent.leader.prompt_len)
        self._observe("generation_tokens", sum(generated))
        self._observe("longest_generation_tokens", max(generated))
        self._observe("params_max_tokens", params.max_tokens)
        self._observe("params_n", params.n)
        if parent.scheduled is not None:
            self._observe("queue_seconds", parent.scheduled - parent.arrival)
            self._decoded(parent, parent.scheduled, max(generated))

    def _decoded(self, parent: RequestState, scheduled: float, longest: int) -> None:
        last = max((seq.token_at for seq in parent.sequences if seq.token_at is not None), default=None)
        if parent.first_token is None or last is None:
            return
        self._observe("prefill_seconds", parent.first_token - scheduled)
        self._observe("decode_seconds", last - parent.first_token)
        self._observe("inference_seconds", last - scheduled)
        if longest > 1:
            self._observe("request_token_seconds", (last - parent.first_token) / (longest - 1))

    def _observe(self, name: str, value: float) -> None:
        self._histograms[name].observe(value)

    def snapshot(self) -> dict[str, HistogramCounts]:
        return {name: histogram.snapshot() for name, histogram in self._histograms.items()}
