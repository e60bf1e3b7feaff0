"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from msgspec import UNSET

from thranite.errors import InvalidRequest
from thranite.request import EngineRequest
from thranite.sampling_params import SamplingParams
from thranite.server.chat_messages import template_messages
from thranite.server.chat_samples import ChatSamples
from thranite.server.context import ServerContext, new_id
from thranite.server.decode import decode_request
from thranite.server.endpoint import GenerationEndpoint
from thranite.server.generation import Generation
from thranite.server.reply import DONE, Reply, event
from thranite.server.sampling import sampling_params
from thranite.server.structured import naming_its_field
from thranite.server.wire.chat import ChatChunk, ChatChunkChoice, ChatCompletion, ChatRequest
from thranite.text.prompt import build_request


class ChatEndpoint(GenerationEndpoint):
    async def answer(self, body: bytes, reply: Reply) -> None:
        request = decode_request(body, ChatRequest)
        self._context.check_model(request.model)
        params = _params(request, self._context.settings.default_sampling)
        frame = _Frame(request, self._context.fingerprint)
        seed = self._context.next_seed()
        engine_request = await self._context.in_thread(
            lambda: _engine_request(frame.response_id, request, params, self._context, seed)
        )
        client, tokenizer, stream = self._context.client, self._context.tokenizer, bool(request.stream)
        async with Generation(client, [engine_request], params, tokenizer, incremental=stream) as generation:
            await generation.submit()
            samples = ChatSamples(request, params, engine_request, tokenizer)
            if stream:
                await _stream(reply, generation, samples, frame)
            else:
                await _respond(reply, generation, samples, frame)


class _Frame:
    """What all chunks of one response have in common."""

    def __init__(self, request: ChatRequest, fingerprint: str) -> None:
        self.include_usage = request.include_usage
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

    def chunk(self, choice: ChatChunkChoice) -> bytes:
        usage = None if self.include_usage else UNSET
        return event(ChatChunk(self.response_id, self._created, self._model, [choice], self._fingerprint, usage=usage))

    def usage_chunk(self, generation: Generation) -> bytes:
        if not self.include_usage:
            return b""
        usage = generation.usage
        return event(ChatChunk(self.response_id, self._created, self._model, [], self._fingerprint, usage=usage))


async def _stream(reply: Reply, generation: Generation, samples: ChatSamples, frame: _Frame) -> None:
    await reply.open_stream()
    async for _, delta in generation.deltas():
        choices = samples.news(delta)
        if choices:
            await reply.write(b"".join(map(frame.chunk, choices)))
    await reply.write(frame.usage_chunk(generation) + DONE, last=True)


async def _respond(reply: Reply, generation: Generation, samples: ChatSamples, frame: _Frame) -> None:
    async for _, delta in generation.deltas():
        samples.collect(delta)
    await reply.json(frame.whole(samples, generation))


def _params(request: ChatRequest, defaults: Mapping[str, Any]) -> SamplingParams:
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true", "top_logprobs")
    newer = request.max_completion_tokens is not None
    max_tokens = request.max_completion_tokens if newer else request.max_tokens
    spelling = {"logprobs": "top_logprobs"}
    if newer:
        spelling["max_tokens"] = "max_completion_tokens"
    return sampling_params(
        request,
        defaults,
        max_tokens=defaults.get("max_tokens") if max_tokens is None else max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        spelling=spelling,
    )


def _engine_request(
    request_id: str, request: ChatRequest, params: SamplingParams, context: ServerContext, seed: int
) -> EngineRequest:
    """Render, tokenise and check; runs in a thread."""
    tokenizer = context.tokenizer
    if tokenizer is None:
        raise InvalidRequest(
            "this server runs without a tokenizer: send token ids to /v1/completions", "messages", "tokenizer_missing"
        )
    template = tokenizer.chat_template()
    continues = bool(request.continue_final_message)
    text = template.render(
        template_messages(request.messages, knows_developer="developer" in template.source),
        # Asked to continue the last message, a client that leaves the other flag out does not want a new one.
        add_generation_prompt=not continues if request.add_generation_prompt is None else request.add_generation_prompt,
        continue_final_message=continues,
        kwargs=request.chat_template_kwargs,
    )
    with naming_its_field(request):
        return build_request(
            request_id,
            tokenizer.encode(text, add_special_tokens=bool(request.add_special_tokens)),
            params,
            context.client.info,
            tokenizer,
            seed=seed,
            param="messages",
            strict_length=request.max_tokens is not None or request.max_completion_tokens is not None,
            priority=request.priority or 0,
            timeout_seconds=request.timeout,
            cache_salt=request.cache_salt or "",
        )
