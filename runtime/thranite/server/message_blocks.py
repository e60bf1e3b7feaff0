"""An answer as Anthropic's blocks, and the events that tell of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thranite.server.chat_samples import call_id
from thranite.text.json_text import parse_json
from thranite.text.tools.reader import CallArguments, CallBegin, Content, Piece, Reasoning

Event = dict[str, Any]


class MessageBlocks:
    """Grows with the pieces. `blocks` is the answer so far; the events say the same, piece by piece."""

    def __init__(self, notation: str | None) -> None:
        self.blocks: list[dict[str, Any]] = []
        self._notation = notation
        self._arguments = ""  # of the open tool_use block
        self._open = False

    @property
    def called(self) -> bool:
        return any(block["type"] == "tool_use" for block in self.blocks)

    def add(self, pieces: Sequence[Piece]) -> list[Event]:
        events: list[Event] = []
        for piece in pieces:
            match piece:
                case Content(text):
                    events += self._in_block({"type": "text", "text": ""})
                    self.blocks[-1]["text"] += text
                    events.append(self._delta({"type": "text_delta", "text": text}))
                case Reasoning(text):
                    events += self._in_block({"type": "thinking", "thinking": "", "signature": ""})
                    self.blocks[-1]["thinking"] += text
                    events.append(self._delta({"type": "thinking_delta", "thinking": text}))
                case CallBegin(_, name):
                    events += self.close()
                    identity = call_id(self._notation).replace("call_", "toolu_")
                    events += self._begin({"type": "tool_use", "id": identity, "name": name, "input": {}})
                case CallArguments(_, text):
                    self._arguments += text
                    events.append(self._delta({"type": "input_json_delta", "partial_json": text}))
        return events

    def close(self) -> list[Event]:
        """End the open block."""
        if not self._open:
            return []
        self._open = False
        if self.blocks[-1]["type"] == "tool_use":
            self.blocks[-1]["input"] = _object(self._arguments)
        return [{"type": "content_block_stop", "index": len(self.blocks) - 1}]

    def _in_block(self, block: dict[str, Any]) -> list[Event]:
        """Go on with the open block if it is of this kind."""
        if self._open and self.blocks[-1]["type"] == block["type"]:
            return []
        return [*self.close(), *self._begin(block)]

    def _begin(self, block: dict[str, Any]) -> list[Event]:
        self.blocks.append(block)
        self._open, self._arguments = True, ""
        return [{"type": "content_block_start", "index": len(self.blocks) - 1, "content_block": dict(block)}]

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": len(self.blocks) - 1, "delta": delta}


def _object(text: str) -> dict[str, Any]:
    """Arguments as an object; those that a length limit cut, or that are no object, as text under one key."""
    try:
        value = parse_json(text or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"arguments": text}
