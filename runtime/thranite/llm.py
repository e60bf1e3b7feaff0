"""The engine in this process: `LLM(model).generate(prompts, params)`."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from thranite.batch_order import batch_order
from thranite.config import Device, DType, EngineConfig, LoadFormat
from thranite.engine.batch import Batch
from thranite.engine.build import build_engine
from thranite.engine.client import EngineInfo
from thranite.engine.engine import Engine
from thranite.engine.progress import NoProgress, Progress
from thranite.errors import DoesNotFit, InvalidRequest, ThraniteError
from thranite.interrupts import BetweenSteps
from thranite.known_ids import all_known
from thranite.loader.device_memory import format_bytes
from thranite.outputs import CompletionOutput, RequestOutput
from thranite.packed_logprobs import ScoredPieces
from thranite.request import EngineRequest, SequenceDelta, TokenLogprobs
from thranite.sampling_params import Pooling, SamplingParams
from thranite.text.embedding import check_pooling, embedding_request, unit_length
from thranite.text.generation_config import GenerationConfig, read_default_sampling
from thranite.text.messages import Message
from thranite.text.output import RequestText, TextDelta
from thranite.text.prompt import Prompt, as_list, build_request, text_of, tokenize_prompt
from thranite.text.tokenizer import Tokenizer


class LLM:
    """One model, loaded at construction. Not thread-safe. Options are those of `EngineConfig`.

    `generation_config`: as the server's; "none" leaves the model's recommended sampling out of the default parameters.
    """

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        revision: str | None = None,
        tensor_parallel_size: int = 1,
        max_model_len: int | None = None,
        dtype: DType = "auto",
        load_format: LoadFormat = "auto",
        device: Device = "auto",
        gpu_memory_utilization: float = 0.9,
        kv_cache_memory_bytes: int | None = None,
        kv_cache_dtype: DType = "auto",
        block_size: int | None = None,
        enable_prefix_caching: bool = True,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        enforce_eager: bool = False,
        kernel_cache: str | None = None,
        peer_all_reduce: bool = True,
        overlap: bool = True,
        seed: int = 0,
        skip_tokenizer_init: bool = False,
        generation_config: GenerationConfig = "auto",
        progress: Progress | None = None,
    ) -> None:
        self.config = EngineConfig(
            model=model,
            tokenizer=tokenizer,
            revision=revision,
            tensor_parallel_size=tensor_parallel_size,
            max_model_len=max_model_len,
            dtype=dtype,
            load_format=load_format,
            device=device,
            gpu_memory_utilization=gpu_memory_utilization,
            kv_cache_memory_bytes=kv_cache_memory_bytes,
            kv_cache_dtype=kv_cache_dtype,
            block_size=block_size,
            enable_prefix_caching=enable_prefix_caching,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            enforce_eager=enforce_eager,
            kernel_cache=kernel_cache,
            peer_all_reduce=peer_all_reduce,
            overlap=overlap,
            max_waiting_requests=2**31,  # a batch given at once is no overload
            max_waiting_tokens=2**62,
            seed=seed,
            skip_tokenizer_init=skip_tokenizer_init,
        )
        self._default_params = SamplingParams(**read_default_sampling(generation_config, model, revision))
        self.engine, self.info = _prepared_engine(self.config, progress or NoProgress())
        self._tokenizer = None if skip_tokenizer_init else Tokenizer.load(*self.config.tokenizer_source)
        self._ids = itertools.count()

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises ThraniteError under skip_tokenizer_init."""
        if self._tokenizer is None:
            raise ThraniteError("this LLM was made with skip_tokenizer_init=True")
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """Those of calls that bring none: as the model's generation_config.json says, else SamplingParams' own."""
        return self._default_params

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Complete the prompts, all at once; results in their order.

        A prompt is text, token ids, {"prompt": text} or {"prompt_token_ids": ids}; one or a list. One SamplingParams
        serves all, or one each (default: `get_default_sampling_params()`). Raises InvalidRequest before any work if a
        prompt or parameter cannot be served.

        An interrupt takes effect before the next step, and leaves no request behind. A second one takes effect at once.
        Where it leaves a step half-way, as an error may, all later calls raise EngineDead: make another LLM.
        """
        many = as_list(prompts)
        encoded = [tokenize_prompt(prompt, self._tokenizer) for prompt in many]
        texts = [text_of(prompt) for prompt in many]
        return self._run(encoded, texts, sampling_params)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or a list of them, through the chat template, as /v1/chat/completions does.

        `sampling_params` are those of `generate`: without them an answer ends after 16 tokens, as vLLM's.
        """
        if not messages:
            raise InvalidRequest("messages must not be empty", "messages")
        many: Sequence[Any] = [messages] if isinstance(messages[0], Mapping) else messages
        params = _spread(sampling_params, len(many), self._default_params)
        encoded = [
            self.get_tokenizer().apply_chat_template(
                conversation,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                structured=given.structured_outputs is not None,
                **(chat_template_kwargs or {}),
            )
            for conversation, given in zip(many, params, strict=True)
        ]
        return self._run(encoded, [None] * len(encoded), params)

    def embed(self, prompts: Prompt | Sequence[Prompt], *, pooling: Pooling = "last") -> list[list[float]]:
        """Each prompt's final hidden states, pooled and of length 1: the last token's, or the mean of all."""
        check_pooling(pooling)
        encoded = [tokenize_prompt(prompt, self._tokenizer) for prompt in as_list(prompts)]
        requests = _all_made(
            (
                embedding_request(str(number), ids, pooling, self.info)
                for ids, number in zip(encoded, self._ids, strict=False)
            ),
            len(encoded),
        )
        found: dict[str, list[float]] = {}
        with BetweenSteps() as interrupts:
            try:
                for request in requests:
                    self.engine.add(request)
                while self.engine.has_work:
                    for delta in self.engine.step():
                        if delta.embedding is not None:
                            found[delta.request_id] = unit_length(delta.embedding)
                    interrupts()
            except BaseException:
                for request in requests:
                    self.engine.abort(request.request_id)
                raise
        self.engine.check_integrity()
        return [found[request.request_id] for request in requests]

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        texts: Sequence[str | None],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[RequestOutput]:
        params = _spread(sampling_params, len(prompts), self._default_params)
        jobs: dict[str, _Job] = {}
        outputs: dict[str, RequestOutput] = {}
        batch = Batch(self.engine)
        with BetweenSteps() as interrupts:
            try:
                with _no_collections():
                    made = (self._request(ids, p) for ids, p in zip(prompts, params, strict=True))
                    requests = _all_made(made, len(prompts))
                    jobs |= {
                        request.request_id: _Job(request, p, text, self._tokenizer)
                        for request, p, text in zip(requests, params, texts, strict=True)
                    }
                    interrupts()
                    stops = any(one.stop for one in params)
                    batch.add(*batch_order(requests, self.engine.settings, stop_strings=stops))
                    interrupts()
                    order = list(jobs)
                    del requests  # each is freed once it is answered, while others run
                    self._step(jobs, outputs)
                interrupts()
                while self.engine.has_work:
                    self._step(jobs, outputs)
                    interrupts()
            except BaseException:
                batch.end()
                for request_id in jobs:  # an interrupt or an error leaves no request behind
                    self.engine.abort(request_id)
                raise
        batch.end()
        if jobs:
            raise RuntimeError(f"the engine has nothing left to do, and no end came of requests {', '.join(jobs)}")
        self.engine.check_integrity()
        return [outputs[request_id] for request_id in order]

    def _request(self, ids: Iterable[int], params: SamplingParams) -> EngineRequest:
        number, ids = next(self._ids), tuple(ids)
        known = all_known(ids, self.info.vocab_size)
        seed = self.config.seed + number
        return build_request(str(number), ids, params, self.info, self._tokenizer, seed=seed, known_ids=known)

    def _step(self, jobs: dict[str, _Job], outputs: dict[str, RequestOutput]) -> None:
        """One step of the engine. Requests that ended move from `jobs` to `outputs`, while the device computes."""
        for delta in self.engine.step():
            job = jobs[delta.request_id]
            if job.take(delta):
                self.engine.stop(delta.request_id, delta.index)
            if job.open == 0:
                outputs[delta.request_id] = job.output()
                del jobs[delta.request_id]

    def sleep(self, level: int = 1) -> None:
        """Weights go to host memory and the KV cache is dropped, until `wake_up`. Level 1 is the only one."""
        if level != 1:
            raise InvalidRequest(f"level must be 1, got {level}: weights are kept", "level")
        with BetweenSteps():  # after an interrupt a step is still to be read
            self.engine.sleep()

    def wake_up(self) -> None:
        """Serve again, with the same results as before. Raises DoesNotFit where others have taken the memory."""
        with BetweenSteps():
            missing = self.engine.wake()
        if missing:
            raise DoesNotFit(f"the device lacks {format_bytes(missing)} of free memory to wake up")

    def close(self) -> None:
        """Free the device's memory. The object is of no use afterwards."""
        self.engine.close()


