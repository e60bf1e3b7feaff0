"""Requests of the Responses API as chat requests."""

from __future__ import annotations

from collections.abc import Sequence

from thranite.errors import InvalidRequest
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
from thranite.server.wire.request import JsonSchema, JsonSchemaFormat, ResponseFormat
from thranite.server.wire.responses import ContentPart, FunctionChoice, InputItem, ResponseRequest, SchemaFormat
from thranite.text.messages import call_arguments


def chat_of(request: ResponseRequest) -> ChatRequest:
    return ChatRequest(
        model=request.model,
        messages=_messages(request),
        max_completion_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        stream=request.stream,
        tools=[
            Tool(function=FunctionSpec(name=tool.name, description=tool.description, parameters=tool.parameters))
            for tool in request.tools or ()
        ]
        or None,
        tool_choice=_choice(request),
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=_format(request),
    )


def _choice(request: ResponseRequest) -> ToolChoice | None:
    choice = request.tool_choice
    return NamedTool(function=FunctionName(choice.name)) if isinstance(choice, FunctionChoice) else choice


def _format(request: ResponseRequest) -> ResponseFormat | None:
    wanted = request.text.format if request.text is not None else None
    if isinstance(wanted, SchemaFormat):
        return JsonSchemaFormat(JsonSchema(name=wanted.name, schema=wanted.schema))
    return wanted


def _messages(request: ResponseRequest) -> list[ChatMessage]:
    messages: list[ChatMessage] = []
    if request.instructions is not None:
        messages.append(ChatMessage(role="system", content=request.instructions))
    if isinstance(request.input, str):
        return [*messages, ChatMessage(role="user", content=request.input)]
    thoughts: str | None = None
    for index, item in enumerate(request.input):
        path = f"input[{index}]."
        if item.type == "reasoning":
            thoughts = _text(item.content) or _text(item.summary)
        elif item.type == "function_call":
            _add_call(messages, item, thoughts, path)
            thoughts = None
        elif item.type == "function_call_output":
            messages.append(_result(item, path))
        else:
            messages.append(_spoken(item, thoughts, path))
            thoughts = None
    return messages


def _result(item: InputItem, path: str) -> ChatMessage:
    if item.output is None:
        raise _missing(path + "output")
    return ChatMessage(role="tool", tool_call_id=_needed(item.call_id, path + "call_id"), content=_text(item.output))


def _spoken(item: InputItem, thoughts: str | None, path: str) -> ChatMessage:
    if item.role is None or item.content is None:
        raise _missing(path + ("role" if item.role is None else "content"))
    reasoning = thoughts if item.role == "assistant" else None
    return ChatMessage(role=item.role, content=_text(item.content), reasoning_content=reasoning or None)


def _add_call(messages: list[ChatMessage], item: InputItem, thoughts: str | None, path: str) -> None:
    """Calls in a row, and the text before them, are one assistant's message."""
    function = FunctionCall(
        name=_needed(item.name, path + "name"), arguments=_needed(item.arguments, path + "arguments")
    )
    call_arguments(function.arguments, path + "arguments")  # again later, where the item is not known any more
    call = ToolCall(id=_needed(item.call_id, path + "call_id"), function=function)
    if not messages or messages[-1].role != "assistant":
        messages.append(ChatMessage(role="assistant", content="", reasoning_content=thoughts or None))
    messages[-1].tool_calls = [*(messages[-1].tool_calls or ()), call]


def _needed(value: str | None, path: str) -> str:
    if value is None:
        raise _missing(path)
    return value


def _missing(path: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: {path}", path, "missing_required_parameter")


def _text(content: str | Sequence[ContentPart] | None) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content or ())
