"""The choices of one /v1/completions response, as they grow."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from thranite.request import EngineRequest, TokenLogprobs
from thranite.sampling_params import SamplingParams
from thranite.server.logprobs import (
    CompletionLogprobsWriter,
    TextOffsets,
    TokenText,
    join,
    prompt_logprobs,
    prompt_offsets,
)
from thranite.server.wire.completion import CompletionChoice, CompletionLogprobs, CompletionRequest
from thranite.server.wire.usage import Usage
from thranite.text.output import TextDelta
from thranite.text.tokenizer import Tokenizer


class CompletionSamples:
    """Turns deltas into choices: one a delta for a stream (`news`), or whole ones at the end (`collect`, `choices`)."""

    def __init__(
        self,
        request: CompletionRequest,
        prompts: Sequence[str | list[int]],
        requests: Sequence[EngineRequest],
        params: SamplingParams,
        tokenizer: Tokenizer | None,
    ) -> None:
        self._request = request
        self._params = params
        self._tokenizer = tokenizer
        self._text = TokenText(tokenizer)
        self._prompts = [self._shown_prompt(prompt, engine) for prompt, engine in zip(prompts, requests, strict=True)]
        self._prompt_ids = [engine.prompt_token_ids for engine in requests]
        self._prompt_logprobs: list[Sequence[TokenLogprobs | None] | None] = [None] * len(requests)
        self._begun: set[int] = set()
        self._writers: dict[int, CompletionLogprobsWriter] = {}
        self._echo_offsets: dict[int, list[int]] = {}  # by prompt: its samples share them
        self._deltas: dict[int, list[TextDelta]] = {}

    def _shown_prompt(self, prompt: str | list[int], engine: EngineRequest) -> str:
        """What echo puts before the completion: the prompt as given, or the text of its tokens."""
        if not self._request.echo:
            return ""
        if isinstance(prompt, str) and self._params.truncate_prompt_tokens is None:
            return prompt
        if self._tokenizer is None:
            return ""
        return self._tokenizer.decode(engine.prompt_token_ids, self._params.skip_special_tokens)

    @property
    def _echo_only(self) -> bool:
        return self._request.max_tokens == 0

    def usage(self, counted: Usage) -> Usage:
        """A prompt that is only echoed completes nothing: its one drawn token is not shown."""
        if not self._echo_only:
            return counted
        return Usage(counted.prompt_tokens, 0, counted.prompt_tokens, counted.prompt_tokens_details)

    def news(self, prompt: int, delta: TextDelta) -> list[CompletionChoice]:
        """The chunks for one delta: none while its text is held back."""
        self._keep_scores(prompt, delta)
        index = prompt * self._params.n + delta.index
        first = index not in self._begun
        if self._echo_only and delta.finish_reason is None:
            return []
        show_logprobs = delta.logprobs is not None and bool(delta.token_ids)
        show_ids = bool(self._request.return_token_ids and delta.token_ids)
        echo = self._prompts[prompt] if first else ""
        if not (echo or delta.text or show_logprobs or show_ids or delta.finish_reason):
            return []
        self._begun.add(index)
        return [self._choice(prompt, [delta], echo, first=first)]

    def collect(self, prompt: int, delta: TextDelta) -> None:
        self._keep_scores(prompt, delta)
        self._deltas.setdefault(prompt * self._params.n + delta.index, []).append(delta)

    def _keep_scores(self, prompt: int, delta: TextDelta) -> None:
        """The prompt's, which come once, before any other sample's first token."""
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs[prompt] = delta.prompt_logprobs

    def choices(self) -> list[CompletionChoice]:
        """Every sample whole, in order."""
        return [
            self._choice(index // self._params.n, deltas, self._prompts[index // self._params.n], first=True)
            for index, deltas in sorted(self._deltas.items())
        ]

    def _choice(self, prompt: int, deltas: Sequence[TextDelta], echo: str, first: bool) -> CompletionChoice:
        last = deltas[-1]
        index = prompt * self._params.n + last.index
        ids = bool(self._request.return_token_ids)
        scored = self._prompt_logprobs[prompt]
        return CompletionChoice(
            index=index,
            text=echo + ("" if self._echo_only else "".join(delta.text for delta in deltas)),
            logprobs=self._logprobs(index, prompt, deltas, first),
            finish_reason="length" if self._echo_only else last.finish_reason,
            stop_reason=UNSET if last.stop_reason is None else last.stop_reason,
            token_ids=self._token_ids(deltas) if ids else UNSET,
            prompt_token_ids=list(self._prompt_ids[prompt]) if ids and first else UNSET,
            prompt_logprobs=UNSET
            if self._request.prompt_logprobs is None or scored is None
            else prompt_logprobs(scored, self._request.prompt_logprobs, self._text),
        )

    def _token_ids(self, deltas: Sequence[TextDelta]) -> list[int]:
        return [] if self._echo_only else [token for delta in deltas for token in delta.token_ids]

    def _logprobs(self, index: int, prompt: int, deltas: Sequence[TextDelta], first: bool) -> CompletionLogprobs | None:
        if self._params.logprobs is None:
            return None
        ids, scored, shown = self._prompt_ids[prompt], self._prompt_logprobs[prompt], self._prompts[prompt]
        if index not in self._writers:
            offsets = TextOffsets(self._tokenizer, ids, self._params.skip_special_tokens, start=len(shown))
            self._writers[index] = CompletionLogprobsWriter(self._text, self._params.logprobs, offsets)
        writer = self._writers[index]
        tokens = [token for delta in deltas for token in delta.logprobs or ()]
        tail = writer.write([] if self._echo_only else tokens)
        if not (first and self._request.echo and scored):
            return tail
        if prompt not in self._echo_offsets:
            self._echo_offsets[prompt] = prompt_offsets(self._tokenizer, ids, shown)
        return join(writer.write_prompt(ids, scored, self._echo_offsets[prompt]), tail)
