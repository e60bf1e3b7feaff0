"""One chat request at work: what Anthropic's and the Responses API make their own answers of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from thranite.server.chat_prompt import PreparedChat, chat_params, compiles, prepare_chat
from thranite.server.directory import ModelDirectory
from thranite.server.generation import Generation
from thranite.server.structured import naming_its_field
from thranite.server.wire.chat import ChatRequest
from thranite.server.wire.usage import Usage
from thranite.text.output import TextDelta
from thranite.text.tools.output import OutputReader
from thranite.text.tools.reader import Piece


class ChatRun:
    """A request of one sample that the engine has accepted."""

    def __init__(self, prepared: PreparedChat, generation: Generation) -> None:
        self.prepared = prepared
        self._generation = generation

    @property
    def usage(self) -> Usage:
        return self._generation.usage

    async def news(self) -> AsyncIterator[tuple[list[Piece], TextDelta]]:
        """Each delta, and what it says."""
        reader = OutputReader(self.prepared.output)
        async for _, delta in self._generation.deltas():
            pieces = reader.feed(delta.text)
            if delta.finish_reason is not None:
                pieces += reader.finish()
            yield pieces, delta


@asynccontextmanager
async def chat_run(request: ChatRequest, models: ModelDirectory, request_id: str) -> AsyncIterator[ChatRun]:
    """Leaving it aborts what still runs."""
    context = models.get(request.model)
    params = chat_params(request, context.settings.default_sampling)
    seed = context.next_seed()
    prepared = await context.in_thread(
        lambda: prepare_chat(request_id, request, params, context, seed), compiles(request, params)
    )
    stream = bool(request.stream)
    with naming_its_field(request, prepared.grammar_field):
        async with Generation(
            context.client, [prepared.engine], prepared.params, context.tokenizer, stream
        ) as generation:
            await generation.submit()
            yield ChatRun(prepared, generation)
