"""POST /v1/completions."""

from __future__ import annotations

import dataclasses
import time
from typing import TypeGuard

from msgspec import UNSET

from thranite.errors import InvalidRequest
from thranite.sampling_params import SamplingParams
from thranite.server.caller import Caller
from thranite.server.completion_samples import CompletionSamples
from thranite.server.context import ServerContext, new_id
from thranite.server.decode import decode_request
from thranite.server.endpoint import GenerationEndpoint
from thranite.server.generation import Generation
from thranite.server.reply import DONE, Reply, event
from thranite.server.sampling import refuse_repeated, sampling_params
from thranite.server.structured import naming_its_field
from thranite.server.text_request import text_request
from thranite.server.wire.completion import Completion, CompletionChoice, CompletionRequest
from thranite.server.wire.usage import Usage

_DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 2048  # of one request, as OpenAI has it: each is a request to the engine


class CompletionEndpoint(GenerationEndpoint):
    """Choices are numbered prompt by prompt: prompt p's sample i is choice p * n + i."""

    async def answer(self, body: bytes, reply: Reply, caller: Caller) -> None:
        request = caller.apply(decode_request(body, CompletionRequest))
        context = self._models.get(request.model)
        params = _params(request, context)
        prompts = split_prompts(request.prompt)
        refuse_repeated(request, len(prompts))
        frame = _Frame(request, context.fingerprint)
        seeds = [context.next_seed() for _ in prompts]
        requests = await context.in_thread(
            lambda: [
                text_request(f"{frame.response_id}-{index}", request, prompt, params, context, seeds[index])
                for index, prompt in enumerate(prompts)
            ],
            params.structured_outputs is not None,
        )
        client, tokenizer, stream = context.client, context.tokenizer, bool(request.stream)
        with naming_its_field(request):
            async with Generation(client, requests, params, tokenizer, incremental=stream) as generation:
                await generation.submit()
                samples = CompletionSamples(request, prompts, requests, params, tokenizer)
                if stream:
                    await _stream(reply, generation, samples, frame)
                else:
                    await _respond(reply, generation, samples, frame)


class _Frame:
    """What all chunks of one response have in common."""

    def __init__(self, request: CompletionRequest, fingerprint: str) -> None:
        self.include_usage, self.continuous_usage = request.include_usage, request.continuous_usage
        self.response_id = new_id("cmpl")  # with "-" and the prompt's number, the engine's name of each prompt
        self._created, self._model = int(time.time()), request.model
        self._fingerprint = fingerprint

    def whole(self, choices: list[CompletionChoice], usage: Usage) -> Completion:
        return Completion(self.response_id, self._created, self._model, choices, self._fingerprint, usage=usage)

    def chunk(self, choice: CompletionChoice, so_far: Usage | None) -> bytes:
        usage = so_far if self.include_usage else UNSET
        return event(Completion(self.response_id, self._created, self._model, [choice], self._fingerprint, usage=usage))


async def _stream(reply: Reply, generation: Generation, samples: CompletionSamples, frame: _Frame) -> None:
    while not generation.finished:
        for prompt, delta in await generation.news():
            for choice in samples.news(prompt, delta):
                so_far = samples.usage(generation.usage) if frame.continuous_usage else None
                reply.hold(frame.chunk(choice, so_far))
        if not generation.finished:
            await reply.flush()
    usage = event(frame.whole([], samples.usage(generation.usage))) if frame.include_usage else b""
    await reply.write(usage + DONE, last=True)


async def _respond(reply: Reply, generation: Generation, samples: CompletionSamples, frame: _Frame) -> None:
    async for prompt, delta in generation.deltas():
        samples.collect(prompt, delta)
    await reply.json(frame.whole(samples.choices(), samples.usage(generation.usage)))


def split_prompts(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """The four forms of `prompt` as a list of prompts."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("prompt must not be an empty list", "prompt")
    if _is_ids(prompt):
        return [prompt]
    several: list[str | list[int]] = [item for item in prompt if not isinstance(item, int)]
    if len(several) < len(prompt) or len({type(item) for item in several}) > 1:
        raise InvalidRequest("prompt must be a string, a list of strings, token ids, or lists of token ids", "prompt")
    if len(several) > MAX_PROMPTS:
        raise InvalidRequest(f"prompt holds {len(several)} prompts; at most {MAX_PROMPTS} are taken at once", "prompt")
    return several


def _is_ids(prompt: list[str | int | list[int]]) -> TypeGuard[list[int]]:
    return all(type(item) is int for item in prompt)


def _params(request: CompletionRequest, context: ServerContext) -> SamplingParams:
    defaults = context.settings.default_sampling
    max_tokens = request.max_tokens
    if max_tokens is None:
        max_tokens = defaults.get("max_tokens", _DEFAULT_MAX_TOKENS)
    if max_tokens == 0 and request.echo:
        max_tokens = 1  # the engine always draws one; CompletionSamples leaves it out
    params = sampling_params(request, defaults, max_tokens=max_tokens, logprobs=request.logprobs)
    if not request.echo or request.logprobs is None:
        return params
    # An echoed prompt is scored with as many alternatives as the completion.
    return dataclasses.replace(params, prompt_logprobs=max(request.logprobs, params.prompt_logprobs or 0))
