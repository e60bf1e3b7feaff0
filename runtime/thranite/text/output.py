"""From the engine's deltas to text: the one place where a request's output is cut, for `LLM` and server alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from thranite.request import FinishReason, SequenceDelta, TokenLogprobs
from thranite.sampling_params import SamplingParams
from thranite.text.detokenizer import Detokenizer
from thranite.text.stop import StopStrings
from thranite.text.tokenizer import Tokenizer


class TextDelta(NamedTuple):
    """News of sample `index`. `text` may lag behind `token_ids` (incomplete characters, possible stop strings).

    `stop_reason`: the stop string or stop token id that ended the sample; None for EOS. The last three fields are the
    engine's, see `SequenceDelta`.
    """

    index: int  # type: ignore[assignment]  # as SequenceDelta.index
    text: str
    token_ids: tuple[int, ...]
    logprobs: Sequence[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    cached_tokens: int | None = None
    error: str | None = None


class RequestText:
    """The text of one request's `params.n` samples. Without a tokenizer, or with detokenize=False, text stays ''.

    `incremental=False`: nobody reads along, so a sample's text may come whole with its last delta, which is cheaper.
    Unless there are stop strings to be found, and the attribute says True.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        tokenizer: Tokenizer | None = None,
        incremental: bool = True,
    ) -> None:
        self._params = params
        self._prompt = prompt_token_ids
        self._tokenizer = tokenizer if params.detokenize else None
        self.incremental = incremental or bool(params.stop_strings)
        self._samples: dict[int, _SampleText] = {}
        self._ended: set[int] = set()
        self.completion_tokens = 0  # of all samples so far, as usage counts them

    @property
    def finished(self) -> bool:
        """Whether every sample has ended."""
        return len(self._ended) == self._params.n

    @property
    def open_samples(self) -> tuple[int, ...]:
        return tuple(index for index in range(self._params.n) if index not in self._ended)

    def feed(self, delta: SequenceDelta) -> TextDelta | None:
        """The delta's text and tokens; None once the sample has ended.

        If the result has a finish reason and the delta had none, a stop string ended the sample: tell the engine with
        `stop(request_id, index)`.
        """
        if delta.index in self._ended:
            return None
        result = self._sample(delta.index).feed(delta)
        self.completion_tokens += len(result.token_ids)
        if result.finish_reason is not None:
            self._ended.add(delta.index)
            self._samples.pop(delta.index)
        return result

    def _sample(self, index: int) -> _SampleText:
        if index not in self._samples:
            self._samples[index] = _SampleText(self._params, self._prompt, self._tokenizer, self.incremental)
        return self._samples[index]


class _SampleText:
    """Detokenizer and stop strings of one sample."""

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], tokenizer: Tokenizer | None, incremental: bool
    ) -> None:
        self._incremental = incremental
        self._detokenizer = Detokenizer(tokenizer, prompt, params.skip_special_tokens) if tokenizer else None
        self._stops = StopStrings(params.stop_strings, params.include_stop_str_in_output)
        self._include_stop = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._tokens = 0

    def feed(self, delta: SequenceDelta) -> TextDelta:
        if self._detokenizer is None:
            return _whole(delta, "")
        shown = delta.token_ids[:-1] if self._ends_silently(delta) else delta.token_ids
        pieces: list[str] = []
        if self._incremental:
            for position, token in enumerate(shown):
                piece, stop = self._add(self._detokenizer.step(token), 1)
                pieces.append(piece)
                if stop is not None:
                    return _cut(delta, position + 1, "".join(pieces), stop)
        else:
            self._detokenizer.hold(shown)
        if delta.finish_reason is not None:
            piece, stop = self._add(self._detokenizer.flush(), len(delta.token_ids) - len(shown))
            pieces.append(piece)
            if stop is not None:
                return _cut(delta, len(delta.token_ids), "".join(pieces), stop)
            pieces.append(self._stops.flush())
        return _whole(delta, "".join(pieces))

    def _ends_silently(self, delta: SequenceDelta) -> bool:
        """EOS and stop tokens stay among the tokens, but their text is shown only if stop strings' text would be."""
        return delta.finish_reason is FinishReason.STOP and not self._include_stop

    def _add(self, text: str, tokens: int) -> tuple[str, str | None]:
        """Text that may be sent now, after `tokens` more tokens, and the stop string that it completed."""
        self._tokens += tokens
        match = self._stops.feed(text, self._tokens > self._min_tokens)
        return match.text, match.stop


def _whole(delta: SequenceDelta, text: str) -> TextDelta:
    return TextDelta(
        index=delta.index,
        text=text,
        token_ids=delta.token_ids,
        logprobs=delta.logprobs,
        finish_reason=None if delta.finish_reason is None else str(delta.finish_reason),
        stop_reason=delta.stop_token_id,
        prompt_logprobs=delta.prompt_logprobs,
        cached_tokens=delta.cached_tokens,
        error=delta.error,
    )


def _cut(delta: SequenceDelta, count: int, text: str, stop: str) -> TextDelta:
    """The delta up to the token that completed a stop string."""
    return TextDelta(
        index=delta.index,
        text=text,
        token_ids=delta.token_ids[:count],
        logprobs=None if delta.logprobs is None else delta.logprobs[:count],
        finish_reason=str(FinishReason.STOP),
        stop_reason=stop,
        prompt_logprobs=delta.prompt_logprobs,
        cached_tokens=delta.cached_tokens,
    )
