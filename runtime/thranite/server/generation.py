"""Engine requests in flight for one wire request: submitted together, read together, ended together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType

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
    str(FinishReason.ERROR): "The engine failed on this request",
}


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
        self._streams: list[DeltaStream] = []
        self._readers: list[asyncio.Task[None]] = []
        self._submitted = 0
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
        for request in self.requests:
            self._submitted += 1
            self._streams.append(await self._client.submit(request))

    @property
    def usage(self) -> Usage:
        prompt = sum(len(request.prompt_token_ids) for request in self.requests)
        completion = sum(text.completion_tokens for text in self._texts)
        return Usage(prompt, completion, prompt + completion, PromptTokensDetails(self._cached_tokens))

    @property
    def ready(self) -> bool:
        """Whether the next delta, or the end, needs no wait: what is to be sent can leave together with it."""
        return len(self._streams) == 1 and self._streams[0].ready

    async def deltas(self) -> AsyncIterator[tuple[int, TextDelta]]:
        """(index of the prompt, delta) as they come. Raises GenerationFailed or EngineDead for an incomplete answer."""
        if len(self._streams) == 1:
            async for delta in self._streams[0]:
                if (text := self._feed(0, delta)) is not None:
                    yield 0, text
        else:
            async for index, delta in self._merged():
                if (text := self._feed(index, delta)) is not None:
                    yield index, text
        if not all(text.finished for text in self._texts):
            raise EngineDead("its answer ended early")

    def _feed(self, index: int, delta: SequenceDelta) -> TextDelta | None:
        text = self._texts[index].feed(delta)
        if text is None:
            return None
        if text.finish_reason is not None and delta.finish_reason is None:
            self._client.stop(delta.request_id, delta.index)
        if text.finish_reason in _FAILURES:
            raise GenerationFailed(text.finish_reason, text.error or _FAILURES[text.finish_reason])
        self._cached_tokens += text.cached_tokens or 0
        return text

    async def _merged(self) -> AsyncIterator[tuple[int, SequenceDelta]]:
        """All streams' deltas in the order of their arrival; an error of any ends them."""
        queue: asyncio.Queue[tuple[int, SequenceDelta] | Exception | None] = asyncio.Queue()
        self._readers = [asyncio.create_task(_read(index, stream, queue)) for index, stream in enumerate(self._streams)]
        running = len(self._readers)
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item


async def _read(
    index: int,
    stream: DeltaStream,
    queue: asyncio.Queue[tuple[int, SequenceDelta] | Exception | None],
) -> None:
    try:
        async for delta in stream:
            queue.put_nowait((index, delta))
    except Exception as error:  # noqa: BLE001 - handed on to the reader of the queue, which raises it
        queue.put_nowait(error)
    else:
        queue.put_nowait(None)
