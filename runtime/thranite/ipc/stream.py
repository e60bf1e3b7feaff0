"""One open request on the client's side: deltas in, an async iterator out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from thranite.errors import EngineDead
from thranite.request import FinishReason, SequenceDelta


class RequestStream:
    """Iterates over a request's deltas until each of its `n` sequences has ended or was stopped.

    For one consumer on the client's event loop. `aclose()` before the end aborts the request.
    """

    def __init__(self, request_id: str, n: int, abort: Callable[[], None]) -> None:
        self.request_id = request_id
        self._abort = abort
        self._open = set(range(n))
        self._deltas: deque[SequenceDelta] = deque()
        self._error: EngineDead | None = None
        self._news = asyncio.Event()

    @property
    def finished(self) -> bool:
        """Whether no further delta can come; some may still wait to be read."""
        return not self._open

    @property
    def ready(self) -> bool:
        """Whether the iterator's next step needs no wait."""
        return bool(self._deltas) or not self._open or self._error is not None

    def push(self, delta: SequenceDelta) -> None:
        """A delta from the engine. Those of sequences that have ended are dropped."""
        if delta.index not in self._open:
            return
        if delta.finish_reason is not None:
            self._open.discard(delta.index)
        self._deltas.append(delta)
        self._news.set()

    def stop(self, index: int) -> None:
        """Sequence `index` is complete: nothing more comes for it."""
        self._open.discard(index)
        self._deltas = deque(delta for delta in self._deltas if delta.index != index)
        self._news.set()

    def cancel(self) -> None:
        """The request is aborted: the iterator ends at once."""
        self._open.clear()
        self._deltas.clear()
        self._news.set()

    def cut_off(self, message: str) -> None:
        """Give each unfinished sequence a final delta."""
        for index in sorted(self._open):
            self.push(SequenceDelta(self.request_id, index, (), FinishReason.ABORT, error=message))

    def fail(self, error: EngineDead) -> None:
        """The engine is gone: the iterator raises `error` after what has already come."""
        self._error = error
        self._news.set()

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> SequenceDelta:
        while not self._deltas:
            if not self._open:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._news.clear()
            await self._news.wait()
        return self._deltas.popleft()

    async def aclose(self) -> None:
        if self._open and self._error is None:
            self._abort()
