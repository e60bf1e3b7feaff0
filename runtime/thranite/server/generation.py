"""Engine requests in flight for one wire request: submitted together, read together, ended together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType

from thranite.engine.admission import refuse_oversized
from thranite.engine.client import DeltaStream, EngineClient
from thranite.errors import EngineDead
from thranite.request import EngineRequest, FinishReason, SequenceDelta
from thranite.sampling_params import SamplingParams
from thranite.server.errors import GenerationFailed
from thranite.server.wire.usage import PromptTokensDetails, Usage
from thranite.text.output import RequestText, TextDelta
from thranite.text.tokenizer import Tokenizer

_FAILURES = {
    str(FinishReason.TIMEOUT): "The request's timeout passed before its answer was complete",
    str(FinishReason.ABORT): "The server ended the request before its answer was complete",
    str(FinishReason.ERROR): "The engine could not go on with this request",
}
ENDED_EARLY = "its answer ended early"


class Generation:
    """One engine request a prompt, all with the same `params`. Use as a context: leaving it aborts what still runs.

    `incremental=False`: text may come with each sample's last delta only.
    """

    def __init__(
        self,
        client: EngineClient,
        requests: Sequence[EngineRequest],
        params: SamplingParams,
        tokenizer: Tokenizer | None,
        incremental: bool,
    ) -> None:
        self.requests = tuple(requests)
        self._client = client
        self._texts = [RequestText(params, request.prompt_token_ids, tokenizer, incremental) for request in requests]
        self._unfinished = len(self._texts)
        self._streams: list[DeltaStream] = []
        self._readers: list[asyncio.Task[None]] = []
        self._merged: asyncio.Queue[list[tuple[int, SequenceDelta]] | int | Exception] = asyncio.Queue()
        self._failed: tuple[str, str] | None = None  # not the exception: it would refer to us, and we to it
        self._submitted = 0
        self._prompt_tokens = sum(len(request.prompt_token_ids) for request in requests)
        self._completion_tokens = 0
        self._cached_tokens = 0

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for reader in self._readers:
            reader.cancel()
        for request, text in zip(self.requests[: self._submitted], self._texts, strict=False):
            if not text.finished:
                self._client.abort(request.request_id)
        await asyncio.gather(*self._readers, return_exceptions=True)

    async def submit(self) -> None:
        """Return once the engine has accepted every request; raises what it refuses the first with."""
        self._submitted = len(self.requests)
        self._streams = await submit_all(self._client, self.requests)

    @property
    def usage(self) -> Usage:
        """Of all prompts so far; cheap enough to be asked for with every chunk."""
        prompt, completion = self._prompt_tokens, self._completion_tokens
        return Usage(prompt, completion, prompt + completion, PromptTokensDetails(self._cached_tokens))

    @property
    def finished(self) -> bool:
        """Whether every sample has its last delta, and none of them is a failure that is still to be raised."""
        return self._unfinished == 0 and self._failed is None

    async def deltas(self) -> AsyncIterator[tuple[int, TextDelta]]:
        """(index of the prompt, delta) as they come. Raises as `news` does."""
        while not self.finished:
            for item in await self.news():
                yield item

    async def news(self) -> list[tuple[int, TextDelta]]:
        """All deltas that have come since the last call; waits for one. Not to be called once `finished`.

        Raises GenerationFailed or EngineDead for an incomplete answer, after what came before the failure.
        """
        found: list[tuple[int, TextDelta]] = []
        while not found:
            if self._failed is not None:
                raise GenerationFailed(*self._failed)
            try:
                for index, delta in await self._take():
                    if (text := self._feed(index, delta)) is not None:
                        found.append((index, text))
            except GenerationFailed as error:
                self._failed = error.reason, error.message
        return found

    async def _take(self) -> list[tuple[int, SequenceDelta]]:
        if len(self._streams) > 1:
            return await self._take_merged()
        deltas = await self._streams[0].take()
        if not deltas:
            raise EngineDead(ENDED_EARLY)
        return [(0, delta) for delta in deltas]

    def _feed(self, index: int, delta: SequenceDelta) -> TextDelta | None:
        text = self._texts[index].feed(delta)
        if text is None:
            return None
        self._completion_tokens += len(text.token_ids)
        if self._texts[index].finished:
            self._unfinished -= 1
        if text.finish_reason is not None and delta.finish_reason is None:
            self._client.stop(delta.request_id, delta.index)
        if text.finish_reason in _FAILURES:
            raise GenerationFailed(text.finish_reason, text.error or _FAILURES[text.finish_reason])
        self._cached_tokens += text.cached_tokens or 0
        return text

    async def _take_merged(self) -> list[tuple[int, SequenceDelta]]:
        """Of all streams, in the order of arrival; an error of any is raised."""
        if not self._readers:
            self._readers = [asyncio.create_task(self._read(*item)) for item in enumerate(self._streams)]
        item = await self._merged.get()
        if isinstance(item, Exception):
            raise item
        if isinstance(item, int):  # only now is known what became of all that came before
            if not self._texts[item].finished:
                raise EngineDead(ENDED_EARLY)
            return []
        return item

    async def _read(self, index: int, stream: DeltaStream) -> None:
        """Put one stream's deltas to the others', and its index at its end."""
        try:
            while deltas := await stream.take():
                self._merged.put_nowait([(index, delta) for delta in deltas])
            self._merged.put_nowait(index)
        except Exception as error:  # noqa: BLE001 - handed on to the reader of the queue, which raises it
            self._merged.put_nowait(error)


async def submit_all(
    client: EngineClient, requests: Sequence[EngineRequest], param: str = "prompt"
) -> list[DeltaStream]:
    """At once: the engine answers between two steps, so one after another would take a step each.

    Raises InvalidRequest, with `param`, where they are more than can ever wait together; else what the first of those
    refused is refused with. The others are the caller's to abort.
    """
    if client.info.queue_limits is not None:
        sizes = [len(request.prompt_token_ids) for request in requests]
        refuse_oversized(client.info.queue_limits, sizes, requests[0].priority, param)
    if len(requests) == 1:
        return [await client.submit(requests[0])]
    streams: list[DeltaStream] = []
    for result in await asyncio.gather(*map(client.submit, requests), return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
        streams.append(result)
    return streams
