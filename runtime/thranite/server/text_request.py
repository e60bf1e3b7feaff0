"""A text prompt of a wire request as an engine request: what /v1/completions and the plain endpoints have in common."""

from __future__ import annotations

from thranite.request import EngineRequest
from thranite.sampling_params import SamplingParams
from thranite.server.context import ServerContext
from thranite.server.structured import naming_its_field
from thranite.server.wire.completion import CompletionRequest
from thranite.server.wire.plain import GenerateRequest, SocketGenerate
from thranite.text.prompt import build_request, refuse_endless_text, refuse_long_text, tokenize_prompt


def text_request(
    request_id: str,
    request: CompletionRequest | GenerateRequest | SocketGenerate,
    prompt: str | list[int],
    params: SamplingParams,
    context: ServerContext,
    seed: int,
) -> EngineRequest:
    """Tokenise and check one prompt; runs in a thread. Raises InvalidRequest with the field."""
    if isinstance(prompt, str):
        refuse = refuse_long_text if params.truncate_prompt_tokens is None else refuse_endless_text
        refuse(prompt, context.tokenizer, context.client.info)
    with naming_its_field(request):
        return build_request(
            request_id,
            tokenize_prompt(prompt, context.tokenizer, request.add_special_tokens is not False),
            params,
            context.client.info,
            context.tokenizer,
            seed=seed,
            strict_length=request.max_tokens is not None,
            priority=request.priority or 0,
            timeout_seconds=request.timeout,
            cache_salt=request.cache_salt or "",
        )
