"""The choices of one chat response, as they grow."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, UnsetType

from thranite.request import TokenLogprobs
from thranite.server.chat_prompt import PreparedChat
from thranite.server.logprobs import TokenText, chat_logprobs, prompt_logprobs
from thranite.server.wire.chat import (
    AssistantMessage,
    CallFunction,
    CallResult,
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
)
from thranite.text.output import TextDelta
from thranite.text.tokenizer import Tokenizer
from thranite.text.tools.output import Answer, OutputReader, read_answer
from thranite.text.tools.reader import CallArguments, CallBegin, Content, Piece, Reasoning

_ALPHABET = string.ascii_letters + string.digits


def call_id(notation: str | None) -> str:
    """Mistral's templates want exactly nine letters and digits."""
    name = "".join(secrets.choice(_ALPHABET) for _ in range(9 if notation == "mistral" else 24))
    return name if notation == "mistral" else f"call_{name}"


def ended_by(reason: str | None, calls: int) -> str | None:
    """OpenAI's finish reason of an answer with so many calls."""
    return "tool_calls" if reason == "stop" and calls else reason


class ChatSamples:
    """Turns deltas into chunks of a stream (`news`), or into whole choices at the end (`collect`, `choices`)."""

    def __init__(self, return_token_ids: bool, prepared: PreparedChat, tokenizer: Tokenizer | None) -> None:
        self._params = prepared.params
        self._format = prepared.output
        self._ids = return_token_ids
        self._prompt_ids = prepared.engine.prompt_token_ids
        self._text = TokenText(tokenizer)
        self._readers: dict[int, OutputReader] = {}
        self._calls: dict[int, int] = {}
        self._deltas: dict[int, list[TextDelta]] = {}
        self._prompt_logprobs: Sequence[TokenLogprobs | None] | None = None

    @property
    def prompt_token_ids(self) -> list[int] | UnsetType:
        return list(self._prompt_ids) if self._ids else UNSET

    @property
    def prompt_logprobs(self) -> list[dict[str, Any] | None] | UnsetType:
        if self._params.prompt_logprobs is None or self._prompt_logprobs is None:
            return UNSET
        return prompt_logprobs(self._prompt_logprobs, self._params.prompt_logprobs, self._text)

    def news(self, delta: TextDelta) -> list[ChatChunkChoice]:
        """OpenAI's sequence for each sample: its role, then content, then an empty delta with the finish reason."""
        chunks = []
        index = delta.index
        if index not in self._readers:
            self._readers[index] = OutputReader(self._format)
            chunks.append(ChatChunkChoice(index, ChatDelta(role="assistant", content="", refusal=None)))
        pieces = self._read(delta)
        logprobs = self._logprobs([delta]) if delta.token_ids else None
        ids = list(delta.token_ids) if self._ids and delta.token_ids else UNSET
        if pieces or logprobs is not None or ids is not UNSET:
            chunks.append(ChatChunkChoice(index, self._delta(pieces), logprobs, token_ids=ids))
        if delta.finish_reason is not None:
            stop = UNSET if delta.stop_reason is None else delta.stop_reason
            reason = ended_by(delta.finish_reason, self._calls.get(index, 0))
            chunks.append(ChatChunkChoice(index, ChatDelta(), finish_reason=reason, stop_reason=stop))
        return chunks

    def _read(self, delta: TextDelta) -> list[Piece]:
        reader = self._readers[delta.index]
        pieces = reader.feed(delta.text)
        if delta.finish_reason is not None:
            pieces += reader.finish()
        begun = sum(isinstance(piece, CallBegin) for piece in pieces)
        self._calls[delta.index] = self._calls.get(delta.index, 0) + begun
        return pieces

    def _delta(self, pieces: Sequence[Piece]) -> ChatDelta:
        delta = ChatDelta()
        calls: dict[int, CallResult] = {}
        for piece in pieces:
            match piece:
                case Content(text):
                    delta.content = text if delta.content is UNSET else delta.content + text
                case Reasoning(text):
                    before = delta.reasoning_content
                    delta.reasoning_content = text if before is UNSET else before + text
                case CallBegin(index, name):
                    function = CallFunction("", name)
                    calls[index] = CallResult(function, call_id(self._format.tools), "function", index)
                case CallArguments(index, text):
                    call = calls.setdefault(index, CallResult(CallFunction(""), index=index))
                    call.function.arguments += text
        if calls:
            delta.tool_calls = list(calls.values())
        elif delta.content is UNSET and delta.reasoning_content is UNSET:
            delta.content = ""
        return delta

    def collect(self, delta: TextDelta) -> None:
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs = delta.prompt_logprobs
        self._deltas.setdefault(delta.index, []).append(delta)

    def choices(self) -> list[ChatChoice]:
        return [self._choice(index, deltas) for index, deltas in sorted(self._deltas.items())]

    def _choice(self, index: int, deltas: Sequence[TextDelta]) -> ChatChoice:
        last = deltas[-1]
        answer = read_answer("".join(delta.text for delta in deltas), self._format)
        return ChatChoice(
            index=index,
            message=self._message(answer),
            logprobs=self._logprobs(deltas),
            finish_reason=ended_by(last.finish_reason, len(answer.calls)),
            stop_reason=UNSET if last.stop_reason is None else last.stop_reason,
            token_ids=[token for delta in deltas for token in delta.token_ids] if self._ids else UNSET,
        )

    def _message(self, answer: Answer) -> AssistantMessage:
        calls = [
            CallResult(CallFunction(call.arguments, call.name), call_id(self._format.tools), "function")
            for call in answer.calls
        ]
        return AssistantMessage(
            answer.content or (None if calls else ""),
            reasoning_content=answer.reasoning or UNSET,
            tool_calls=calls or UNSET,
        )

    def _logprobs(self, deltas: Sequence[TextDelta]) -> ChatLogprobs | None:
        if self._params.logprobs is None:
            return None
        return chat_logprobs([token for delta in deltas for token in delta.logprobs or ()], self._text)
