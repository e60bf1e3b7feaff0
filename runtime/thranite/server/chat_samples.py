"""The choices of one chat response, as they grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, UnsetType

from thranite.request import EngineRequest, TokenLogprobs
from thranite.sampling_params import SamplingParams
from thranite.server.logprobs import TokenText, chat_logprobs, prompt_logprobs
from thranite.server.wire.chat import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatRequest,
)
from thranite.text.output import TextDelta
from thranite.text.tokenizer import Tokenizer


class ChatSamples:
    """Turns deltas into chunks of a stream (`news`), or into whole choices at the end (`collect`, `choices`)."""

    def __init__(
        self, request: ChatRequest, params: SamplingParams, engine: EngineRequest, tokenizer: Tokenizer | None
    ) -> None:
        self._params = params
        self._ids = bool(request.return_token_ids)
        self._prompt_ids = engine.prompt_token_ids
        self._text = TokenText(tokenizer)
        self._begun: set[int] = set()
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
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            chunks.append(ChatChunkChoice(delta.index, ChatDelta(role="assistant", content="", refusal=None)))
        logprobs = self._logprobs([delta]) if delta.token_ids else None
        ids = list(delta.token_ids) if self._ids and delta.token_ids else UNSET
        if delta.text or logprobs is not None or ids is not UNSET:
            chunks.append(ChatChunkChoice(delta.index, ChatDelta(content=delta.text), logprobs, token_ids=ids))
        if delta.finish_reason is not None:
            stop = UNSET if delta.stop_reason is None else delta.stop_reason
            chunks.append(
                ChatChunkChoice(delta.index, ChatDelta(), finish_reason=delta.finish_reason, stop_reason=stop)
            )
        return chunks

    def collect(self, delta: TextDelta) -> None:
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs = delta.prompt_logprobs
        self._deltas.setdefault(delta.index, []).append(delta)

    def choices(self) -> list[ChatChoice]:
        return [self._choice(index, deltas) for index, deltas in sorted(self._deltas.items())]

    def _choice(self, index: int, deltas: Sequence[TextDelta]) -> ChatChoice:
        last = deltas[-1]
        return ChatChoice(
            index=index,
            message=AssistantMessage("".join(delta.text for delta in deltas)),
            logprobs=self._logprobs(deltas),
            finish_reason=last.finish_reason,
            stop_reason=UNSET if last.stop_reason is None else last.stop_reason,
            token_ids=[token for delta in deltas for token in delta.token_ids] if self._ids else UNSET,
        )

    def _logprobs(self, deltas: Sequence[TextDelta]) -> ChatLogprobs | None:
        if self._params.logprobs is None:
            return None
        return chat_logprobs([token for delta in deltas for token in delta.logprobs or ()], self._text)
