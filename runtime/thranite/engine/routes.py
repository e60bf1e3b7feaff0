"""Which connection each open request belongs to. Touched by the step loop's thread alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from thranite.request import EngineRequest, SequenceDelta

Row = tuple[int, SequenceDelta]  # (handle, delta)


@dataclass(frozen=True, slots=True)
class Route:
    """One open request: its connection, its handle there, and its unfinished samples (the set is changed in place)."""

    connection: int
    handle: int
    unfinished: set[int]


class Routes:
    def __init__(self) -> None:
        self._by_id: dict[str, Route] = {}
        self._by_handle: dict[tuple[int, int], str] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    def add(self, connection: int, handle: int, request: EngineRequest) -> None:
        self._by_id[request.request_id] = Route(connection, handle, set(range(request.params.n)))
        self._by_handle[connection, handle] = request.request_id

    def request_id(self, connection: int, handle: int) -> str | None:
        """The open request of that handle, if it is still open."""
        return self._by_handle.get((connection, handle))

    def remove(self, request_id: str) -> None:
        route = self._by_id.pop(request_id)
        del self._by_handle[route.connection, route.handle]

    def end_sample(self, request_id: str, index: int) -> None:
        """Sample `index` brings nothing more; with the last one the request is forgotten."""
        route = self._by_id[request_id]
        route.unfinished.discard(index)
        if not route.unfinished:
            self.remove(request_id)

    def of_connection(self, connection: int) -> list[str]:
        return [request_id for request_id, route in self._by_id.items() if route.connection == connection]

    def split(self, deltas: Iterable[SequenceDelta]) -> dict[int, tuple[Row, ...]]:
        """Deltas by connection. Those of requests and samples that are no longer open are dropped."""
        rows: dict[int, list[Row]] = {}
        for delta in deltas:
            route = self._by_id.get(delta.request_id)
            if route is None or delta.index not in route.unfinished:
                continue
            rows.setdefault(route.connection, []).append((route.handle, delta))
            if delta.finish_reason is not None:
                self.end_sample(delta.request_id, delta.index)
        return {connection: tuple(mine) for connection, mine in rows.items()}
