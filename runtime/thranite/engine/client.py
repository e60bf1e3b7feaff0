"""How a server process sees an engine. `thranite.ipc.client` implements it over a socket; tests in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from thranite.engine.admission import QueueLimits
from thranite.engine.stats import EngineStats
from thranite.request import EngineRequest, SequenceDelta


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a server must know of the engine to check requests early. Fixed once the engine is ready."""

    max_model_len: int
    vocab_size: int
    max_num_seqs: int
    num_kv_blocks: int
    block_size: int
    eos_token_ids: tuple[int, ...]
    architecture: str
    dtype: str
    seed: int
    queue_limits: QueueLimits | None = None  # None: without bounds


class DeltaStream(Protocol):
    """A request's deltas, as they come."""

    async def take(self) -> list[SequenceDelta]:
        """All that have come since the last call; waits for one, if none has. Empty: the request has ended.

        Raises EngineDead.
        """
        ...


class EngineClient(Protocol):
    """One engine, as coroutines of one event loop see it."""

    @property
    def info(self) -> EngineInfo: ...

    async def submit(self, request: EngineRequest) -> DeltaStream:
        """Return once the engine has accepted the request.

        The stream ends after every one of the `n` sequences has a finish reason or was stopped.
        Raises InvalidRequest, Rejected or EngineDead here; EngineDead also from the stream.
        """
        ...

    def abort(self, request_id: str) -> None:
        """End a request whose client is gone. Unknown or finished ids are ignored. No delta follows."""

    def stop(self, request_id: str, index: int) -> None:
        """End one sequence whose text is complete (a stop string). No delta follows for it."""

    async def stats(self) -> EngineStats:
        """The engine's figures of this moment. Raises EngineDead."""
        ...