class _Job:
    """One request of a `generate` call while it runs."""

    def __init__(
        self, request: EngineRequest, params: SamplingParams, prompt: str | None, tokenizer: Tokenizer | None
    ) -> None:
        self._request = request
        self._prompt = prompt
        self._samples = [_Sample() for _ in range(params.n)]
        self.open = params.n  # samples that have not ended
        self._text = RequestText(params, request.prompt_token_ids, tokenizer, incremental=False)

    def take(self, delta: SequenceDelta) -> bool:
        """Whether a stop string ended the sample, of which the engine does not know.

        Without stop strings a sample's text is made once, at its end.
        """
        sample = self._samples[delta.index]
        if not self._text.incremental:
            sample.add(delta)
            if delta.finish_reason is not None:
                self._say(sample, self._text.feed(delta._replace(token_ids=tuple(sample.token_ids))))
            return False
        news = self._text.feed(delta)
        if news is None:
            return False
        sample.add(news)
        self._say(sample, news)
        return news.finish_reason is not None and delta.finish_reason is None

    def _say(self, sample: _Sample, news: TextDelta | None) -> None:
        if news is not None:
            sample.say(news)
            self.open -= news.finish_reason is not None

    def output(self) -> RequestOutput:
        leader = self._samples[0]
        prompt_logprobs = leader.prompt_logprobs
        return RequestOutput(
            request_id=self._request.request_id,
            prompt=self._prompt,
            prompt_token_ids=list(self._request.prompt_token_ids),
            prompt_logprobs=None if prompt_logprobs is None else list(prompt_logprobs),
            outputs=[sample.output(index) for index, sample in enumerate(self._samples)],
            cached_tokens=leader.cached_tokens or 0,
        )


