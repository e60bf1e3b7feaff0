"""This engine and transformers doing the same greedy work on token ids."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from thranite.bench.workloads import Request
from thranite.errors import ThraniteError
from thranite.sampling_params import SamplingParams

if TYPE_CHECKING:
    from thranite.llm import LLM


class Engine:
    """This engine in this process."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    def together(self, requests: Sequence[Request]) -> float:
        """Seconds for all requests handed over at once."""
        prompts: list[Any] = [{"prompt_token_ids": request.prompt_token_ids} for request in requests]
        params = [_greedy(request.output_tokens) for request in requests]
        started = time.perf_counter()
        outputs = self._llm.generate(prompts, params)
        seconds = time.perf_counter() - started
        _check([len(output.outputs[0].token_ids) for output in outputs], requests)
        return seconds

    def one_by_one(self, requests: Sequence[Request]) -> float:
        """Seconds with one request in flight."""
        return sum(self.together([request]) for request in requests)


class Transformers:
    """`generate` of transformers with its defaults, greedy."""

    def __init__(self, model: str) -> None:
        from transformers import AutoModelForCausalLM

        loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        loaded.generation_config.eos_token_id = None  # as ignore_eos
        loaded.generation_config.pad_token_id = 0
        self._model = loaded.eval()

    def padded_batch(self, requests: Sequence[Request]) -> float:
        """Seconds of one static batch: prompts padded on the left, decoding until the longest output is done."""
        width = max(len(request.prompt_token_ids) for request in requests)
        pads = [width - len(request.prompt_token_ids) for request in requests]
        ids = [[0] * pad + request.prompt_token_ids for pad, request in zip(pads, requests, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in pads]
        longest = max(request.output_tokens for request in requests)
        started = time.perf_counter()
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), max_new_tokens=longest, do_sample=False
            )
        seconds = time.perf_counter() - started
        _check([output.shape[1] - width] * len(requests), [Request([], longest)] * len(requests))
        return seconds


def _greedy(output_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=output_tokens, detokenize=False)


def _check(produced: Sequence[int], requests: Sequence[Request]) -> None:
    wanted = [request.output_tokens for request in requests]
    if list(produced) != wanted:
        raise ThraniteError(f"tokens came out as {list(produced)} where {wanted} were asked for")
