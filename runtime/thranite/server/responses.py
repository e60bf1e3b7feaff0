"""POST /v1/responses."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.types import Send

from thranite.server.caller import Caller
from thranite.server.chat_run import ChatRun, chat_run
from thranite.server.context import new_id
from thranite.server.decode import decode, refuse_unsupported
from thranite.server.endpoint import GenerationEndpoint
from thranite.server.errors import ErrorAnswer
from thranite.server.reply import Reply, named_event
from thranite.server.response_items import ResponseItems
from thranite.server.responses_request import chat_of
from thranite.server.spelling import spelt
from thranite.server.wire.request import TextFormat
from thranite.server.wire.responses import (
    InputTokensDetails,
    OutputTokensDetails,
    Response,
    ResponseRequest,
    ResponseUsage,
    TextOptions,
)
from thranite.text.output import TextDelta

# The chat request's spelling of a field → this API's, for errors.
_SPELLING = {
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "messages": "input",
    r"tools\[(\d+)\]\.function": r"tools[\1]",
}


class ResponseReply(Reply):
    """Errors within a stream are events of their own shape; before it they are as everywhere."""

    def __init__(self, send: Send, send_body: Send) -> None:
        super().__init__(send, send_body)
        self._numbers = itertools.count()

    def encoded(self, events: Sequence[dict[str, Any]]) -> bytes:
        """Numbered on from those before."""
        return b"".join(named_event(item["type"], {**item, "sequence_number": next(self._numbers)}) for item in events)

    def _error_event(self, answer: ErrorAnswer) -> bytes:
        detail = answer.body.error
        fields = {"code": str(detail.code or detail.type), "message": detail.message, "param": detail.param}
        return self.encoded([{"type": "error", **fields}])


class ResponsesEndpoint(GenerationEndpoint):
    def reply(self, send: Send, send_body: Send) -> ResponseReply:
        return ResponseReply(send, send_body)

    async def answer(self, body: bytes, reply: Reply, caller: Caller) -> None:
        assert isinstance(reply, ResponseReply)
        request = decode(body, ResponseRequest)
        refuse_unsupported(request, request.off_values)
        name = new_id("resp")
        with spelt(_SPELLING):
            async with chat_run(caller.apply(chat_of(request)), self._models, name) as run:
                await _Answer(request, name, run).give(reply)


class _Answer:
    """One answer under way."""

    def __init__(self, request: ResponseRequest, name: str, run: ChatRun) -> None:
        self._run, self._stream = run, bool(request.stream)
        self._items = ResponseItems(run.prepared.output.tools)
        self._response = Response(
            id=name,
            created_at=int(time.time()),
            model=request.model,
            status="in_progress",
            output=[],
            parallel_tool_calls=request.parallel_tool_calls is not False,
            tool_choice=request.tool_choice or "auto",
            tools=request.tools or [],
            text=request.text or TextOptions(format=TextFormat()),
            temperature=run.prepared.params.temperature,
            top_p=run.prepared.params.top_p,
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            metadata=request.metadata or {},
        )

    async def give(self, reply: ResponseReply) -> None:
        if self._stream:
            reply.hold(reply.encoded([self._state("created"), self._state("in_progress")]))
        async for pieces, delta in self._run.news():
            events = self._items.add(pieces)
            ended = delta.finish_reason is not None
            if ended:
                events += self._end(delta)
            if self._stream and events:
                await reply.write(reply.encoded(events), last=ended)
            elif self._stream:
                await reply.flush()
        if not self._stream:
            await reply.json(self._response)

    def _end(self, delta: TextDelta) -> list[dict[str, Any]]:
        cut = delta.finish_reason == "length"
        events = self._items.close("incomplete" if cut else "completed")
        response, usage = self._response, self._run.usage
        response.status = "incomplete" if cut else "completed"
        response.incomplete_details = {"reason": "max_output_tokens"} if cut else None
        response.output = self._items.items
        response.usage = ResponseUsage(
            usage.prompt_tokens,
            InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
            usage.completion_tokens,
            OutputTokensDetails(),
            usage.total_tokens,
        )
        return [*events, self._state(response.status)]

    def _state(self, name: str) -> dict[str, Any]:
        return {"type": f"response.{name}", "response": msgspec.to_builtins(self._response)}