@dataclass(slots=True)
class _Sample:
    """What has come of one sample. Deltas are not kept: the garbage collector would walk through a heap of them."""

    token_ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    scores: ScoredPieces = field(default_factory=ScoredPieces)
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def add(self, news: SequenceDelta | TextDelta) -> None:
        """All but text and end. Once a row and step."""
        self.token_ids += news.token_ids
        if news.logprobs is not None:
            self.scores.add(news.logprobs)
        if news.cached_tokens is not None:
            self.cached_tokens = news.cached_tokens
        if news.prompt_logprobs is not None:
            self.prompt_logprobs = news.prompt_logprobs

    def say(self, news: TextDelta) -> None:
        self.pieces.append(news.text)
        self.finish_reason, self.stop_reason = news.finish_reason, news.stop_reason

    def output(self, index: int) -> CompletionOutput:
        return CompletionOutput(
            index=index,
            text="".join(self.pieces),
            token_ids=self.token_ids,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            scores=self.scores.pieces or None,
        )


def _prepared_engine(config: EngineConfig, progress: Progress) -> tuple[Engine, EngineInfo]:
    engine, info = build_engine(config, progress)
    progress.stage("prepare the rest")  # at once: an engine without a loop has no idle moments
    while engine.prepare():
        pass
    gc.collect()  # or the first run pays for a walk through all that was imported, tenths of a second
    return engine, info


@contextmanager
def _no_collections() -> Iterator[None]:
    """Garbage is not collected within: walks through thousands of new prompts, none of which is garbage."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _all_made(requests: Iterable[EngineRequest], count: int) -> list[EngineRequest]:
    """All `count` of them, which are made one by one; the first that cannot be served is named by its place."""
    made: list[EngineRequest] = []
    try:
        for request in requests:
            made.append(request)
    except InvalidRequest as error:
        if count == 1:
            raise
        raise error.of(f"request {len(made) + 1} of {count}") from error
    return made


def _spread(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int, default: SamplingParams
) -> list[SamplingParams]:
    """One SamplingParams a prompt."""
    if params is None:
        return [default] * count
    if isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count:
        raise InvalidRequest(f"{count} prompts and {len(params)} sampling_params: give one, or one each")
    return list(params)
