"""Stop strings over streamed text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopMatch:
    """What `StopStrings.feed` found: text that may be sent, and the stop string that ended it, if one did."""

    text: str
    stop: str | None = None


class StopStrings:
    """Finds the stop string that is complete first (of those that end together, the longest), however text is cut.

    Holds back the end of the text while it may be the beginning of a stop string. Nothing may be fed after a match.
    """

    def __init__(self, stops: Sequence[str], include_in_output: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include_in_output
        self._held = ""
        self._disarmed = 0  # characters of `held` where no stop string may end

    def feed(self, text: str, armed: bool = True) -> StopMatch:
        """`armed=False` (before min_tokens): stop strings that end within `text` do not count."""
        if not self._stops:
            return StopMatch(text)
        buffer = self._held + text
        if not armed:
            self._disarmed = len(buffer)
        elif (found := self._first_match(buffer)) is not None:
            start, stop = found
            self._held = ""
            return StopMatch(buffer[: start + len(stop)] if self._include else buffer[:start], stop)
        cut = len(buffer) - self._begun(buffer)
        self._held = buffer[cut:]
        self._disarmed = max(self._disarmed - cut, 0)
        return StopMatch(buffer[:cut])

    def flush(self) -> str:
        """The held text, once no more will come."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, buffer: str) -> tuple[int, str] | None:
        matches = []
        for stop in self._stops:
            start = buffer.find(stop, max(self._disarmed - len(stop) + 1, 0))
            if start >= 0:
                matches.append((start + len(stop), start, stop))
        if not matches:
            return None
        _, start, stop = min(matches)
        return start, stop

    def _begun(self, buffer: str) -> int:
        """Length of the longest end of `buffer` with which a stop string begins."""
        return max((_overlap(buffer, stop) for stop in self._stops), default=0)


def _overlap(buffer: str, stop: str) -> int:
    """The largest k < len(stop) for which `buffer` ends with stop[:k]."""
    if not buffer:
        return 0
    last = buffer[-1]
    at = stop.rfind(last, 0, min(len(stop) - 1, len(buffer)))
    while at >= 0:
        if buffer.endswith(stop[: at + 1]):
            return at + 1
        at = stop.rfind(last, 0, at)
    return 0
