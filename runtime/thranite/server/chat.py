"""POST /v1/chat/completions."""

from __future__ import annotations

import time

from msgspec import UNSET, UnsetType

from thranite.server.caller import Caller
from thranite.server.chat_prompt import chat_params, compiles, prepare_chat
from thranite.server.chat_samples import ChatSamples
from thranite.server.context import new_id
from thranite.server.decode import decode_request
from thranite.server.endpoint import GenerationEndpoint
from thranite.server.generation import Generation
from thranite.server.reply import DONE, Reply, event
from thranite.server.structured import naming_its_field
from thranite.server.wire.chat import ChatChunk, ChatChunkChoice, ChatCompletion, ChatRequest


class ChatEndpoint(GenerationEndpoint):
    async def answer(self, body: bytes, reply: Reply, caller: Caller) -> None:
        request = caller.apply(decode_request(body, ChatRequest))
        context = self._models.get(request.model)
        params = chat_params(request, context.settings.default_sampling)
        frame = _Frame(request, context.fingerprint)
        seed = context.next_seed()
        prepared = await context.in_thread(
            lambda: prepare_chat(frame.response_id, request, params, context, seed), compiles(request, params)
        )
        client, tokenizer, stream = context.client, context.tokenizer, bool(request.stream)
        with naming_its_field(request, prepared.grammar_field):
            async with Generation(client, [prepared.engine], prepared.params, tokenizer, stream) as generation:
                await generation.submit()
                samples = ChatSamples(bool(request.return_token_ids), prepared, tokenizer)
                if stream:
                    await _stream(reply, generation, samples, frame)
                else:
                    await _respond(reply, generation, samples, frame)


class _Frame:
    """What all chunks of one response have in common."""

    def __init__(self, request: ChatRequest, fingerprint: str) -> None:
        self.include_usage, self._continuous = request.include_usage, request.continuous_usage
        self.response_id = new_id("chatcmpl")  # also the engine's name of the request
        self._created, self._model = int(time.time()), request.model
        self._fingerprint = fingerprint

    def whole(self, samples: ChatSamples, generation: Generation) -> ChatCompletion:
        return ChatCompletion(
            self.response_id,
            self._created,
            self._model,
            samples.choices(),
            generation.usage,
            self._fingerprint,
            prompt_token_ids=samples.prompt_token_ids,
            prompt_logprobs=samples.prompt_logprobs,
        )

    def chunk(self, choice: ChatChunkChoice, generation: Generation, prompt_ids: list[int] | UnsetType) -> bytes:
        return event(
            ChatChunk(
                self.response_id,
                self._created,
                self._model,
                [choice],
                self._fingerprint,
                usage=generation.usage if self._continuous else None if self.include_usage else UNSET,
                prompt_token_ids=prompt_ids,
            )
        )

    def usage_chunk(self, generation: Generation) -> bytes:
        if not self.include_usage:
            return b""
        usage = generation.usage
        return event(ChatChunk(self.response_id, self._created, self._model, [], self._fingerprint, usage=usage))


async def _stream(reply: Reply, generation: Generation, samples: ChatSamples, frame: _Frame) -> None:
    prompt_ids = samples.prompt_token_ids  # of all samples: told once
    while not generation.finished:
        for _, delta in await generation.news():
            for choice in samples.news(delta):
                reply.hold(frame.chunk(choice, generation, prompt_ids))
                prompt_ids = UNSET
        if not generation.finished:
            await reply.flush()
    await reply.write(frame.usage_chunk(generation) + DONE, last=True)


async def _respond(reply: Reply, generation: Generation, samples: ChatSamples, frame: _Frame) -> None:
    async for _, delta in generation.deltas():
        samples.collect(delta)
    await reply.json(frame.whole(samples, generation))
