"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import msgspec
from starlette.types import Send

from thranite.errors import InvalidRequest
from thranite.server.caller import Caller
from thranite.server.chat_prompt import render
from thranite.server.chat_run import ChatRun, chat_run
from thranite.server.context import ServerContext, new_id
from thranite.server.decode import decode, refuse_unsupported
from thranite.server.endpoint import GenerationEndpoint
from thranite.server.error_shape import message_error
from thranite.server.errors import ErrorAnswer
from thranite.server.message_blocks import MessageBlocks
from thranite.server.messages_request import chat_of
from thranite.server.reply import Reply, named_event
from thranite.server.spelling import spelt
from thranite.server.tool_plan import plan_tools
from thranite.server.wire.anthropic import (
    CountTokensRequest,
    MessagesRequest,
    MessageUsage,
    OutputMessage,
    TokenCount,
)
from thranite.server.wire.usage import Usage
from thranite.text.output import TextDelta
from thranite.text.prompt import refuse_endless_text

# The chat request's spelling of a field → this API's, for errors.
_SPELLING = {
    "stop": "stop_sequences",
    "continue_final_message": "messages",
    r"tools\[(\d+)\]\.function": r"tools[\1]",
}


class MessageReply(Reply):
    """Errors in Anthropic's shape."""

    def _error_body(self, answer: ErrorAnswer) -> bytes:
        return msgspec.json.encode(message_error(answer))

    def _error_event(self, answer: ErrorAnswer) -> bytes:
        return named_event("error", message_error(answer))


class MessagesEndpoint(GenerationEndpoint):
    def reply(self, send: Send, send_body: Send) -> Reply:
        return MessageReply(send, send_body)

    async def answer(self, body: bytes, reply: Reply, caller: Caller) -> None:
        request = decode(body, MessagesRequest)
        refuse_unsupported(request, request.off_values)
        name = new_id("msg")
        with spelt(_SPELLING):
            async with chat_run(caller.apply(chat_of(request)), self._models, name) as run:
                answer = _Answer(request, name, run)
                await (answer.stream(reply) if request.stream else answer.whole(reply))


class _Answer:
    """One answer under way."""

    def __init__(self, request: MessagesRequest, name: str, run: ChatRun) -> None:
        self._message = OutputMessage(name, request.model, [], None, None, _usage(run.usage))
        self._run = run
        self._blocks = MessageBlocks(run.prepared.output.tools)

    async def whole(self, reply: Reply) -> None:
        async for pieces, delta in self._run.news():
            self._blocks.add(pieces)
            self._end(delta)
        await reply.json(self._message)

    async def stream(self, reply: Reply) -> None:
        reply.hold(named_event("message_start", {"type": "message_start", "message": self._message}))
        async for pieces, delta in self._run.news():
            events = self._blocks.add(pieces)
            ended = delta.finish_reason is not None
            if ended:
                events += [*self._blocks.close(), *self._last_events(delta)]
            if events:
                await reply.write(b"".join(named_event(item["type"], item) for item in events), last=ended)
            else:
                await reply.flush()

    def _last_events(self, delta: TextDelta) -> list[dict[str, object]]:
        self._end(delta)
        ending = {"stop_reason": self._message.stop_reason, "stop_sequence": self._message.stop_sequence}
        return [
            {"type": "message_delta", "delta": ending, "usage": self._message.usage},
            {"type": "message_stop"},
        ]

    def _end(self, delta: TextDelta) -> None:
        if delta.finish_reason is None:
            return
        self._blocks.close()
        message = self._message
        message.content, message.usage = self._blocks.blocks, _usage(self._run.usage)
        if delta.finish_reason == "length":
            message.stop_reason = "max_tokens"
        elif self._blocks.called:
            message.stop_reason = "tool_use"
        elif isinstance(delta.stop_reason, str):
            message.stop_reason, message.stop_sequence = "stop_sequence", delta.stop_reason
        else:
            message.stop_reason = "end_turn"


def _usage(usage: Usage) -> MessageUsage:
    cached = usage.prompt_tokens_details.cached_tokens
    return MessageUsage(usage.prompt_tokens - cached, usage.completion_tokens, cached)


class CountTokensEndpoint(GenerationEndpoint):
    def reply(self, send: Send, send_body: Send) -> Reply:
        return MessageReply(send, send_body)

    async def answer(self, body: bytes, reply: Reply, caller: Caller) -> None:
        request = decode(body, CountTokensRequest)
        context = self._models.get(request.model)
        with spelt(_SPELLING):
            await reply.json(TokenCount(await context.in_thread(lambda: _count(request, context))))


def _count(request: CountTokensRequest, context: ServerContext) -> int:
    tokenizer = context.tokenizer
    if tokenizer is None:
        raise InvalidRequest("this server runs without a tokenizer", "messages", "tokenizer_missing")
    chat = chat_of(request)
    tools = plan_tools(chat, tokenizer, context.settings.tool_call_parser)
    text = render(chat, tools, tokenizer, structured=tools.forced is not None)
    refuse_endless_text(text, tokenizer, context.client.info, "messages")
    return len(tokenizer.encode(text, add_special_tokens=False))
