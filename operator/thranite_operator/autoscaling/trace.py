"""What decisions were made from, a line of JSON each: to be replayed offline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from thranite_operator.autoscaling.sample import Load, PodSample, Rates


class BadTrace(ValueError):
    """A line that is none of a trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """`desired` is what was decided then; None where a trace comes from elsewhere."""

    time: float
    current: int
    pods: tuple[PodSample, ...]
    start_seconds: float | None = None
    desired: int | None = None


def to_line(moment: Moment) -> str:
    return json.dumps(asdict(moment), separators=(",", ":"))


def from_line(line: str) -> Moment:
    """Raises BadTrace, which says what is wrong."""
    try:
        data = json.loads(line)
        pods = tuple(_pod(item) for item in data.pop("pods"))
        return Moment(pods=pods, **data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadTrace(f"no moment of a trace: {type(error).__name__}: {error}") from error


def _pod(data: Mapping[str, Any]) -> PodSample:
    load = data.get("load")
    return PodSample(uid=data["uid"], phase=data["phase"], load=_load(load) if load is not None else None)


def _load(data: Mapping[str, Any]) -> Load:
    rates = data.get("rates")
    plain = {key: value for key, value in data.items() if key != "rates"}
    return Load(**plain, rates=Rates(**rates) if rates is not None else None)
