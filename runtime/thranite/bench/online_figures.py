"""What the clients of one run saw, as the figures by which servers are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from thranite.bench.http_stream import StreamRecord


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all lie below; nan of none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True, slots=True)
class OnlineFigures:
    """Times of requests in milliseconds; `seconds` from the run's beginning to the last event.

    TTFT: from sending to the first event. TPOT: a request's time between its first and its last token, by token.
    ITL: between two events of a request.
    """

    rate: float
    requests: int
    failed: int
    seconds: float
    output_tokens_a_second: float
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    tpot_p99: float
    itl_p50: float
    itl_p99: float
    e2e_p50: float
    e2e_p99: float
    first_error: str | None = None

    def record(self) -> dict[str, Any]:
        """For JSON, which has no nan."""
        fields = {name: None if value != value else value for name, value in asdict(self).items()}
        return {**fields, "rate": str(self.rate)}


def figures(rate: float, records: Sequence[StreamRecord], begin: float) -> OnlineFigures:
    good = [record for record in records if record.ok and record.arrivals]
    bad = [record for record in records if not (record.ok and record.arrivals)]
    seconds = max((record.arrivals[-1] for record in good), default=begin) - begin
    tokens = sum(record.completion_tokens or 0 for record in good)
    first = [1000 * (record.arrivals[0] - record.started) for record in good]
    whole = [1000 * (record.arrivals[-1] - record.started) for record in good]
    between = [1000 * (b - a) for r in good for a, b in zip(r.arrivals, r.arrivals[1:], strict=False)]
    each = [
        1000 * (record.arrivals[-1] - record.arrivals[0]) / (record.completion_tokens - 1)
        for record in good
        if record.completion_tokens is not None and record.completion_tokens > 1
    ]
    return OnlineFigures(
        rate=rate,
        requests=len(records),
        failed=len(bad),
        seconds=seconds,
        output_tokens_a_second=tokens / seconds if seconds else 0.0,
        ttft_p50=percentile(first, 0.5),
        ttft_p99=percentile(first, 0.99),
        tpot_p50=percentile(each, 0.5),
        tpot_p99=percentile(each, 0.99),
        itl_p50=percentile(between, 0.5),
        itl_p99=percentile(between, 0.99),
        e2e_p50=percentile(whole, 0.5),
        e2e_p99=percentile(whole, 0.99),
        first_error=(bad[0].error or "no event came") if bad else None,
    )


HEAD = ("requests/s", "requests", "failed", "TTFT p50 / p99", "TPOT p50 / p99", "ITL p50 / p99", "E2E p50 / p99", "s",
        "output tok/s")  # fmt: skip


def row(run: OnlineFigures) -> tuple[str, ...]:
    return (
        "all at once" if run.rate == float("inf") else f"{run.rate:g}",
        str(run.requests),
        str(run.failed),
        f"{run.ttft_p50:,.1f} / {run.ttft_p99:,.1f}",
        f"{run.tpot_p50:.2f} / {run.tpot_p99:.2f}",
        f"{run.itl_p50:.1f} / {run.itl_p99:.1f}",
        f"{run.e2e_p50:,.0f} / {run.e2e_p99:,.0f}",
        f"{run.seconds:.2f}",
        f"{run.output_tokens_a_second:,.0f}",
    )


def table(runs: Sequence[OnlineFigures]) -> str:
    lines = [HEAD, tuple("---" for _ in HEAD), *(row(run) for run in runs)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
