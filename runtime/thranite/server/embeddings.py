"""POST /v1/embeddings: prompts as vectors of length 1, through the scheduler like any other request."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence

from thranite.engine.client import DeltaStream
from thranite.errors import EngineDead, InvalidRequest
from thranite.request import EngineRequest, FinishReason
from thranite.server.caller import Caller
from thranite.server.completions import split_prompts
from thranite.server.context import ServerContext, new_id
from thranite.server.decode import decode
from thranite.server.endpoint import GenerationEndpoint
from thranite.server.errors import GenerationFailed
from thranite.server.generation import submit_all
from thranite.server.reply import Reply
from thranite.server.wire.embedding import Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage
from thranite.text.embedding import embedding_request, unit_length
from thranite.text.prompt import refuse_long_text, tokenize_prompt

FIELD = "input"


class EmbeddingsEndpoint(GenerationEndpoint):
    async def answer(self, body: bytes, reply: Reply, caller: Caller) -> None:
        wanted = decode(body, EmbeddingRequest)
        context = self._models.get(wanted.model)
        prompts = _inputs(wanted)
        requests = await context.in_thread(lambda: _requests(wanted, prompts, context, caller))
        vectors = await _vectors(context, requests)
        if wanted.dimensions not in (None, len(vectors[0])):
            raise InvalidRequest(
                f"dimensions must be {len(vectors[0])}, the model's own: vectors are not shortened", "dimensions"
            )
        data = [Embedding(index, _encoded(vector, wanted)) for index, vector in enumerate(vectors)]
        tokens = sum(len(request.prompt_token_ids) for request in requests)
        await reply.json(EmbeddingList(data, wanted.model, EmbeddingUsage(tokens, tokens)))


def _inputs(wanted: EmbeddingRequest) -> list[str | list[int]]:
    try:
        prompts = split_prompts(wanted.input)
    except InvalidRequest as error:
        raise InvalidRequest(error.message.replace("prompt", FIELD), FIELD, error.code) from error
    return prompts


def _requests(
    wanted: EmbeddingRequest, prompts: Sequence[str | list[int]], context: ServerContext, caller: Caller
) -> list[EngineRequest]:
    """Tokenise and check; runs in a thread."""
    for prompt in prompts:
        if isinstance(prompt, str):
            refuse_long_text(prompt, context.tokenizer, context.client.info, FIELD)
    name = new_id("embd")
    priority = (caller.key_class.least_priority if caller.key_class else None) or 0
    try:
        return [
            embedding_request(
                f"{name}-{index}",
                tokenize_prompt(prompt, context.tokenizer, wanted.add_special_tokens is not False),
                context.settings.pooling,
                context.client.info,
                param=FIELD,
                priority=priority,
                timeout_seconds=caller.timeout_seconds,
            )
            for index, prompt in enumerate(prompts)
        ]
    except InvalidRequest as error:
        raise InvalidRequest(error.message, FIELD, error.code) from error


async def _vectors(context: ServerContext, requests: Sequence[EngineRequest]) -> list[list[float]]:
    """All of them, or an error and none is left running."""
    try:
        return [await _vector(stream) for stream in await submit_all(context.client, requests, FIELD)]
    except BaseException:
        for request in requests:
            context.client.abort(request.request_id)
        raise


async def _vector(stream: DeltaStream) -> list[float]:
    while deltas := await stream.take():
        for delta in deltas:
            if delta.embedding is not None:
                return unit_length(delta.embedding)
            if delta.finish_reason in (FinishReason.TIMEOUT, FinishReason.ABORT, FinishReason.ERROR):
                raise GenerationFailed(delta.finish_reason, delta.error or "The engine failed on this request")
    raise EngineDead("the engine ended the request without its embedding")


def _encoded(vector: list[float], wanted: EmbeddingRequest) -> list[float] | str:
    if wanted.encoding_format != "base64":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
