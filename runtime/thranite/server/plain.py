"""POST /generate, and what it has in common with /ws/generate."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from msgspec import UNSET

from thranite.errors import InvalidRequest
from thranite.sampling_params import SamplingParams
from thranite.server.caller import Caller
from thranite.server.context import ServerContext, new_id
from thranite.server.decode import decode_request
from thranite.server.directory import ModelDirectory
from thranite.server.endpoint import GenerationEndpoint
from thranite.server.generation import Generation
from thranite.server.reply import DONE, Reply, event
from thranite.server.sampling import sampling_params
from thranite.server.structured import naming_its_field
from thranite.server.text_request import text_request
from thranite.server.wire.plain import Delta, Done, GenerateRequest, SocketGenerate

PlainRequest = GenerateRequest | SocketGenerate


async def run_plain(request: PlainRequest, models: ModelDirectory, stream: bool) -> AsyncGenerator[Delta | Done, None]:
    """Deltas if `stream`, then Done. Closing it early aborts the request."""
    context = models.get(request.model)
    params = _params(request, context)
    name, seed = new_id("gen"), context.next_seed()
    engine = await context.in_thread(
        lambda: text_request(name, request, request.prompt, params, context, seed),
        params.structured_outputs is not None,
    )
    shown = name if request.id is None else request.id
    with naming_its_field(request):
        async with Generation(context.client, [engine], params, context.tokenizer, stream) as generation:
            await generation.submit()
            texts: list[str] = []
            tokens: list[int] = []
            async for _, delta in generation.deltas():
                texts.append(delta.text)
                tokens += delta.token_ids
                if delta.finish_reason is not None:
                    stop = UNSET if delta.stop_reason is None else delta.stop_reason
                    prompt = list(engine.prompt_token_ids) if request.return_token_ids else UNSET
                    yield Done(shown, "".join(texts), tokens, delta.finish_reason, generation.usage, stop, prompt)
                elif stream:
                    yield Delta(shown, delta.text, list(delta.token_ids))


def _params(request: PlainRequest, context: ServerContext) -> SamplingParams:
    if request.n not in (None, 1):
        raise InvalidRequest("n must be 1: send several requests", "n")
    if request.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs is not supported here: use /v1/completions", "prompt_logprobs")
    defaults = context.settings.default_sampling
    max_tokens = defaults.get("max_tokens") if request.max_tokens is None else request.max_tokens
    return sampling_params(request, defaults, max_tokens=max_tokens, logprobs=None)


class GenerateEndpoint(GenerationEndpoint):
    async def answer(self, body: bytes, reply: Reply, caller: Caller) -> None:
        request = caller.apply(decode_request(body, GenerateRequest))
        stream = bool(request.stream)
        async with aclosing(run_plain(request, self._models, stream)) as items:
            async for item in items:
                if not stream:
                    await reply.json(item)
                    return
                last = isinstance(item, Done)
                await reply.write(event(item) + (DONE if last else b""), last=last)
