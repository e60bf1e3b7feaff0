"""What is known of the server processes: who is ready, who is silent, what is open; and when a dead one is replaced.

Pure: inputs are noted, time is passed in. A server process holds no weights, so its death costs only the requests that
were open on it: a new one takes over its socket, where new connections wait meanwhile. One that keeps dying has a cause
that a replacement does not cure: then the server ends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from thranite.ipc.control import ServerBeat

SILENCE_SECONDS = 30.0  # a server process that says nothing for so long hangs: beats come four times a second
MAX_GAP_SECONDS = 1.0  # a supervisor that was itself stopped does not blame its children
MAX_DEATHS = 3  # within DEATH_WINDOW_SECONDS; the next one ends the server
DEATH_WINDOW_SECONDS = 60.0


def server_names(count: int) -> tuple[str, ...]:
    return ("server",) if count == 1 else tuple(f"server-{number}" for number in range(1, count + 1))


@dataclass(slots=True)
class _Server:
    """`silent`: seconds since the last beat, counted once it is ready."""

    ready: bool = False
    beat: ServerBeat = field(default_factory=lambda: ServerBeat(0, False))
    silent: float = 0.0


class Fleet:
    """All server processes of one supervisor, by name."""

    def __init__(self, count: int, now: float) -> None:
        self._servers = {name: _Server() for name in server_names(count)}
        self._last = now
        self._deaths: deque[float] = deque()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._servers)

    @property
    def all_ready(self) -> bool:
        return all(server.ready for server in self._servers.values())

    @property
    def any_ready(self) -> bool:
        return any(server.ready for server in self._servers.values())

    @property
    def ready_names(self) -> set[str]:
        return {name for name, server in self._servers.items() if server.ready}

    @property
    def open_requests(self) -> int:
        return sum(server.beat.open_requests for server in self._servers.values())

    @property
    def all_refusing(self) -> bool:
        """Whether each one confirmed that it refuses new requests."""
        return all(server.beat.refusing for server in self._servers.values())

    def ready(self, name: str) -> None:
        self._servers[name].ready = True

    def beat(self, name: str, beat: ServerBeat) -> None:
        server = self._servers[name]
        server.beat, server.silent = beat, 0.0

    def ended(self, name: str, now: float) -> bool:
        """Note a process's end, and what was open on it. Whether it is to be replaced."""
        self._servers[name] = _Server()
        while self._deaths and now - self._deaths[0] > DEATH_WINDOW_SECONDS:
            self._deaths.popleft()
        self._deaths.append(now)
        return len(self._deaths) <= MAX_DEATHS

    def advance(self, now: float) -> list[str]:
        """Let time pass; the processes that hang by now. Each is named once."""
        gap, self._last = min(now - self._last, MAX_GAP_SECONDS), now
        hung = []
        for name, server in self._servers.items():
            if not server.ready:
                continue
            before, server.silent = server.silent, server.silent + gap
            if before <= SILENCE_SECONDS < server.silent:
                hung.append(name)
        return hung
