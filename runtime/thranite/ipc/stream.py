"""One open request on the client's side: deltas in, and out again in the order of their coming."""

from __future__ import annotations

import asyncio

from thranite.errors import EngineDead
from thranite.request import FinishReason, SequenceDelta


class RequestStream:
    """A `DeltaStream`: a request's deltas until each of its `n` sequences has ended or was stopped.

    For one consumer on the client's event loop.
    """

    def __init__(self, request_id: str, n: int) -> None:
        self.request_id = request_id
        self._open = set(range(n))
        self._deltas: list[SequenceDelta] = []
        self._error: EngineDead | None = None
        self._waiter: asyncio.Future[None] | None = None  # the consumer's, while it waits

    @property
    def finished(self) -> bool:
        """Whether no further delta can come; some may still wait to be read."""
        return not self._open

    def push(self, delta: SequenceDelta) -> None:
        """A delta from the engine. Those of sequences that have ended are dropped."""
        if delta.index not in self._open:
            return
        if delta.finish_reason is not None:
            self._open.discard(delta.index)
        self._deltas.append(delta)
        self._wake()

    def stop(self, index: int) -> None:
        """Sequence `index` is complete: nothing more comes for it."""
        self._open.discard(index)
        self._deltas = [delta for delta in self._deltas if delta.index != index]
        self._wake()

    def cancel(self) -> None:
        """The request is aborted: the stream ends at once."""
        self._open.clear()
        self._deltas.clear()
        self._wake()

    def cut_off(self, message: str) -> None:
        """Give each unfinished sequence a final delta."""
        for index in sorted(self._open):
            self.push(SequenceDelta(self.request_id, index, (), FinishReason.ABORT, error=message))

    def fail(self, error: EngineDead) -> None:
        """The engine is gone: the stream raises `error` after what has already come."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        """A bare future, as one consumer needs no more: this runs once a token of every stream."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[SequenceDelta]:
        while not self._deltas:
            if not self._open:
                return []
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        taken, self._deltas = self._deltas, []
        return taken
