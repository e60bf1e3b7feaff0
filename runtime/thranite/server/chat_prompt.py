"""From a chat request to the engine's: rendered, tokenised, checked; and how its answer is to be read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from thranite.errors import InvalidRequest
from thranite.request import EngineRequest
from thranite.sampling_params import SamplingParams
from thranite.server.context import ServerContext
from thranite.server.decode import refuse_unsupported
from thranite.server.sampling import sampling_params
from thranite.server.structured import naming_its_field
from thranite.server.tool_plan import ToolPlan, plan_tools
from thranite.server.wire.chat import ChatMessage, ChatRequest
from thranite.text.prompt import build_request, refuse_endless_text, refuse_long_text
from thranite.text.tokenizer import Tokenizer
from thranite.text.tools.calls import TAGS
from thranite.text.tools.output import OutputFormat
from thranite.text.tools.reasoning import CLOSE, OPEN, prompt_opens_reasoning, reasons


@dataclass(frozen=True, slots=True)
class PreparedChat:
    engine: EngineRequest
    params: SamplingParams
    output: OutputFormat
    prompt: str  # the rendered text
    grammar_field: str | None = None  # of the request, that asks for its grammar; None: the one that always does


def chat_params(request: ChatRequest, defaults: Mapping[str, Any]) -> SamplingParams:
    if request.top_logprobs and not request.logprobs:
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


def compiles(request: ChatRequest, params: SamplingParams) -> bool:
    """Whether the answer follows a grammar: asked for, or of a call that is forced."""
    return params.structured_outputs is not None or request.tool_choice not in (None, "auto", "none")


def prepare_chat(
    request_id: str, request: ChatRequest, params: SamplingParams, context: ServerContext, seed: int
) -> PreparedChat:
    """Runs in a thread."""
    tokenizer = context.tokenizer
    if tokenizer is None:
        raise InvalidRequest(
            "this server runs without a tokenizer: send token ids to /v1/completions", "messages", "tokenizer_missing"
        )
    tools = plan_tools(request, tokenizer, context.settings.tool_call_parser)
    params = _forcing(params, tools)
    prompt = render(request, tools, tokenizer, structured=params.structured_outputs is not None)
    output = _output_format(request, tools, params, prompt, context)
    params = _showing_tags(params, request, output, tokenizer)
    field = "tools" if tools.forced is not None else None
    with naming_its_field(request, field):
        engine = _engine_request(request_id, request, prompt, params, context, tokenizer, seed)
    return PreparedChat(engine, params, output, prompt, field)


def render(request: ChatRequest, tools: ToolPlan, tokenizer: Tokenizer, structured: bool = False) -> str:
    """The prompt's text."""
    continues = bool(request.continue_final_message)
    return tokenizer.chat_template(tools=tools.shown is not None).render(
        _plain(request.messages),
        # Asked to continue the last message, a client that leaves the other flag out does not want a new one.
        add_generation_prompt=not continues if request.add_generation_prompt is None else request.add_generation_prompt,
        continue_final_message=continues,
        tools=tools.shown,
        kwargs=request.chat_template_kwargs,
        structured=structured,
    )


def _plain(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Without the fields that mean nothing here."""
    for index, message in enumerate(messages):
        refuse_unsupported(message, message.off_values, f"messages[{index}].")
    plain = msgspec.to_builtins(messages)
    return [{name: message[name] for name in message.keys() - ChatMessage.off_values.keys()} for message in plain]


def _forcing(params: SamplingParams, tools: ToolPlan) -> SamplingParams:
    if tools.forced is None:
        return params
    if params.structured_outputs is not None:
        raise InvalidRequest("a forced tool call and structured output exclude each other", "tool_choice")
    return dataclasses.replace(params, structured_outputs=tools.forced)


def _output_format(
    request: ChatRequest, tools: ToolPlan, params: SamplingParams, prompt: str, context: ServerContext
) -> OutputFormat:
    parser = context.settings.reasoning_parser
    assert context.tokenizer is not None
    thinks = parser == "think" or (
        parser == "auto" and reasons(context.tokenizer.chat_template(bool(tools.shown)).source)
    )
    thinks = thinks and params.structured_outputs is None and not request.continue_final_message
    # Structured text holds no call unless it is one; calls among free text are looked for.
    notation = tools.notation if params.structured_outputs is tools.forced else None
    return OutputFormat(notation, thinks, thinks and prompt_opens_reasoning(prompt), tools.max_calls)


def _showing_tags(
    params: SamplingParams, request: ChatRequest, output: OutputFormat, tokenizer: Tokenizer
) -> SamplingParams:
    """Tags that are special tokens must reach the text for the parsers to see them."""
    if request.skip_special_tokens is not None or output.plain:
        return params
    tags = {*(TAGS[output.tools] if output.tools else ()), *((OPEN, CLOSE) if output.reasoning else ())}
    if not tags & tokenizer.special_texts:
        return params
    return dataclasses.replace(params, skip_special_tokens=False)


def _engine_request(
    request_id: str,
    request: ChatRequest,
    prompt: str,
    params: SamplingParams,
    context: ServerContext,
    tokenizer: Tokenizer,
    seed: int,
) -> EngineRequest:
    refuse = refuse_long_text if params.truncate_prompt_tokens is None else refuse_endless_text
    refuse(prompt, tokenizer, context.client.info, "messages")
    return build_request(
        request_id,
        tokenizer.encode(prompt, add_special_tokens=bool(request.add_special_tokens)),
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
