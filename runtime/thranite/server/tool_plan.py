"""What a chat request's tools mean: what the template shows, how answers are read, what is forced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from thranite.errors import InvalidRequest
from thranite.sampling_params import StructuredOutputsParams
from thranite.server.wire.chat import ChatRequest, NamedTool
from thranite.text.messages import described, template_tool
from thranite.text.tokenizer import Tokenizer
from thranite.text.tools.calls import parser_for
from thranite.text.tools.forced import forced_calls

MAX_TOOLS = 128


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """`shown`: for the template; None: the request has no tools. `notation`: None where no call is looked for."""

    shown: list[dict[str, Any]] | None = None
    notation: str | None = None
    forced: StructuredOutputsParams | None = None
    max_calls: int | None = None


def plan_tools(request: ChatRequest, tokenizer: Tokenizer, parser: str) -> ToolPlan:
    """`parser`: the server's --tool-call-parser. Raises InvalidRequest for tools that cannot be served."""
    choice = request.tool_choice
    if not request.tools:
        if choice not in (None, "none"):
            raise InvalidRequest("tool_choice is only allowed when tools are given", "tool_choice")
        return ToolPlan()
    _check(request.tools, choice)
    if choice == "none":
        return ToolPlan()
    source = tokenizer.chat_template(tools=True).source
    if "tools" not in source or parser == "none":
        why = "the server runs with --tool-call-parser none" if parser == "none" else "its chat template shows none"
        raise InvalidRequest(f"this model takes no tools: {why}", "tools", "unsupported_parameter")
    notation = parser_for(source) if parser == "auto" else parser
    one = request.parallel_tool_calls is False or isinstance(choice, NamedTool)
    shown = [template_tool(tool, "tools") for tool in msgspec.to_builtins(request.tools)]
    if choice is None or choice == "auto":
        if notation is None:
            raise InvalidRequest(
                "how this model writes tool calls is not known: start the server with --tool-call-parser, or set "
                "tool_choice to required or to a function",
                "tools",
                "unsupported_parameter",
            )
        return ToolPlan(shown, notation, max_calls=1 if one else None)
    notation = notation or "hermes"
    forced = forced_calls(notation, _callable(request, choice), tokenizer, several=not one)
    return ToolPlan(shown, notation, forced, 1 if one else None)


def _check(tools: Sequence[Any], choice: Any) -> None:
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"{len(tools)} tools; at most {MAX_TOOLS} are allowed", "tools")
    names = [tool.function.name for tool in tools]
    for index, name in enumerate(names):
        if not name or name in names[:index]:
            raise InvalidRequest("every function needs a name of its own", f"tools[{index}].function.name")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise InvalidRequest(f"no tool is named {choice.function.name!r}", "tool_choice")


def _callable(request: ChatRequest, choice: Any) -> list[dict[str, Any]]:
    """The functions that a forced choice leaves."""
    specs = [tool.function for tool in request.tools or ()]
    if isinstance(choice, NamedTool):
        specs = [spec for spec in specs if spec.name == choice.function.name]
    return [described(spec) for spec in msgspec.to_builtins(specs)]
