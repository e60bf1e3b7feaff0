"""The few metric families that a decision needs, out of Prometheus' text format.

Thousands of answers come every few seconds, so one expression goes over the bytes and all else is skipped. It relies on
what Prometheus' clients write: no blank before the braces, no '}' in label values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

WAITING = "thranite_requests_waiting"
RUNNING = "thranite_requests_running"
KV_CACHE = "thranite_kv_cache_usage_ratio"
RECEIVED = "thranite_requests_received_total"
FINISHED = "thranite_requests_finished_total"
REJECTED = "thranite_requests_rejected_total"
FAMILIES = (WAITING, RUNNING, KV_CACHE, RECEIVED, FINISHED, REJECTED)
QUERY = "&".join(f"name[]={family}" for family in FAMILIES)

SERVED = (b"stop", b"length")  # finished reasons of requests that were served to their end
TURNED_AWAY = b"queue_full"
INVALID = b"invalid"

_SAMPLE = re.compile(rb"^thranite_(\w+)(?:\{([^}\n]*)\})? ([^ \n]+)", re.MULTILINE)
_REASON = re.compile(rb'(?:^|,)reason="(\w+)"')
_PREFIX = len("thranite_")


class Incomplete(ValueError):
    """An answer without some of the families, or not in the format."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Of all models of a pod together, the KV cache's use that of the fullest. Counters are totals since the runtime's
    start; `received` is without invalid requests."""

    waiting: float
    running: float
    kv_cache_usage: float
    received: float
    finished: float
    rejected: float
    models: int = 1


def parse(body: bytes) -> Reading:
    """Raises Incomplete."""
    gauges: dict[str, float] = {}
    finished = rejected = invalid = 0.0
    models = 0
    for raw, labels, text in _SAMPLE.findall(body):
        name, value = raw.decode(), _number(text)
        before = gauges.get(name, 0.0)
        gauges[name] = max(before, value) if name == _KV_CACHE else before + value
        models += name == _WAITING
        if name in (_FINISHED, _REJECTED):
            match = _REASON.search(labels)
            reason = match[1] if match else b""
            finished += value if name == _FINISHED and reason in SERVED else 0.0
            rejected += value if name == _REJECTED and reason == TURNED_AWAY else 0.0
            invalid += value if name == _REJECTED and reason == INVALID else 0.0
    missing = [family for family in FAMILIES if family[_PREFIX:] not in gauges]
    if missing:
        raise Incomplete(f"the answer lacks {missing[0]}")
    return Reading(
        waiting=gauges[_WAITING],
        running=gauges[_RUNNING],
        kv_cache_usage=gauges[_KV_CACHE],
        received=gauges[_RECEIVED] - invalid,
        finished=finished,
        rejected=rejected,
        models=models,
    )


def _number(text: bytes) -> float:
    try:
        value = float(text)
    except ValueError:
        raise Incomplete(f"{text.decode(errors='replace')!r} is no number") from None
    if not 0 <= value < float("inf"):
        raise Incomplete(f"{value} cannot be: all these are counts and shares")
    return value


_WAITING, _RUNNING, _KV_CACHE = WAITING[_PREFIX:], RUNNING[_PREFIX:], KV_CACHE[_PREFIX:]
_RECEIVED, _FINISHED, _REJECTED = RECEIVED[_PREFIX:], FINISHED[_PREFIX:], REJECTED[_PREFIX:]
