"""A model's chat template: messages in, one string out, rendered in jinja's sandbox.

Templates come with checkpoints and are not trusted: they see plain JSON values only, cannot change them, and reach no
Python internals. The helpers they may call (`raise_exception`, `strftime_now`, `tojson`) are the field's convention.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from thranite.errors import InvalidRequest, UnsupportedModel
from thranite.text.messages import Message, template_messages, template_tool

# Marks where the message to be continued ends. Private-use characters, so that no real text holds it; its last space
# is gone where a template trims messages.
_CONTINUE_MARK = "\ue0f7continue here\ue0f7 "


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks assistant text for training; rendering passes it through."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja's own filter escapes HTML, which a prompt must not contain."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """A compiled template. Rendering is thread-safe: nothing is kept between calls."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise UnsupportedModel(
                f"the chat template does not parse: line {error.lineno}: {error.message}",
                hint="give another one with --chat-template FILE",
            ) from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        structured: bool = False,
    ) -> str:
        """The prompt's text. `kwargs`: further variables that the template reads.

        `structured`: the answer keeps to a grammar, so it begins at once, and models that can are told not to think
        before it. Raises InvalidRequest where the template refuses the messages, with its own words.
        """
        if not messages:
            raise InvalidRequest("messages must hold at least one message", "messages")
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message continues the last message and add_generation_prompt starts a new one: "
                "set only one of them",
                "continue_final_message",
            )
        shown = template_messages(messages, knows_developer="developer" in self.source)
        if continue_final_message:
            shown[-1] = _mark_end(shown[-1])
        described = None if tools is None else [template_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
        variables = dict(kwargs or {})
        if structured and "enable_thinking" in self.source:
            variables.setdefault("enable_thinking", False)
        text = self._render(shown, add_generation_prompt, described, variables)
        return _cut_at_mark(text) if continue_final_message else text

    def _render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        kwargs: Mapping[str, Any],
    ) -> str:
        given = {
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        clash = sorted(given.keys() & kwargs.keys())
        if clash:
            raise InvalidRequest(f"chat_template_kwargs must not set {', '.join(clash)}", "chat_template_kwargs")
        try:
            return self._template.render({**self._special_tokens, **given, **kwargs})
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            # What a template does with unforeseen messages fails in any of these ways.
            raise InvalidRequest(f"the model's chat template refuses these messages: {error}", "messages") from error


def _mark_end(message: Message) -> dict[str, Any]:
    if message.get("tool_calls"):  # templates show them behind the content, so the cut would drop them
        raise InvalidRequest("a last message that calls tools cannot be continued", "continue_final_message")
    return {**message, "content": message["content"] + _CONTINUE_MARK}


def _cut_at_mark(text: str) -> str:
    """The text up to the mark; a template that trims messages would have trimmed the continued one too."""
    end = text.rfind(_CONTINUE_MARK.rstrip())
    if end < 0:
        raise InvalidRequest(
            "the model's chat template changes or drops the last message, so it cannot be continued",
            "continue_final_message",
        )
    return text[:end] if text.startswith(_CONTINUE_MARK, end) else text[:end].rstrip()
