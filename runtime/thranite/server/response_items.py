"""An answer as the Responses API's items, and the events that tell of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thranite.server.chat_samples import call_id
from thranite.server.context import new_id
from thranite.text.tools.reader import CallArguments, CallBegin, Content, Piece, Reasoning

Event = dict[str, Any]

# A part's type → the prefix of its events' names.
_EVENTS = {"output_text": "response.output_text", "reasoning_text": "response.reasoning_text"}


class ResponseItems:
    """Grows with the pieces. `items` is the output so far; the events say the same, piece by piece."""

    def __init__(self, notation: str | None) -> None:
        self.items: list[dict[str, Any]] = []
        self._notation = notation
        self._open = False

    def add(self, pieces: Sequence[Piece]) -> list[Event]:
        events: list[Event] = []
        for piece in pieces:
            match piece:
                case Content(text):
                    events += [*self._begin_text("message"), *self._grow("output_text", text)]
                case Reasoning(text):
                    events += [*self._begin_text("reasoning"), *self._grow("reasoning_text", text)]
                case CallBegin(_, name):
                    item = {"type": "function_call", "id": new_id("fc"), "call_id": call_id(self._notation)}
                    events += [*self.close(), *self._begin({**item, "name": name, "arguments": ""})]
                case CallArguments(_, text):
                    self.items[-1]["arguments"] += text
                    events.append(self._event("response.function_call_arguments.delta", delta=text))
        return events

    def close(self, status: str = "completed") -> list[Event]:
        """End the open item."""
        if not self._open:
            return []
        self._open = False
        item = self.items[-1]
        item["status"] = status
        if item["type"] == "function_call":
            fields = {"arguments": item["arguments"], "name": item["name"]}
            events = [self._event("response.function_call_arguments.done", **fields)]
        else:
            part = item["content"][0]
            done = self._event(_EVENTS[part["type"]] + ".done", content_index=0, text=part["text"])
            if part["type"] == "output_text":
                done["logprobs"] = []
            events = [done, self._event("response.content_part.done", content_index=0, part=part)]
        return [*events, {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}]

    def _begin_text(self, kind: str) -> list[Event]:
        """Go on with the open item if it is of this kind."""
        if self._open and self.items[-1]["type"] == kind:
            return []
        if kind == "message":
            part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item: dict[str, Any] = {"type": kind, "id": new_id("msg"), "role": "assistant", "content": []}
        else:
            part = {"type": "reasoning_text", "text": ""}
            item = {"type": kind, "id": new_id("rs"), "summary": [], "content": []}
        events = [*self.close(), *self._begin(item)]
        events.append(self._event("response.content_part.added", content_index=0, part=dict(part)))
        self.items[-1]["content"].append(part)
        return events

    def _begin(self, item: dict[str, Any]) -> list[Event]:
        item["status"] = "in_progress"
        self.items.append(item)
        self._open = True
        shown = {**item, "content": []} if "content" in item else dict(item)
        return [{"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": shown}]

    def _grow(self, kind: str, text: str) -> list[Event]:
        self.items[-1]["content"][0]["text"] += text
        event = self._event(_EVENTS[kind] + ".delta", content_index=0, delta=text)
        if kind == "output_text":
            event["logprobs"] = []
        return [event]

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, **fields}
