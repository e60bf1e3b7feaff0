"""Anthropic's requests as chat requests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from thranite.errors import InvalidRequest
from thranite.server.wire.anthropic import (
    AnyChoice,
    Block,
    CountTokensRequest,
    InputMessage,
    MessagesRequest,
    NamedChoice,
    NoChoice,
    NoThinking,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from thranite.server.wire.chat import (
    ChatMessage,
    ChatRequest,
    FunctionCall,
    FunctionName,
    FunctionSpec,
    NamedTool,
    Tool,
    ToolCall,
    ToolChoice,
)


def chat_of(request: CountTokensRequest) -> ChatRequest:
    """An assistant's message at the end is continued, as Anthropic does."""
    continues = bool(request.messages) and request.messages[-1].role == "assistant"
    chat = ChatRequest(
        model=request.model,
        messages=[*_system(request), *(m for i, message in enumerate(request.messages) for m in _messages(message, i))],
        tools=[
            Tool(function=FunctionSpec(name=tool.name, description=tool.description, parameters=tool.input_schema))
            for tool in request.tools or ()
        ]
        or None,
        tool_choice=_choice(request),
        parallel_tool_calls=False if getattr(request.tool_choice, "disable_parallel_tool_use", None) else None,
        continue_final_message=continues or None,
        chat_template_kwargs={"enable_thinking": False} if isinstance(request.thinking, NoThinking) else None,
    )
    if isinstance(request, MessagesRequest):
        chat.max_tokens = request.max_tokens
        chat.temperature, chat.top_p, chat.top_k = request.temperature, request.top_p, request.top_k
        chat.stop, chat.stream = request.stop_sequences, request.stream
    return chat


def _system(request: CountTokensRequest) -> list[ChatMessage]:
    if not request.system:
        return []
    return [ChatMessage(role="system", content=_text(request.system))]


def _choice(request: CountTokensRequest) -> ToolChoice | None:
    match request.tool_choice:
        case NoChoice():
            return "none"
        case AnyChoice():
            return "required"
        case NamedChoice(name):
            return NamedTool(function=FunctionName(name))
        case None:
            return None
    return "auto"


def _messages(message: InputMessage, index: int) -> list[ChatMessage]:
    if isinstance(message.content, str):
        return [ChatMessage(role=message.role, content=message.content)]
    convert = _of_user if message.role == "user" else _of_assistant
    return convert(message.content, f"messages[{index}].content")


def _of_user(blocks: Sequence[Block], path: str) -> list[ChatMessage]:
    """Results of tools are messages of their own, before the user's text."""
    results, texts = [], []
    for block in blocks:
        if isinstance(block, ToolResultBlock):
            text = _text(block.content or "")
            results.append(ChatMessage(role="tool", tool_call_id=block.tool_use_id, content=text))
        elif isinstance(block, TextBlock):
            texts.append(block)
        else:
            raise InvalidRequest("a user's message holds text and tool_result blocks", path)
    return [*results, *([ChatMessage(role="user", content=_text(texts))] if texts or not results else [])]


def _of_assistant(blocks: Sequence[Block], path: str) -> list[ChatMessage]:
    texts: list[TextBlock] = []
    calls: list[ToolCall] = []
    thoughts: list[str] = []
    for block in blocks:
        match block:
            case TextBlock():
                texts.append(block)
            case ToolUseBlock(id=name):
                calls.append(ToolCall(id=name, function=FunctionCall(name=block.name, arguments=_json(block.input))))
            case ThinkingBlock():
                thoughts.append(block.thinking)
            case _:
                raise InvalidRequest("an assistant's message holds text, thinking and tool_use blocks", path)
    reasoning = "\n".join(thoughts) or None
    return [ChatMessage(role="assistant", content=_text(texts), tool_calls=calls or None, reasoning_content=reasoning)]


def _text(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
